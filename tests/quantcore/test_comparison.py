"""Comparing models: what differs is told by tensor and key, in numbers that hold across types and files."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from quantcore import distance
from quantcore.cli import main
from quantcore.comparison import compare_models, differing_keys
from quantcore.containers.gguf import GGUFSink
from quantcore.errors import Cancelled
from quantcore.formats import to_float
from quantcore.ggufkv import Value, ValueType, array, f32, string, u32
from quantcore.pipeline import quantize
from quantcore.plan import make_plan
from quantcore.sources.gguf import open_gguf
from quantcore.splitting import divided
from quantcore.tensors import TensorInfo
from tests.quantcore.models import llama_metadata, small_llama

LLAMA = {"general.architecture": string("llama")}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return small_llama(tmp_path_factory.mktemp("models") / "small.gguf")


def write(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, Value] = LLAMA):
    kinds = {"float32": "F32", "float16": "F16", "float64": "F64", "int32": "I32", "uint16": "BF16"}
    infos = [TensorInfo(name, a.shape, kinds[a.dtype.name], a.nbytes) for name, a in tensors.items()]
    with GGUFSink(path, metadata, infos) as sink:
        for name, values in tensors.items():
            sink.write(name, values.tobytes())
        sink.commit()
    return open_gguf(path)


def only(a, b):
    found = compare_models(a, b)
    assert len(found.tensors) == 1
    return found.tensors[0]


def test_a_model_is_itself(model):
    found = compare_models(open_gguf(model), open_gguf(model))

    assert found.identical
    assert all(tensor.identical and tensor.max_abs == tensor.rmse == 0 for tensor in found.tensors)


def test_a_model_in_parts_is_the_same_as_in_one_file(model, tmp_path):
    source = open_gguf(model)
    plan = make_plan(source, "Q8_0")
    whole = quantize(source, plan, tmp_path / "whole.gguf")
    parts = quantize(source, divided(plan, source, max_tensors=5), tmp_path / "parts.gguf")

    assert compare_models(open_gguf(whole.path), open_gguf(parts.path)).identical


@pytest.mark.parametrize("slab", [1 << 20, 300])
def test_the_error_is_that_of_the_numbers_however_they_are_cut(slab, model, tmp_path, monkeypatch):
    """Against the straight computation over the whole tensor."""
    monkeypatch.setattr(distance, "SLAB_WEIGHTS", slab)
    source = open_gguf(model)
    made = open_gguf(quantize(source, make_plan(source, "Q4_K_M"), tmp_path / "q.gguf").path)

    found = {tensor.name: tensor for tensor in compare_models(source, made, threads=2).tensors}

    name = "blk.1.ffn_down.weight"
    a, b = (to_float(m.tensor(name).info, m.tensor(name).read()).astype(np.float64) for m in (source, made))
    rmse = np.sqrt(np.mean((a - b) ** 2))
    assert not found[name].identical
    assert (found[name].type_a, found[name].type_b) == ("F16", made.tensor(name).info.type)
    assert found[name].max_abs == np.abs(a - b).max() > 0
    assert found[name].rmse == pytest.approx(rmse, rel=1e-12)
    assert found[name].relative == pytest.approx(rmse / np.sqrt(np.mean(a**2)), rel=1e-12)
    assert found["output_norm.weight"].identical


def test_one_number_of_many_is_found(tmp_path):
    values = np.zeros((50, 40), np.float32)
    other = values.copy()
    other[49, 39] = 2

    found = only(write(tmp_path / "a.gguf", {"t": values}), write(tmp_path / "b.gguf", {"t": other}))

    assert (found.max_abs, found.rmse, found.relative) == (2, np.sqrt(4 / 2000), None)


@pytest.mark.parametrize(
    ("a", "b", "max_abs"),
    [
        (np.float32([[1.5, -2]]), np.float16([[1.5, -2]]), 0),
        (np.float32([[1, 2]]), np.uint16([[0x3F80, 0x4000]]), 0),  # BF16
        (np.float64([[1 + 2**-40, 2]]), np.float32([[1, 2]]), 2**-40),
        (np.int32([[2**31 - 1, 0]]), np.int32([[2**31 - 2, 0]]), 1),
        (np.float32([[0.0, 1]]), np.float32([[-0.0, 1]]), 0),
        (np.float32([[np.inf, 1]]), np.float16([[np.inf, 1]]), 0),
        (np.float32([[np.nan, 1]]), np.float16([[np.nan, 1]]), 0),
        (np.float32([[np.inf, 1]]), np.float32([[1, 1]]), np.inf),
        (np.float32([[np.nan, 1]]), np.float32([[1, 1]]), np.nan),
    ],
)
def test_numbers_are_compared_across_types_and_bytes_are_not_forgotten(a, b, max_abs, tmp_path):
    """Equal numbers in another type, or with another sign of zero, are no difference but not identical."""
    found = only(write(tmp_path / "a.gguf", {"t": a}), write(tmp_path / "b.gguf", {"t": b}))

    assert not found.identical
    assert found.max_abs == max_abs or np.isnan([found.max_abs, max_abs]).all()


def test_tensors_of_one_side_and_of_another_shape_are_told(tmp_path):
    a = write(tmp_path / "a.gguf", {"x": np.ones((2, 3), np.float32), "left": np.ones((1, 2), np.float32)})
    b = write(tmp_path / "b.gguf", {"x": np.ones((3, 2), np.float32), "right": np.ones((1, 2), np.float32)})

    found = {tensor.name: tensor for tensor in compare_models(a, b).tensors}

    assert list(found) == ["x", "left", "right"]
    assert (found["x"].shape_a, found["x"].shape_b, found["x"].max_abs) == ((2, 3), (3, 2), None)
    assert (found["left"].type_a, found["left"].type_b) == ("F32", None)
    assert (found["right"].type_a, found["right"].type_b) == (None, "F32")


def test_keys_differ_as_files_hold_them():
    """A type makes a difference; what a 32-bit float cannot tell, and the division in files, does not."""
    a = {"n": u32(1), "x": f32(1e-5), "nan": f32(float("nan")), "only": string("a"), "split.no": u32(0)}
    b = {"n": Value(ValueType.INT32, 1), "x": f32(float(np.float32(1e-5))), "nan": f32(float("nan"))}

    assert [(key.key, key.b) for key in differing_keys(a, b)] == [("n", b["n"]), ("only", None)]


def test_lists_are_told_apart_by_their_first_item():
    a, b = array(ValueType.STRING, ["x", "y", "z"]), array(ValueType.STRING, ["x", "Y", "z"])

    assert [key.first_item for key in differing_keys({"k": a}, {"k": b})] == [1]
    assert [key.first_item for key in differing_keys({"k": a}, {"k": array(ValueType.STRING, ["x"])})] == [1]


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Two tensors of 64 MB are compared in half of what one of them takes."""
    paths = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    info = TensorInfo("t", (4096, 4096), "F32", 4096 * 4096 * 4)
    for number, path in enumerate(paths):
        with GGUFSink(path, LLAMA, [info]) as sink:
            for _ in range(64):
                sink.write("t", np.full(1 << 18, number, np.float32).tobytes())
            sink.commit()

    tracemalloc.start()
    found = compare_models(*(open_gguf(path) for path in paths), threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert found.tensors[0].rmse == 1
    assert peak < 32 << 20


def test_a_comparison_can_be_stopped(model):
    def stop(progress):
        raise Cancelled(progress.item)

    with pytest.raises(Cancelled):
        compare_models(open_gguf(model), open_gguf(model), report=stop)


def test_the_verb_says_yes_with_status_0(model, capsys):
    assert main(["verify", str(model), str(model)]) == 0

    assert capsys.readouterr().out.startswith("identical: 21 of 21 tensors")


def test_the_verb_says_no_with_status_1_and_no_error(model, tmp_path, capsys):
    source = open_gguf(model)
    made = quantize(source, make_plan(source, "Q8_0"), tmp_path / "q.gguf").path

    assert main(["verify", str(model), str(made)]) == 1

    shown = capsys.readouterr()
    assert shown.out.startswith("not identical: 5 of 21 tensors have the same bytes, 2 metadata keys differ")
    assert "F16 and Q8_0: rmse" in shown.out
    assert "general.file_type: nothing and 7" in shown.out
    assert not shown.err


def test_the_document_is_the_contract_s(model, tmp_path, capsys):
    source = open_gguf(model)
    made = quantize(source, make_plan(source, "Q8_0"), tmp_path / "q.gguf").path

    assert main(["verify", str(model), str(made), "--json"]) == 1

    document = json.loads(capsys.readouterr().out)
    assert document["identical"] is document["tensors_identical"] is document["metadata_identical"] is False
    first = document["tensors"][0]
    assert first["name"] == "token_embd.weight"
    assert (first["identical"], first["type_a"], first["type_b"]) == (False, "F16", "Q8_0")
    assert 0 < first["rmse"] < first["max_abs"]
    assert first["shape_a"] == first["shape_b"] == [256, 64]
    keys = {entry["key"]: (entry["a"], entry["b"]) for entry in document["metadata"]}
    assert keys["general.file_type"] == (None, {"type": "uint32", "value": 7})


def test_tensors_alone_may_decide(tmp_path, capsys):
    values = {"t": np.ones((1, 4), np.float32)}
    write(tmp_path / "a.gguf", values)
    write(tmp_path / "b.gguf", values, {**LLAMA, "general.name": string("Other")})
    paths = [str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")]

    assert main(["verify", *paths]) == 1
    assert main(["verify", *paths, "--tensors-only", "--json"]) == 0
    assert '"metadata_identical": false' in capsys.readouterr().out


def test_a_file_that_is_none_is_an_error(model, tmp_path, capsys):
    (tmp_path / "b.gguf").write_bytes(b"nothing of the kind, though long enough")

    assert main(["verify", str(model), str(tmp_path / "b.gguf")]) == 1

    shown = capsys.readouterr()
    assert not shown.out
    assert "b.gguf: not a GGUF file" in shown.err


def test_a_changed_tensor_is_found_among_all(model, tmp_path):
    """One byte of the last tensor's data."""
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    (tmp_path / "b.gguf").write_bytes(data)

    found = compare_models(open_gguf(model), open_gguf(tmp_path / "b.gguf"))

    assert [tensor.name for tensor in found.tensors if not tensor.identical] == [
        open_gguf(model).infos[-1].name
    ]
    assert not found.metadata
    assert llama_metadata().keys() == open_gguf(model).metadata.keys()
