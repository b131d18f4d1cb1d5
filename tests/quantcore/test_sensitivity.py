"""What each tensor suffers: what running the whole model once for each finds, kept for this model only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantcore.backends import choose
from quantcore.convert import open_huggingface
from quantcore.errors import InputError, UnreadableFile, UnsupportedTensor, UselessPredictions
from quantcore.evaluate import effects as module
from quantcore.evaluate.effects import effects
from quantcore.evaluate.forward import map_logits
from quantcore.evaluate.losses import SAMPLE, errors, rounded
from quantcore.formats import to_float
from quantcore.imatrix import open_imatrix
from quantcore.models import open_model
from quantcore.pipeline import quantize
from quantcore.plan import make_plan
from quantcore.sensitivity import _probe, candidates, load, measure
from quantcore.tensorrules import why_kept
from quantcore.tensors import Tensor, TensorInfo
from tests.quantcore.convert.families import FAMILIES, write_model

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "hub" / "demo"
TOKENS = np.random.default_rng(5).integers(0, 259, size=(2, 16)).astype(np.int32)


def coarse(values):
    """Round each row to steps of a tenth of its largest value."""
    step = np.abs(values).max(axis=-1, keepdims=True) / 10
    return (np.rint(values / step) * step).astype(np.float32)


def in_float32(tensor, change):
    """Return a tensor with changed values, as float32."""
    info = tensor.info
    values = change(to_float(info, tensor.read()).reshape(info.shape))
    rows = values.reshape(info.n_rows, info.row_length)
    return Tensor(replace(info, type="F32", nbytes=values.nbytes), lambda start, stop: rows[start:stop])


def log_probs(source):
    logits = np.stack(map_logits(source, TOKENS, lambda _chunk, found: found.copy(), first=8, threads=1))
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("spans", [1, 2])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_effect_is_the_divergence_of_the_model_with_that_tensor_changed(
    tmp_path, family, spans, monkeypatch
):
    write_model(tmp_path, family)
    source = open_huggingface(tmp_path)
    if spans == 2:  # layer by layer
        monkeypatch.setattr(module, "STATES_BYTES", 1)
    matrices = [t.name for t in source.tensors if not why_kept(t.name, t.info.shape)]

    found = effects(source, TOKENS, dict.fromkeys(matrices, coarse), threads=2)

    expected = log_probs(source)
    assert found.keys() == set(matrices)
    step = max(1, len(matrices) // 6)
    for name in matrices[::step]:
        changed = tuple(in_float32(t, coarse) if t.name == name else t for t in source.tensors)
        other = log_probs(replace(source, tensors=changed))
        divergence = (np.exp(expected) * (expected - other)).sum(axis=-1).mean()
        assert found[name] == pytest.approx(divergence, rel=0.02, abs=2e-6), name
        assert divergence > 1e-7


def matrix(rows=64, row=512, seed=1):
    values = np.random.default_rng(seed).standard_normal((rows, row), dtype=np.float32)
    info = TensorInfo("blk.0.ffn_up.weight", values.shape, "F32", values.nbytes)
    return Tensor(info, lambda start, stop: values[start:stop]), values


def test_errors_are_those_of_rounding_by_importance():
    tensor, values = matrix()
    importance = np.random.default_rng(2).random((1, 512), dtype=np.float32)

    found = errors(tensor, ["Q4_K", "Q8_0"], importance)

    for kind, error in found.items():
        lost = rounded(values, kind, importance, None).astype(np.float64) - values
        expected = (lost**2 @ importance[0]).sum() / (values.astype(np.float64) ** 2 @ importance[0]).sum()
        assert error == pytest.approx(expected, rel=1e-4)
    assert found["Q8_0"] < found["Q4_K"] / 50


def test_a_stack_of_experts_has_an_importance_for_each():
    _, values = matrix(rows=8)
    stack = values.reshape(2, 4, 512)
    info = TensorInfo("blk.0.ffn_up_exps.weight", stack.shape, "F32", stack.nbytes)
    tensor = Tensor(info, lambda start, stop: values[start:stop])
    importance = np.random.default_rng(2).random((2, 512), dtype=np.float32) ** 8

    whole = rounded(stack, "Q4_K", importance, None)

    assert np.array_equal(whole[1], rounded(stack[1], "Q4_K", importance[1:], None))
    lost = ((whole - stack) ** 2 * importance[:, None]).sum() / (stack**2 * importance[:, None]).sum()
    assert errors(tensor, ["Q4_K"], importance)["Q4_K"] == pytest.approx(float(lost), rel=1e-4)


def test_a_sample_of_a_large_tensor_stands_for_all_of_it():
    tensor, values = matrix(rows=SAMPLE // 512 * 3)

    lost = rounded(values, "Q4_K", None, None) - values

    expected = float((lost**2).sum() / (values**2).sum())
    assert errors(tensor, ["Q4_K"], None)["Q4_K"] == pytest.approx(expected, rel=0.02)


@pytest.fixture(scope="module")
def measured():
    source = open_model(DEMO / "tiny-novels-7m")
    text = (DEMO / "calibration.txt").read_text()[:4000]
    imatrix = open_imatrix(ROOT / "tests" / "golden" / "novels.imatrix.gguf")
    kernels = choose("auto").kernels
    return source, measure(source, text, "a.txt", "f" * 64, imatrix=imatrix, n_ctx=128, kernels=kernels)


def test_every_matrix_is_measured_at_every_type_that_it_may_have(measured):
    _, found = measured

    assert len(found.tensors) == 44
    assert (found.n_ctx, found.chunks, found.dataset) == (128, 2, "a.txt")
    for tensor in found.tensors:
        assert tensor.divergence > 0
        assert tensor.cost(tensor.probe) == pytest.approx(tensor.divergence)
        assert tensor.cost("Q8_0") < tensor.cost("Q4_K") < tensor.cost("Q2_K")
        # Embeddings and output have no importance here, which the smallest types need.
        assert ("IQ2_XXS" in tensor.errors) == tensor.name.startswith("blk.")


@pytest.mark.parametrize("level", ["IQ3_S", "IQ4_NL"])
def test_the_type_that_a_tensor_has_already_is_no_probe_of_others(measured, tmp_path, level):
    source, _ = measured
    quantize(source, make_plan(source, level), tmp_path / "m.gguf")
    text = (DEMO / "calibration.txt").read_text()[:2000]

    found = measure(open_model(tmp_path / "m.gguf"), text, "a.txt", "f" * 64, n_ctx=64)

    own = {tensor.name: tensor.type for tensor in make_plan(source, level).tensors}
    for tensor in found.tensors:
        assert tensor.probe != own[tensor.name]
        assert tensor.cost(own[tensor.name]) == 0 < tensor.cost("Q4_K") < tensor.cost("Q2_K")


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("blk.1.ffn_up.weight", UnsupportedTensor, r"tensor blk\.1\.ffn_up\.weight: no type can hold NaN"),
        ("output_norm.weight", UselessPredictions, "predictions are no numbers"),
    ],
)
def test_a_damaged_model_is_refused_by_name(measured, name, error, said):
    def damaged(values):
        values[..., -1] = np.nan
        return values

    source, _ = measured
    tensors = tuple(in_float32(t, damaged) if t.name == name else t for t in source.tensors)
    text = (DEMO / "calibration.txt").read_text()[:2000]

    with pytest.raises(error, match=rf"tiny-novels-7m: .*{said}"):
        measure(replace(source, tensors=tensors), text, "a.txt", "f" * 64, n_ctx=64, n_chunks=1)


def test_rows_that_fit_no_block_are_probed_with_what_they_may_have():
    info = TensorInfo("blk.0.ffn_up.weight", (4, 33), "F32", 4 * 4 * 33)
    values = np.random.default_rng(1).standard_normal((4, 33), dtype=np.float32)
    tensor = Tensor(info, lambda start, stop: values[start:stop])

    kinds = candidates(info, weighted=False)

    assert _probe(errors(tensor, kinds, None)) == "BF16"
    assert _probe({"F32": 0.0}) == "F32"


def test_what_was_saved_is_read_back(measured, tmp_path):
    source, found = measured

    found.save(tmp_path / "m.json")

    assert load(tmp_path / "m.json", source) == found


def test_sensitivities_of_another_model_are_refused(measured, tmp_path):
    _, found = measured
    found.save(tmp_path / "m.json")
    write_model(tmp_path / "other", "llama")

    with pytest.raises(InputError, match=r"was measured on another model: output\.weight"):
        load(tmp_path / "m.json", open_huggingface(tmp_path / "other"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda document: document.pop("chunks"), "chunks"),
        (lambda document: document.update(tensors=[{"name": "x"}]), "holds no sensitivities"),
        (lambda document: document["tensors"][0].update(divergence="much"), "is none"),
        (lambda document: document["tensors"][0].update(divergence=10**400), "holds no sensitivities"),
        (lambda document: document["tensors"][0]["errors"].update(Q4_K=-1.0), "an error below zero"),
        (lambda document: document["tensors"][0].update(probe="Q9"), "lacks the error of its probe Q9"),
        (lambda document: document["tensors"][0]["errors"].update(Q9=1.0), "unknown types: Q9"),
        (lambda document: document.update({"quantcore.sensitivity": 2}), "version 2"),
    ],
)
def test_a_damaged_file_is_refused_by_name(measured, tmp_path, damage, said):
    source, found = measured
    document = found.to_json()
    damage(document)
    (tmp_path / "m.json").write_text(json.dumps(document))

    with pytest.raises(UnreadableFile, match=rf"m\.json.*{said}"):
        load(tmp_path / "m.json", source)
