"""Files by address."""

import hashlib

import pytest

from hub import blobs
from hub.catalog.models import QuantFile, RevisionFile

CONTENT = b"GGUF" + bytes(range(256)) * 2000


@pytest.fixture
def file(revision, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(CONTENT)
    return RevisionFile.objects.create(
        revision=revision, path="sub/config.json", blob=blobs.record(blobs.put(path))
    )


ADDRESS = "/acme/llama/resolve/main/sub/config.json"
SHA = hashlib.sha256(CONTENT).hexdigest()


def body(answer):
    return b"".join(answer.streaming_content)


def test_a_file_comes_whole_with_its_hash_as_etag(client, file):
    answer = client.get(ADDRESS)

    assert body(answer) == CONTENT
    assert answer["ETag"] == f'"{SHA}"'
    assert answer["Content-Length"] == str(len(CONTENT))
    assert answer["X-Repo-Commit"] == "c" * 40
    assert answer["Accept-Ranges"] == "bytes"
    assert answer["Content-Disposition"] == 'attachment; filename="config.json"'


def test_a_commit_names_the_same_file(client, file):
    assert body(client.get(ADDRESS.replace("main", "c" * 40))) == CONTENT


def test_head_tells_everything_but_the_bytes(client, file):
    answer = client.head(ADDRESS)

    assert (answer.status_code, answer["Content-Length"]) == (200, str(len(CONTENT)))
    assert answer.content == b""


def test_a_part_is_sent_alone(client, file):
    answer = client.get(ADDRESS, headers={"Range": "bytes=300000-300099"})

    assert answer.status_code == 206
    assert answer["Content-Range"] == f"bytes 300000-300099/{len(CONTENT)}"
    assert body(answer) == CONTENT[300000:300100]


def test_a_range_beyond_the_end_is_refused_with_the_size(client, file):
    answer = client.get(ADDRESS, headers={"Range": "bytes=9999999-"})

    assert (answer.status_code, answer["Content-Range"]) == (416, f"bytes */{len(CONTENT)}")


@pytest.mark.parametrize(("etag", "status"), [(f'"{SHA}"', 206), ('"older"', 200)])
def test_if_range_sends_a_part_only_of_the_same_file(client, file, etag, status):
    answer = client.get(ADDRESS, headers={"Range": "bytes=5-9", "If-Range": etag})

    assert answer.status_code == status
    body(answer)


def test_whoever_has_the_file_gets_no_bytes(client, file):
    assert client.get(ADDRESS, headers={"If-None-Match": f'"{SHA}"'}).status_code == 304


def test_a_quants_file_is_served(client, quant):
    assert client.head("/acme/llama/resolve/main/llama-Q4_K_M.gguf").status_code == 200


def test_main_still_reaches_the_quants_of_an_older_revision(client, quant, revision):
    revision.model.revisions.create(commit="d" * 40, source_format="gguf", file_bytes=1, tensor_type="F16")

    assert client.head("/acme/llama/resolve/main/llama-Q4_K_M.gguf")["X-Repo-Commit"] == "c" * 40
    assert client.head(f"/acme/llama/resolve/{'d' * 40}/llama-Q4_K_M.gguf").status_code == 404


@pytest.mark.parametrize(
    "address",
    [
        "/acme/llama/resolve/main/nothing.gguf",
        "/acme/llama/resolve/other/sub/config.json",
        "/acme/nobody/resolve/main/sub/config.json",
        "/acme/llama/resolve/main/../../../../etc/passwd",
        "/acme/llama/resolve/main/%2e%2e/%2e%2e/etc/passwd",
        "/acme/llama/resolve/main//etc/passwd",
    ],
)
def test_anything_else_is_not_found(client, file, address):
    assert client.get(address).status_code == 404


def test_a_blob_gone_from_the_disk_is_not_found_rather_than_an_error(client, quant):
    assert QuantFile.objects.exists()
    assert client.get("/acme/llama/resolve/main/llama-Q4_K_M.gguf").status_code == 404


def test_nobody_may_write_here(client, file):
    assert client.post(ADDRESS).status_code == 405
