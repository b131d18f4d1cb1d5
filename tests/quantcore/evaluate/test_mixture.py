"""Experts a few at a time: the same result for any slab, and no more memory than a slab takes."""

from __future__ import annotations

import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from quantcore.convert import open_huggingface
from quantcore.errors import Cancelled
from quantcore.evaluate import mixture
from quantcore.evaluate.forward import map_logits, watch
from quantcore.evaluate.mixture import Experts, Routes
from quantcore.evaluate.steps import Steps
from quantcore.evaluate.weights import Weights
from tests.quantcore.convert.families import config_of, safetensors_bytes, weights_of, write_model

TOKENS = np.random.default_rng(3).integers(0, 259, size=(3, 24)).astype(np.int32)
EXPERTS, INNER = 48, 768
ONE = 3 * 4 * INNER * 32  # bytes of an expert as float32


@pytest.fixture
def large(tmp_path):
    """A mixture whose experts are nearly all of it."""
    write_model(tmp_path, "qwen3moe")
    config = config_of("qwen3moe") | {
        "num_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": INNER,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(weights_of(config), "BF16"))
    return open_huggingface(tmp_path)


def logits(source, **options):
    return np.stack(map_logits(source, TOKENS, lambda _chunk, logits: logits, **options))


def test_in_memory_are_the_experts_of_one_slab(large, monkeypatch):
    """Beside what one thread holds while it dequantizes a matrix, and what is not experts."""
    monkeypatch.setattr(mixture, "SLAB_BYTES", 3 * ONE)
    monkeypatch.setattr(mixture, "usable_cores", lambda: 1)
    tracemalloc.start()

    logits(large, threads=1, steps=Steps())

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * ONE < EXPERTS * ONE / 4


@pytest.mark.parametrize("threads", [1, 3])
def test_slabs_and_threads_change_no_bit(large, monkeypatch, threads):
    whole = logits(large, threads=1)
    monkeypatch.setattr(mixture, "SLAB_BYTES", 5 * ONE)

    assert (logits(large, threads=threads) == whole).all()


def test_pieces_of_work_change_nothing_but_rounding(large, monkeypatch):
    whole = logits(large)
    monkeypatch.setattr(mixture, "ROWS", 5)

    assert np.allclose(logits(large), whole, atol=1e-4)


def test_rows_go_where_they_chose_in_their_order():
    chosen = np.array([[2, 0], [0, 3], [2, 3]])
    shares = np.array([[0.75, 0.25], [0.5, 0.5], [0.875, 0.125]], dtype=np.float32)

    routes = Routes.of(chosen, shares, 5)

    found = {
        expert: [(it.rows.tolist(), it.shares.tolist()) for it in routes.pieces(expert)]
        for expert in (0, 1, 2)
    }
    assert found == {0: [([0, 1], [0.25, 0.5])], 1: [], 2: [([0, 2], [0.75, 0.875])]}
    assert not routes.pieces(4)


def test_experts_that_nobody_chose_are_not_read(large, monkeypatch):
    read = set()
    monkeypatch.setattr(Experts, "_matrix", lambda _self, wanted: read.add(wanted))
    routes = Routes.of(np.array([[3], [7]]), np.ones((2, 1), np.float32), EXPERTS)

    with ThreadPoolExecutor(1) as pool:
        list(Experts(Weights(large), 0, Steps()).slabs(routes, pool))

    assert read == {(expert, part) for expert in (3, 7) for part in ("gate", "up", "down")}


def test_slabs_of_large_experts_have_work_for_all_cores(large, monkeypatch):
    monkeypatch.setattr(mixture, "SLAB_BYTES", 1)
    monkeypatch.setattr(mixture, "usable_cores", lambda: 16)
    routes = Routes.of(np.arange(12)[:, None], np.ones((12, 1), np.float32), EXPERTS)

    with ThreadPoolExecutor(1) as pool:
        slabs = list(Experts(Weights(large), 0, Steps()).slabs(routes, pool))

    assert [sorted(slab.matrices) for slab in slabs] == [list(range(6)), list(range(6, 12))]


def test_work_can_be_stopped_between_slabs(large, monkeypatch):
    """A layer of a large mixture takes long."""
    monkeypatch.setattr(mixture, "SLAB_BYTES", ONE)
    monkeypatch.setattr(mixture, "usable_cores", lambda: 1)
    told = []

    def report(progress):
        told.append(progress)
        if len(told) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        logits(large, report=report)

    assert {it.done for it in told} == {0}


class Rows:
    """A watcher of how many rows each expert gets."""

    def __init__(self):
        self.rows = {}

    def measure(self, _names, x):
        return len(x)

    def add(self, _names, _measured):
        pass

    def add_expert(self, names, expert, _experts, measured):
        for name in names:
            self.rows[name, expert] = self.rows.get((name, expert), 0) + measured


def test_every_row_is_heard_at_each_of_its_experts(large, monkeypatch):
    monkeypatch.setattr(mixture, "ROWS", 7)
    watcher = Rows()

    watch(large, TOKENS, watcher)

    for part in ("gate", "up", "down"):
        heard = [n for (name, _), n in watcher.rows.items() if name == f"blk.1.ffn_{part}_exps.weight"]
        assert sum(heard) == TOKENS.size * 4
