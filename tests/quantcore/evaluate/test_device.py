"""The forward pass keeps to the functions that cupy has, and never mixes its arrays with numpy's."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from quantcore.convert import open_huggingface
from quantcore.errors import InputError, MissingEngine
from quantcore.evaluate.forward import losses, map_logits, watch
from quantcore.evaluate.perplexity import perplexity
from quantcore.evaluate.steps import Steps
from tests.quantcore.convert.families import FAMILIES, config_of, write_model
from tests.quantcore.evaluate.foreign import Foreign, Namespace

TOKENS = np.random.default_rng(3).integers(0, 259, size=(2, 24)).astype(np.int32)
MIXTURES = {
    name for name in FAMILIES if config_of(name).get("num_experts") or "num_local_experts" in config_of(name)
}
DENSE = sorted(FAMILIES.keys() - MIXTURES)


def opened(tmp_path, family):
    write_model(tmp_path, family)
    return open_huggingface(tmp_path)


@pytest.mark.parametrize("family", DENSE)
def test_every_dense_family_runs_elsewhere(tmp_path, family):
    source = opened(tmp_path, family)
    away = Steps(Namespace())

    logits = map_logits(source, TOKENS, lambda _chunk, logits: logits, first=9, steps=away)

    expected = map_logits(source, TOKENS, lambda _chunk, logits: logits, first=9, steps=Steps())
    assert all(type(found) is np.ndarray for found in logits)
    assert np.abs(np.stack(logits) - np.stack(expected)).max() < 1e-5
    here = np.stack(losses(source, TOKENS, first=9, steps=Steps()))
    assert np.stack(losses(source, TOKENS, first=9, steps=away)) == pytest.approx(here, abs=1e-5)


def test_watchers_get_arrays_of_numpy(tmp_path):
    kinds = set()

    class Kinds:
        def measure(self, _names, x):
            kinds.add(type(x))

        def add(self, names, measured):
            pass

    watch(opened(tmp_path, "llama"), TOKENS, Kinds(), steps=Steps(Namespace()))

    assert kinds == {np.ndarray}


@pytest.mark.parametrize("family", sorted(MIXTURES))
def test_mixtures_are_refused_elsewhere(tmp_path, family):
    with pytest.raises(InputError, match="run on the processor only; leave out --device"):
        losses(opened(tmp_path, family), TOKENS, steps=Steps(Namespace()))


def test_the_stand_in_refuses_what_cupy_refuses():
    """Else the tests above could not fail."""
    there = Foreign(np.ones(3, np.float32))

    for mix in (
        lambda: np.exp(there),
        lambda: np.zeros_like(there),
        lambda: np.asarray(there),
        lambda: there + np.ones(3, np.float32),
        lambda: np.ones(3, np.float32) @ there,
        lambda: there[np.array([0])],
    ):
        with pytest.raises(TypeError):
            mix()
    with pytest.raises(AttributeError):
        Namespace().vecdot(there, there)


def test_without_cupy_cuda_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)

    with pytest.raises(MissingEngine, match="CUDA needs cupy: pip install cupy-cuda12x"):
        perplexity(opened(tmp_path, "llama"), "too short", device="cuda")
