"""The store: whole or absent."""

import errno
import hashlib
import os

import pytest
from django.db import transaction

from hub import blobs
from hub.catalog.models import Blob, RevisionFile
from tests.hub.conftest import files_below


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(3 << 20))
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_bytes_come_back_under_their_hash(db, file):
    blob = blobs.record(blobs.put(file))

    assert (blob.sha256, blob.size) == (sha256(file), 3 << 20)
    with blobs.open_blob(blob.sha256) as stored:
        assert stored.read() == file.read_bytes()


def test_putting_twice_keeps_one(db, file, settings):
    for _ in range(2):
        blobs.record(blobs.put(file))

    assert Blob.objects.count() == 1
    assert len(files_below(settings.BLOB_DIR)) == 1


def test_bytes_put_get_no_row_until_they_are_recorded(db, file):
    stored = blobs.put(file)

    assert not Blob.objects.exists()
    assert blobs.record(stored).size == 3 << 20


def test_bytes_that_went_meanwhile_get_no_row(db, file):
    stored = blobs.put(file)
    blobs.path_of(stored.sha256).unlink()

    with pytest.raises(blobs.BlobError, match="gone from the store"), transaction.atomic():
        blobs.record(stored)

    assert not Blob.objects.exists()


def test_only_bytes_without_a_row_are_discarded(db, file):
    kept = blobs.record(blobs.put(file))
    file.write_bytes(b"other")
    loose = blobs.put(file)

    for sha256 in (kept.sha256, loose.sha256):
        blobs.discard_unreferenced(sha256)

    assert blobs.exists(kept.sha256)
    assert not blobs.exists(loose.sha256)
    assert Blob.objects.get() == kept


def test_adopting_moves_the_file(db, file):
    digest = sha256(file)

    os.utime(file, (0, 0))

    blobs.adopt(file, digest)

    assert blobs.sweep() == 0  # young again, however long the job took
    assert blobs.exists(digest)
    assert not file.exists()


def test_bytes_that_changed_on_the_disk_are_refused(file):
    with pytest.raises(blobs.BlobError, match="the disk holds"):
        blobs.require(file, "0" * 64)


def test_a_file_that_shrinks_while_it_is_read_is_refused(db, file, settings, monkeypatch):
    copy = blobs._copy

    def shrink_then_copy(source, partial):
        os.truncate(source, 100)
        return copy(source, partial)

    monkeypatch.setattr(blobs, "_copy", shrink_then_copy)

    with pytest.raises(blobs.BlobError, match="100 of 3,145,728 bytes"):
        blobs.put(file)
    assert files_below(settings.BLOB_DIR) == []


def test_a_full_disk_is_said_and_leaves_nothing(db, file, settings, monkeypatch):
    def write_half_then_fail(source, partial):
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(blobs, "_copy", write_half_then_fail)

    with pytest.raises(blobs.StoreFull, match="disk of the store is full"):
        blobs.put(file)
    assert files_below(settings.BLOB_DIR) == []
    assert not Blob.objects.exists()


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"short")])
def test_a_missing_or_short_blob_is_noticed(db, file, damage):
    blob = blobs.record(blobs.put(file))
    place = blobs.path_of(blob.sha256)
    place.chmod(0o644)
    damage(place)

    with pytest.raises(blobs.BlobError, match=r"missing|instead of"):
        blobs.check(blob, read=False)


def test_changed_bytes_are_noticed_when_read(db, file):
    blob = blobs.record(blobs.put(file))
    place = blobs.path_of(blob.sha256)
    place.chmod(0o644)
    place.write_bytes(bytes(blob.size))

    blobs.check(blob, read=False)
    with pytest.raises(blobs.BlobError, match="damaged"):
        blobs.check(blob, read=True)


def test_sweeping_takes_only_old_bytes_without_a_row(file, revision, settings):
    kept = blobs.record(blobs.put(file))
    RevisionFile.objects.create(revision=revision, path="model.bin", blob=kept)
    partial = settings.BLOB_DIR / "partial" / "deadbeef"
    fresh = settings.BLOB_DIR / "partial" / "cafe"
    for path in (partial, fresh):
        path.write_bytes(b"half")
    for path in (blobs.path_of(kept.sha256), partial):
        os.utime(path, (0, 0))

    assert blobs.sweep() == 1
    assert files_below(settings.BLOB_DIR) == sorted([blobs.path_of(kept.sha256), fresh])


def test_the_bytes_of_what_was_deleted_go_with_the_next_sweep(quant, settings):
    path = blobs.path_of(quant.files.get().blob_id)
    path.parent.mkdir()
    path.touch()
    os.utime(path, (0, 0))
    assert blobs.sweep() == 0

    quant.delete()

    assert blobs.sweep() == 1
    assert not Blob.objects.exists()
    assert not path.exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "", "a" * 63])
def test_only_a_sha256_names_a_blob(name):
    with pytest.raises(blobs.BlobError, match="not a SHA-256"):
        blobs.path_of(name)


def test_a_file_cannot_be_laid_out_beyond_its_folder(tmp_path):
    with pytest.raises(blobs.BlobError, match="leads out"):
        blobs.lay_out([("../evil", "a" * 64)], tmp_path / "work")
