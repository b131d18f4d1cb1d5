"""Parts, layers, metadata: the files that llama.cpp's tools make, and none of them where something fails."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantcore.atomic import AtomicFile, publish
from quantcore.cli import main
from quantcore.containers.gguf import GGUFSink
from quantcore.containers.shards import ShardSink, counts_by_number, counts_by_size, lay_out, shard_paths
from quantcore.errors import Cancelled, CannotWrite, InputError, UnreadableFile
from quantcore.ggufkv import f32, string, u32
from quantcore.pipeline import quantize, verify
from quantcore.plan import Plan, make_plan
from quantcore.sources.gguf import open_gguf
from quantcore.sources.views import in_its_parts, overridden, override_value, parse_layers, pruned
from quantcore.splitting import divided
from tests.golden.make_files import CASES, DRY, PARTS_OF_SOURCE, SIZES, Case, sha256
from tests.quantcore.models import small_llama, tensor_infos

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "files.json").read_text())


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Return the source in one file and the first of its parts."""
    folder = tmp_path_factory.mktemp("sources")
    whole = small_llama(folder / "whole.gguf", **SIZES)
    source = open_gguf(whole)
    counts = counts_by_number(len(source.tensors), int(PARTS_OF_SOURCE))
    paths = shard_paths(whole, counts)
    with ShardSink(paths, lay_out(source.metadata, source.infos, counts)) as sink:
        for tensor in source.tensors:
            sink.write(tensor.name, tensor.read().tobytes())
        sink.commit()
    return {"whole": whole, "parts": paths[0]}


def command(case: Case, source: Path, made: Path) -> list[str]:
    given = ["--to", case.level, *case.options, *case.split, "--backend", "numpy", "--json"]
    return ["quantize", str(source), str(made), *given]


def test_the_sources_are_those_of_the_golden_files(sources):
    """A model taken apart without being changed is what llama-gguf-split makes of it."""
    found = [sha256(path) for path in (sources["whole"], *open_gguf(sources["parts"]).files)]

    assert found == GOLDEN["sources"]


@pytest.mark.parametrize("title", CASES)
def test_the_files_are_those_of_llama_cpp(title, sources, tmp_path, capsys):
    """Every file has the same bytes, and the document tells all of them."""
    case = CASES[title]

    assert main(command(case, sources[case.source], tmp_path / "made.gguf")) == 0

    document = json.loads(capsys.readouterr().out)
    paths = sorted(tmp_path.iterdir())
    assert [sha256(path) for path in paths] == GOLDEN[title]
    assert [(file["path"], file["sha256"]) for file in document["files"]] == [
        (str(path), sha256(path)) for path in paths
    ]
    assert document["file_bytes"] == sum(path.stat().st_size for path in paths)
    verify(Path(document["path"]), Plan.from_json(document))


@pytest.mark.parametrize("title", DRY)
def test_a_dry_run_has_the_tool_s_size_and_writes_nothing(title, sources, tmp_path, capsys):
    case = DRY[title]

    status = main([*command(case, sources["whole"], tmp_path / "made.gguf"), "--dry-run"])

    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert status == 0
    assert (
        round(sum(tensor["nbytes"] for tensor in document["tensors"]) / 2**20, 2)
        == GOLDEN["dry"][title]["MiB"]
    )
    assert ("importance matrix" in shown.err) == GOLDEN["dry"][title]["needs imatrix"]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_needs_no_destination(sources, capsys):
    assert main(["quantize", str(sources["whole"]), "--to", "Q8_0", "--dry-run"]) == 0

    assert "nothing was written" in capsys.readouterr().out


