"""Importance matrices: both kinds of file are read as llama-quantize reads them, damaged ones refused."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantcore import open_model
from quantcore.containers.gguf import GGUFSink
from quantcore.errors import InputError, NeedsCalibration, UnreadableFile
from quantcore.ggufkv import Value, ValueType, array, string, u32
from quantcore.imatrix import ImportanceMatrix, open_imatrix
from quantcore.pipeline import quantize, verify
from quantcore.plan import Options, Plan, make_plan
from quantcore.sources.gguf import open_gguf
from quantcore.sources.views import pruned
from quantcore.tensors import TensorInfo
from tests.quantcore.models import small_llama

GOLDEN = Path(__file__).parents[1] / "golden"
DEMO = Path(__file__).parents[2] / "hub" / "demo" / "tiny-novels-7m"
QUERY = "blk.0.attn_q.weight"

KEYS = {
    "general.type": string("imatrix"),
    "imatrix.datasets": array(ValueType.STRING, ["a.txt", "b.txt"]),
    "imatrix.chunk_count": u32(7),
    "imatrix.chunk_size": u32(512),
}


def write(path: Path, tensors: Mapping[str, np.ndarray], **changes: Value | None) -> Path:
    """Write the GGUF kind; `changes` replace or, with None, leave out keys (`__` for a dot)."""
    keys = {**KEYS, **{key.replace("__", "."): value for key, value in changes.items()}}
    infos = [
        TensorInfo(name, it.shape, {"f4": "F32", "f2": "F16"}[it.dtype.str[1:]], it.nbytes)
        for name, it in tensors.items()
    ]
    with GGUFSink(path, {key: value for key, value in keys.items() if value is not None}, infos) as sink:
        for name, it in tensors.items():
            sink.write(name, it.tobytes())
        sink.commit()
    return path


def entry(name: str, sums: list[list[float]], counts: list[float]) -> dict[str, np.ndarray]:
    return {
        f"{name}.in_sum2": np.array(sums, dtype=np.float32),
        f"{name}.counts": np.array(counts, dtype=np.float32)[:, None],
    }


def legacy(*entries: tuple[bytes, int, list[float]], trailer: bytes = b"") -> bytes:
    parts = [
        struct.pack("<i", len(name)) + name + struct.pack(f"<ii{len(values)}f", calls, len(values), *values)
        for name, calls, values in entries
    ]
    return struct.pack("<i", len(entries)) + b"".join(parts) + trailer


def check_refused(path: Path, words: str) -> None:
    with pytest.raises(UnreadableFile, match=words) as caught:
        open_imatrix(path)
    assert str(path) in str(caught.value)


def test_both_kinds_of_real_files_say_the_same():
    """llama-imatrix wrote the same measurement both ways, but for the rounding of quotients."""
    new, old = (open_imatrix(GOLDEN / f"novels.imatrix.{kind}") for kind in ("gguf", "dat"))

    assert new.entries.keys() == old.entries.keys()
    assert len(new) == 42
    assert (new.datasets, new.n_chunks) == (old.datasets, old.n_chunks) == (("calibration.txt",), 24)
    for name, it in new.entries.items():
        shape = (1, it.n_values)
        np.testing.assert_allclose(new.get(name, shape), old.get(name, shape), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "level", "sha256"),
    [
        ("gguf", "Q4_K_M", "bed8ab72b0ad1f0e4f5b3c1ad9255ecd9050bc4421818cee4cb456ebd895a759"),
        ("dat", "Q2_K_S", "20304527a2d5d3974512f7d145d40accdce5f4b30348952db6a9232e54c1a306"),
        ("gguf", "IQ4_XS", "5c96a374a7b98b2625c8956419863346d3bbbc5960d15c213f234d16af82221f"),
    ],
)
def test_files_made_with_it_are_those_of_llama_quantize(tmp_path, monkeypatch, kind, level, sha256):
    """To the byte, metadata included: the demo model in F16, with `--imatrix novels.imatrix.KIND`."""
    monkeypatch.chdir(GOLDEN)
    whole = open_model(DEMO)
    source = open_gguf(quantize(whole, make_plan(whole, "F16"), tmp_path / "f16.gguf").path)
    imatrix = open_imatrix(f"novels.imatrix.{kind}")
    plan = make_plan(source, level, Options(imatrix=imatrix))

    made = quantize(source, plan, tmp_path / "out.gguf", imatrix=imatrix)

    assert made.file_bytes == plan.file_bytes
    assert made.sha256 == hashlib.sha256(made.path.read_bytes()).hexdigest() == sha256
    verify(made.path, Plan.from_json(plan.to_json()))


def test_sums_are_divided_by_the_count_of_each_matrix(tmp_path):
    """An expert that no token reached counts alike in all columns."""
    found = open_imatrix(write(tmp_path / "i", entry("exps", [[2, 4], [9, 9], [3, 6]], [2, 0, 3])))

    importance = found.get("exps", (3, 8, 2))

    assert importance is not None
    assert importance.dtype == np.float32
    np.testing.assert_array_equal(importance, [[1, 2], [1, 1], [1, 2]])


def test_more_matrices_than_any_model_stacks_are_refused(tmp_path):
    check_refused(write(tmp_path / "i", entry("exps", [[1]] * 70_000, [1] * 70_000)), "70000 sums for 70000")


def test_a_plan_keeps_to_its_importance_matrix(tmp_path):
    """The file says which one it was made with: neither another nor none will do."""
    source, imatrix = open_model(DEMO), open_imatrix(GOLDEN / "novels.imatrix.gguf")
    plan, bare = make_plan(source, "Q4_K_M", Options(imatrix=imatrix)), make_plan(source, "Q4_K_M")
    other = open_imatrix(GOLDEN / "novels.imatrix.dat")

    for wrong, matrix in ((plan, None), (plan, other), (bare, imatrix)):
        with pytest.raises(InputError, match="planned with another importance matrix"):
            quantize(source, wrong, tmp_path / "out.gguf", imatrix=matrix)
    assert not list(tmp_path.iterdir())


def test_the_importance_matrix_is_not_overwritten(tmp_path):
    path = tmp_path / "i.gguf"
    path.write_bytes((GOLDEN / "novels.imatrix.gguf").read_bytes())
    source, imatrix = open_model(DEMO), open_imatrix(path)
    plan = make_plan(source, "Q4_K_M", Options(imatrix=imatrix))

    with pytest.raises(InputError, match="is the importance matrix"):
        quantize(source, plan, path, imatrix=imatrix)

    assert path.read_bytes() == (GOLDEN / "novels.imatrix.gguf").read_bytes()


def test_the_older_kind_is_divided_by_its_calls(tmp_path):
    path = tmp_path / "i.dat"
    path.write_bytes(legacy((b"a", 4, [2, 8]), (b"b", 0, [2, 8]), trailer=struct.pack("<ii", 9, 1) + b"t"))
    found = open_imatrix(path)

    assert (found.n_chunks, found.datasets) == (9, ("t",))
    np.testing.assert_array_equal(found.get("a", (1, 2)), [[0.5, 2]])
    np.testing.assert_array_equal(found.get("b", (1, 2)), [[2, 8]])
    assert found.get("c", (1, 2)) is None


def test_the_oldest_files_do_not_say_what_was_measured(tmp_path):
    path = tmp_path / "i.dat"
    path.write_bytes(legacy((b"a", 1, [1])))

    assert open_imatrix(path).metadata() == {
        "quantize.imatrix.file": str(path),
        "quantize.imatrix.entries_count": 1,
    }


def test_the_keys_of_a_file_made_with_it(tmp_path):
    """As llama-quantize writes them: the first text only, and no more than 127 bytes of it."""
    tensors = entry("a", [[1]], [1]) | entry("b", [[1]], [1])
    long = array(ValueType.STRING, ["é" * 100, "b.txt"])

    found = open_imatrix(write(tmp_path / "i", tensors, imatrix__datasets=long)).selected(exclude=["b"])

    assert found.metadata() == {
        "quantize.imatrix.file": str(tmp_path / "i"),
        "quantize.imatrix.dataset": "é" * 63 + "\udcc3",
        "quantize.imatrix.entries_count": 1,
        "quantize.imatrix.chunks_count": 7,
    }


def test_entries_are_selected_by_parts_of_their_names(tmp_path):
    tensors = entry("blk.0.attn_q", [[1]], [1]) | entry("blk.1.attn_q", [[1]], [1]) | entry("out", [[1]], [1])
    found = open_imatrix(write(tmp_path / "i", tensors))

    assert set(found.selected(include=["attn", "ou"]).entries) == {"blk.0.attn_q", "blk.1.attn_q", "out"}
    assert set(found.selected(exclude=["blk.1", "out"]).entries) == {"blk.0.attn_q"}


def test_an_entry_of_another_size_is_of_another_model(tmp_path):
    """The token embedding is forgiven, as llama-quantize does."""
    tensors = entry(QUERY, [[1, 2]], [1]) | entry("token_embd.weight", [[1, 2]], [1])
    found = open_imatrix(write(tmp_path / "i", tensors))

    with pytest.raises(
        InputError, match=rf"{QUERY}: .* has 2 values where the tensor needs 3; .*another model"
    ):
        found.get(QUERY, (8, 3))
    assert found.get("token_embd.weight", (8, 3)) is None


GOOD = entry("a", [[1, 2]], [1])


@pytest.mark.parametrize(
    ("tensors", "changes", "words"),
    [
        (GOOD, {"imatrix__chunk_size": None}, r"not an importance matrix: imatrix\.chunk_size missing"),
        (GOOD, {"imatrix__datasets": string("x")}, r"imatrix\.datasets is not a list of names"),
        (GOOD, {"imatrix__chunk_count": string("x")}, r"imatrix\.chunk_count is 'x', not a 32-bit count"),
        ({"other": np.ones((1, 2), np.float32)}, {}, "holds no entry"),
        ({"a.counts": np.ones((1, 1), np.float32)}, {}, "entry a has counts alone"),
        ({"a.in_sum2": np.ones((1, 2), np.float32)}, {}, "entry a has sums alone"),
        (GOOD | {"a.counts": np.ones((1, 1), np.float16)}, {}, "entry a is F32 with F16 counts"),
        (entry("a", [[1, 2]], [1, 1, 1]), {}, "entry a has 2 sums for 3 counts"),
        (entry("a", [[1, np.nan]], [1]), {}, "entry a holds values that are"),
        (entry("a", [[1, np.inf]], [1]), {}, "entry a holds values that are"),
        (entry("a", [[1, -1]], [1]), {}, "entry a holds values that are"),
        (entry("a", [[1, 2]], [np.nan]), {}, "entry a has counts that are"),
        (entry("a", [[1, 2]], [-1]), {}, "entry a has counts that are"),
    ],
)
def test_damage_is_told_by_file_and_entry(tmp_path, tensors, changes, words):
    check_refused(write(tmp_path / "i", tensors, **changes), words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated: the number of entries needs 4 bytes, 0 are left"),
        (b"It was the best of times", "not an importance matrix: it would hold"),
        (legacy((b"", 1, [1.0, 2.0])), "entry 1 of 1 has a name of 0 bytes"),
        (struct.pack("<ii20x", 1, -5), "entry 1 of 1 has a name of -5 bytes"),
        (struct.pack("<ii20x", 1, 60), "entry 1 of 1, its name needs 60 bytes, 20 are left"),
        (legacy((b"name", -1, [1.0])), r"entry 1 of 1 \(name\) has 1 values of -1 calls"),
        (legacy((b"name", 1, [])) + bytes(9), r"entry 1 of 1 \(name\) has 0 values of 1 calls"),
        (legacy((b"name", 1, [1.0, 2.0]))[:-1], r"entry 1 of 1 \(name\) has 2 values, 7 bytes left"),
        (legacy((b"a", 1, [1.0]), (b"a", 1, [1.0])), "entry a stands twice"),
        (legacy((b"a", 1, [float("nan")])), "entry a holds values that are"),
        (legacy((b"a", 1, [1.0]), trailer=struct.pack("<ii", 1, 9)), "text's name has 9 bytes, 0 are left"),
    ],
)
def test_damage_of_the_older_kind_is_told_too(tmp_path, data, words):
    path = tmp_path / "i.dat"
    path.write_bytes(data)

    check_refused(path, words)


@pytest.mark.parametrize("kind", ["gguf", "dat"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 3000), place=st.integers(0, 3000), byte=st.integers(0, 255))
def test_no_damage_goes_beyond_an_error(tmp_path, kind, cut, place, byte):
    """Cut anywhere or with a byte changed, a file is read or refused, and nothing else happens."""
    data = bytearray((GOLDEN / f"novels.imatrix.{kind}").read_bytes())
    data[place] = byte
    path = tmp_path / "damaged"
    path.write_bytes(data[: len(data) - cut])

    try:
        found = open_imatrix(path)
    except UnreadableFile:
        return
    assert all(found.get(name, (1, it.n_values)) is not None for name, it in found.entries.items())


def test_a_missing_file_is_named(tmp_path):
    check_refused(tmp_path / "none", "No such file")


def of_model(path: Path, model: Path, *, without: str = "nothing") -> ImportanceMatrix:
    """Measure nothing: an importance of one for every matrix in the layers, but those named."""
    infos = [info for info in open_gguf(model).infos if info.name.startswith("blk.") and len(info.shape) > 1]
    tensors: dict[str, np.ndarray] = {}
    for info in infos:
        if without not in info.name:
            tensors |= entry(info.name, [[1.0] * info.row_length], [1.0])
    return open_imatrix(write(path, tensors))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_llama(tmp_path / "m.gguf")


def test_levels_that_need_importance_are_refused_without(model):
    """The message names the tensor, its type, the reason and the way out."""
    with pytest.raises(
        NeedsCalibration, match=r"attn_k\.weight as Q2_K .* importance matrix; give one .*level"
    ):
        make_plan(open_gguf(model), "Q2_K_S")


def test_a_tensor_without_an_entry_is_refused_where_its_type_needs_one(model, tmp_path):
    lacking = of_model(tmp_path / "i", model, without="blk.1.ffn_up")
    source = open_gguf(model)

    with pytest.raises(NeedsCalibration, match=r"blk\.1\.ffn_up\.weight as Q2_K .*no entry .*--tensor-type"):
        make_plan(source, "Q2_K_S", Options(imatrix=lacking))
    options = Options(imatrix=lacking, overrides=((r"blk\.1\.ffn_up", "Q3_K"),))
    assert make_plan(source, "Q2_K_S", options).level == "Q2_K_S"
    assert make_plan(source, "Q2_K", Options(imatrix=lacking)).level == "Q2_K"


def test_a_dry_run_plans_what_cannot_be_made_yet(model):
    plan = make_plan(open_gguf(model), "Q2_K_S", Options(dry_run=True))

    assert plan.warnings[-1].startswith("making this takes an importance matrix, with entries such as blk.0.")


def test_a_matrix_of_another_model_is_refused_before_any_work(model, tmp_path):
    other = of_model(tmp_path / "i", small_llama(tmp_path / "wide.gguf", width=512))

    with pytest.raises(InputError, match=r"attn_k\.weight: .* has 512 values where the tensor needs 256"):
        make_plan(open_gguf(model), "Q4_0", Options(imatrix=other))


def test_layers_that_moved_up_keep_their_importance(model, tmp_path):
    """With layer 0 cut, the importance of blk.1 is that of the new blk.0."""
    second = of_model(tmp_path / "i", model).selected(include=["blk.1."])

    plan = make_plan(pruned(open_gguf(model), {0}), "Q2_K_S", Options(imatrix=second))

    assert {it.name[:6] for it in plan.tensors if it.type == "Q2_K"} == {"blk.0.", "token_"}
