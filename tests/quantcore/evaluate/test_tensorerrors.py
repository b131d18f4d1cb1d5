"""The error of each tensor is that of its numbers; its weighted error what its inputs make of it."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from quantcore import distance
from quantcore.cli import main
from quantcore.containers.gguf import GGUFSink
from quantcore.errors import Cancelled, InputError
from quantcore.evaluate.tensorerrors import tensor_errors
from quantcore.ggufkv import string
from quantcore.imatrix import open_imatrix
from quantcore.imatrixfiles import Sums
from quantcore.models import open_model
from quantcore.pipeline import quantize
from quantcore.plan import make_plan
from quantcore.sources.gguf import open_gguf
from quantcore.sources.views import pruned
from quantcore.tensors import TensorInfo
from tests.quantcore.convert.families import write_model
from tests.quantcore.models import small_llama

DOWN = "blk.1.ffn_down.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return small_llama(tmp_path_factory.mktemp("models") / "small.gguf")


@pytest.fixture(scope="module")
def quant(model) -> Path:
    source = open_gguf(model)
    return quantize(source, make_plan(source, "Q4_K_M"), model.with_name("q.gguf")).path


@pytest.fixture(scope="module")
def matrix(model):
    """An importance matrix of one tensor."""
    sums = Sums(8, datasets=["a text"], hashes=[""])
    sums.add(DOWN, np.random.default_rng(3).gamma(0.5, size=(1, 512)), np.array([8.0]))
    sums.save(model.with_name("m.gguf"))
    return open_imatrix(model.with_name("m.gguf"))


def numbers(path: Path) -> dict[str, np.ndarray]:
    """Return what the gguf package reads in a file, float64."""
    found = gguf.GGUFReader(path).tensors
    return {t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in found}


def write_stack(path: Path, values: np.ndarray) -> Path:
    info = TensorInfo("blk.0.ffn_up_exps.weight", values.shape, "F32", values.nbytes)
    with GGUFSink(path, {"general.architecture": string("llama")}, [info]) as sink:
        sink.write(info.name, values.tobytes())
        sink.commit()
    return path


def without(source, name):
    return replace(source, tensors=tuple(tensor for tensor in source.tensors if tensor.name != name))


@pytest.mark.parametrize("slab", [1 << 20, 3000])
def test_every_figure_is_the_one_of_whole_tensors_that_another_reader_decoded(
    slab, model, quant, matrix, monkeypatch
):
    monkeypatch.setattr(distance, "SLAB_WEIGHTS", slab)

    found = tensor_errors(open_gguf(model), open_gguf(quant), imatrix=matrix)

    ours, theirs = numbers(model), numbers(quant)
    assert [error.name for error in found.tensors] == list(ours)
    for error in found.tensors:
        w, q = ours[error.name], theirs[error.name]
        assert error.rmse == pytest.approx(np.sqrt(np.mean((q - w) ** 2)), rel=1e-12)
        assert error.relative == pytest.approx(np.linalg.norm(q - w) / np.linalg.norm(w), rel=1e-12)
        assert error.cosine == pytest.approx((q * w).sum() / np.linalg.norm(q) / np.linalg.norm(w), rel=1e-12)
        assert error.max_abs == np.abs(q - w).max()
    down = next(error for error in found.tensors if error.name == DOWN)
    inputs = np.sqrt(matrix.get(DOWN, (256, 512)).astype(np.float64))  # (1, 512)
    apart = (theirs[DOWN] - ours[DOWN]) * inputs
    assert down.weighted == pytest.approx(
        np.linalg.norm(apart) / np.linalg.norm(ours[DOWN] * inputs), rel=1e-6
    )
    assert abs(down.weighted / down.relative - 1) > 0.001
    assert (down.source_type, down.type, down.bpw) == ("F16", "Q6_K", 6.5625)
    assert [error.name for error in found.tensors if error.weighted is not None] == [DOWN]


def test_all_weights_together_are_one_long_tensor(model, quant):
    found = tensor_errors(open_gguf(model), open_gguf(quant))

    ours, theirs = numbers(model), numbers(quant)
    w, q = (np.concatenate([side[name].ravel() for name in ours]) for side in (ours, theirs))
    assert found.relative == pytest.approx(np.linalg.norm(q - w) / np.linalg.norm(w), rel=1e-12)
    assert found.rmse == pytest.approx(np.sqrt(np.mean((q - w) ** 2)), rel=1e-12)
    assert found.max_abs == np.abs(q - w).max()


def test_threads_change_no_bit(model, quant, matrix, monkeypatch):
    monkeypatch.setattr(distance, "SLAB_WEIGHTS", 3000)

    one, many = (tensor_errors(open_gguf(model), open_gguf(quant), imatrix=matrix, threads=n) for n in (1, 5))

    assert one == many


def test_experts_weigh_by_their_own_inputs_and_one_without_any_not_at_all(tmp_path, monkeypatch):
    """Slabs of three rows lie across the experts, which have two each."""
    monkeypatch.setattr(distance, "SLAB_WEIGHTS", 3 * 4)
    draw = np.random.default_rng(5)
    w = draw.normal(size=(3, 2, 4)).astype(np.float32)
    q = w + draw.normal(size=w.shape).astype(np.float32)
    sums = np.array([[1, 2, 3, 4], [40, 0, 1, 0], [0, 0, 0, 0]], dtype=np.float64)
    counted = Sums(2, datasets=["a text"], hashes=[""])
    counted.add("blk.0.ffn_up_exps.weight", sums, np.array([1.0, 5, 0]))
    counted.save(tmp_path / "m.gguf")
    paths = [write_stack(tmp_path / "w.gguf", w), write_stack(tmp_path / "q.gguf", q)]

    found = tensor_errors(*map(open_gguf, paths), imatrix=open_imatrix(tmp_path / "m.gguf"))

    apart, power = ((x.astype(np.float64) ** 2 * sums[:, None, :]).sum() for x in (q - w, w))
    assert found.tensors[0].weighted == pytest.approx(np.sqrt(apart / power), rel=1e-6)


def test_importance_goes_by_the_names_that_layers_had_before_others_were_cut(model, quant, matrix):
    whole = tensor_errors(open_gguf(model), open_gguf(quant), imatrix=matrix)
    sides = [pruned(open_gguf(path), {0}) for path in (model, quant)]

    found = tensor_errors(*sides, imatrix=matrix)

    weighted = {error.name: error.weighted for error in found.tensors if error.weighted is not None}
    (expected,) = [error.weighted for error in whole.tensors if error.name == DOWN]
    assert weighted == {DOWN.replace("blk.1", "blk.0"): expected}


def test_a_huggingface_directory_is_compared_under_ggufs_names_and_order(tmp_path):
    """Llama's projections change the order of their rows on the way: it is the source's, too."""
    write_model(tmp_path / "model", "llama")
    source = open_model(tmp_path / "model")
    made = quantize(source, make_plan(source, "Q8_0"), tmp_path / "q.gguf").path

    found = tensor_errors(source, open_gguf(made))

    assert 0 < found.relative < 0.01
    assert max(error.relative for error in found.tensors) < 0.01


def test_a_model_is_no_error_from_itself(model):
    found = tensor_errors(open_gguf(model), open_gguf(model))

    assert (found.relative, found.rmse, found.cosine, found.max_abs) == (0, 0, 1, 0)


def test_zeros_are_the_same_as_zeros_and_beside_numbers_nothing_can_be_said(tmp_path):
    zeros, ones = np.zeros((1, 1, 4), np.float32), np.ones((1, 1, 4), np.float32)
    paths = [write_stack(tmp_path / name, v) for name, v in (("z.gguf", zeros), ("o.gguf", ones))]
    z, o = map(open_gguf, paths)

    same, lost, made = (tensor_errors(*pair).tensors[0] for pair in ((z, z), (o, z), (z, o)))

    assert (same.relative, same.cosine) == (0, 1)
    assert (lost.relative, lost.cosine) == (1, None)
    assert (made.relative, made.cosine, made.rmse) == (None, None, 1)


def test_what_is_not_of_one_model_is_refused_by_name(model, quant, matrix, tmp_path):
    source, other = open_gguf(model), open_gguf(quant)
    wide = open_gguf(small_llama(tmp_path / "wide.gguf", vocabulary=65))

    with pytest.raises(InputError, match=r"q\.gguf: has no tensor output\.weight, which .*small\.gguf has"):
        tensor_errors(source, without(other, "output.weight"))
    with pytest.raises(InputError, match=r"q\.gguf: has tensor output\.weight, which .*small\.gguf has no"):
        tensor_errors(without(source, "output.weight"), other)
    with pytest.raises(InputError, match=r"wide\.gguf: token_embd\.weight is 256 x 65, in .* 256 x 64"):
        tensor_errors(source, wide)
    narrow = open_gguf(small_llama(tmp_path / "narrow.gguf", width=128))
    with pytest.raises(InputError, match=rf"m\.gguf: {DOWN}: .* 512 values where the tensor needs 256"):
        tensor_errors(narrow, narrow, imatrix=matrix)


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Two tensors of 64 MB are compared in half of what one of them takes."""
    info = TensorInfo("t", (4096, 4096), "F32", 4096 * 4096 * 4)
    for number in (1, 2):
        with GGUFSink(tmp_path / f"{number}.gguf", {"general.architecture": string("llama")}, [info]) as sink:
            for _ in range(64):
                sink.write("t", np.full(1 << 18, number, np.float32).tobytes())
            sink.commit()
    models = [open_gguf(tmp_path / f"{number}.gguf") for number in (1, 2)]

    tracemalloc.start()
    found = tensor_errors(*models, threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert found.tensors[0].relative == 1
    assert peak < 32 << 20


def test_it_can_be_stopped(model, quant):
    def stop(progress):
        raise Cancelled(progress.item)

    with pytest.raises(Cancelled):
        tensor_errors(open_gguf(model), open_gguf(quant), report=stop)


def test_the_verb_prints_the_worst_first_and_the_document_all(model, quant, matrix, capsys):
    arguments = ["errors", str(model), str(quant), "--imatrix", str(matrix.path)]

    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)

    assert set(document) == {"rmse", "relative", "cosine", "max_abs", "imatrix", "build", "tensors"}
    assert document["imatrix"] == {"file": str(matrix.path), "datasets": ["a text"], "chunks": 1}
    assert set(document["tensors"][0]) == {
        *("name", "shape", "source_type", "type", "nbytes", "bpw"),
        *("rmse", "relative", "weighted", "cosine", "max_abs"),
    }
    assert document["tensors"][0]["shape"] == [256, 64]
    worst = sorted(document["tensors"], key=lambda tensor: -tensor["relative"])
    assert [line.split()[0] for line in lines[2:22]] == [tensor["name"] for tensor in worst[:20]]
    assert lines[0].startswith("all weights: relative error 0.0")
    assert lines[-1] == "and 1 more, with smaller errors; --all shows them"


def test_the_verb_names_what_does_not_match(model, tmp_path, capsys):
    small_llama(tmp_path / "other.gguf", layers=1)

    assert main(["errors", str(model), str(tmp_path / "other.gguf")]) == 1

    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("quantcore errors: ")
    assert "other.gguf: has no tensor blk.1." in shown.err