def test_without_a_destination_nothing_is_made(sources, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["quantize", str(sources["whole"]), "--to", "Q8_0"])

    assert "DST" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        ["--prune-layers", "7-5"],
        ["--prune-layers", "one"],
        ["--override-kv", "no.type=3"],
        ["--override-kv", "a=int:-1"],
        ["--override-kv", "a=int:4294967296"],
        ["--override-kv", "a=float:inf"],
        ["--override-kv", "a=bool:yes"],
        ["--override-kv", f"a=str:{'x' * 128}"],
        ["--override-kv", "a=list:1"],
        ["--split-max-size", "0G"],
        ["--split-max-size", "much"],
        ["--split-max-tensors", "0"],
        ["--split-max-tensors", "3", "--keep-split"],
        ["--split-max-tensors", "3", "--split-max-size", "1G"],
    ],
)
def test_options_that_make_no_sense_are_bad_usage(given, sources, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["quantize", str(sources["whole"]), str(tmp_path / "a.gguf"), "--to", "Q8_0", *given])

    assert given[0] in capsys.readouterr().err


def test_layers_are_numbers_and_ranges():
    assert parse_layers("2, 5-7,6") == {2, 5, 6, 7}


@pytest.mark.parametrize(
    ("layers", "said"),
    [({6}, "has no layer 6; its layers are 0 to 5"), (set(range(6)), "no layer would be left")],
)
def test_layers_that_are_not_there_and_all_of_them_are_refused(layers, said, sources):
    with pytest.raises(InputError, match=said):
        pruned(open_gguf(sources["whole"]), layers)


def test_a_model_without_layers_knows_what_its_tensors_were_called(sources):
    """An importance matrix was measured under the old names."""
    source = pruned(open_gguf(sources["whole"]), {1, 2})

    assert source.former_names["blk.1.attn_q.weight"] == "blk.3.attn_q.weight"
    assert source.former_names["blk.3.ffn_up.weight"] == "blk.5.ffn_up.weight"
    assert "blk.0.attn_q.weight" not in source.former_names
    assert source.layers_left == 4


@pytest.mark.parametrize("key", ["general.alignment", "split.no", "split.count", "split.tensors.count"])
def test_what_the_bytes_must_keep_is_not_overridden(key, sources):
    with pytest.raises(InputError, match="how the file is laid out"):
        overridden(open_gguf(sources["whole"]), {key: u32(1)})


def test_overrides_have_the_types_of_llama_quantize():
    assert override_value("int", "7") == u32(7)
    assert override_value("float", "-1e3") == f32(-1000.0)
    assert override_value("str", "") == string("")


def test_parts_of_a_size_hold_as_many_tensors_as_fit():
    infos = tensor_infos(dict.fromkeys("abcde", (2, 16)), "F32")  # 128 bytes each

    assert counts_by_size(infos, 256) == (2, 2, 1)
    assert counts_by_size(infos, 255) == (1,) * 5
    assert counts_by_size(infos, 1) == (1,) * 5  # each is too large, and has its own
    assert counts_by_size(infos, 10_000) == (5,)


def test_parts_are_asked_for_in_one_way(sources):
    source = in_its_parts(open_gguf(sources["parts"]))

    with pytest.raises(InputError, match="parts are those of the source"):
        divided(make_plan(source, "Q8_0"), source, max_tensors=3)


def test_a_plan_in_parts_survives_json(sources):
    source = open_gguf(sources["whole"])
    plan = divided(make_plan(source, "Q8_0"), source, max_tensors=10)

    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def in_threes(path: Path):
    source = open_gguf(path)
    return source, divided(make_plan(source, "Q8_0"), source, max_tensors=20)


def test_a_finished_part_that_differs_from_the_plan_is_found(sources, tmp_path):
    source, plan = in_threes(sources["whole"])
    result = quantize(source, plan, tmp_path / "out.gguf")
    verify(result.path, plan)
    last = result.files[-1].path
    last.write_bytes(last.read_bytes() + bytes(32))

    with pytest.raises(UnreadableFile, match="planned were"):
        verify(result.path, plan)


def test_stopping_leaves_no_part(sources, tmp_path):
    source, plan = in_threes(sources["whole"])

    def stop(progress):
        if progress.share > 0.8:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        quantize(source, plan, tmp_path / "out.gguf", report=stop)

    assert not list(tmp_path.iterdir())


def test_parts_of_the_same_name_are_replaced(sources, tmp_path):
    source, plan = in_threes(sources["whole"])
    first = quantize(source, plan, tmp_path / "out.gguf")
    for file in first.files:
        file.path.write_bytes(b"old")

    again = quantize(source, plan, tmp_path / "out.gguf")

    assert [sha256(file.path) for file in again.files] == [file.sha256 for file in first.files]
    assert len(list(tmp_path.iterdir())) == len(first.files)


def test_parts_of_the_source_are_not_overwritten(sources):
    source = in_its_parts(open_gguf(sources["parts"]))
    before = [sha256(path) for path in source.files]

    with pytest.raises(InputError, match="is a file of the source"):
        quantize(source, make_plan(source, "Q8_0"), sources["parts"])

    assert [sha256(path) for path in source.files] == before


def written(path: Path, data: bytes) -> AtomicFile:
    file = AtomicFile(path, len(data))
    file.open()
    file.write(data)
    return file


def test_a_set_that_cannot_appear_leaves_the_older_one(tmp_path):
    """When the last name cannot be had, the files that got theirs go and the older ones return."""
    paths = [tmp_path / name for name in "abc"]
    for path in (paths[0], paths[2]):
        path.write_bytes(b"old")
    files = [written(path, b"new") for path in paths]
    files[0].appear = lambda: (_ for _ in ()).throw(CannotWrite("no"))

    with pytest.raises(CannotWrite):
        publish(files)
    for file in files:
        file.discard()

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "c": b"old"}


def test_the_part_that_opens_a_model_appears_last(tmp_path):
    """Whoever looks in between finds no first part, or one that stands beside its own."""
    files = [written(tmp_path / name, b"new") for name in "abc"]
    (tmp_path / "a").write_bytes(b"old")
    seen = []
    for file in files:
        appear = file.appear

        def watched(appear=appear):
            seen.append(sorted(path.name for path in tmp_path.iterdir() if path.name in "abc"))
            appear()

        file.appear = watched

    publish(files)

    assert seen == [[], ["c"], ["b", "c"]]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys("abc", b"new")


def test_hashes_are_those_of_the_files(sources, tmp_path):
    source, plan = in_threes(sources["whole"])
    result = quantize(source, plan, tmp_path / "out.gguf")

    for file in result.files:
        data = file.path.read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (file.sha256, file.file_bytes)
    assert result.file_bytes == plan.file_bytes
    assert result.path == result.files[0].path == tmp_path / "out-00001-of-00003.gguf"


def test_names_with_numbers_beyond_any_layer_are_ordinary_names(tmp_path):
    name = f"blk.{'9' * 5000}.odd.weight"
    path = tmp_path / "odd.gguf"
    infos = tensor_infos({name: (2, 32), "blk.0.attn_q.weight": (2, 32), "blk.1.attn_q.weight": (2, 32)})
    with GGUFSink(path, {"general.architecture": string("llama")}, infos) as sink:
        for info in infos:
            sink.write(info.name, bytes(info.nbytes))
        sink.commit()
    source = pruned(open_gguf(path), {1})

    made = quantize(source, make_plan(source, "Q8_0"), tmp_path / "out.gguf")

    assert {info.name for info in open_gguf(made.path).infos} == {name, "blk.0.attn_q.weight"}


def test_the_family_of_a_model_is_a_name(sources):
    with pytest.raises(InputError, match="has to be of type str"):
        overridden(open_gguf(sources["whole"]), {"general.architecture": u32(5)})


def test_parts_beyond_the_limit_of_open_files(tmp_path):
    """The limit is raised as far as it may be; where that is not enough, it is said before any work."""
    source = small_llama(tmp_path / "small.gguf")
    script = """
import resource, sys
from quantcore.cli import main
resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[1:3])))
sys.exit(main(["quantize", *sys.argv[3:], "--to", "Q8_0", "--split-max-tensors", "1", "--json"]))
"""

    def run(soft: int, hard: int, name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, str(soft), str(hard), str(source), str(tmp_path / name)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run(30, 1024, "raised.gguf").returncode == 0
    refused = run(30, 270, "refused.gguf")

    assert refused.returncode == 1
    assert "files that may be open at once" in refused.stderr
    assert not list(tmp_path.glob("*refused*"))
