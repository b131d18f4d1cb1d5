"""The progress of a forward pass follows what the work costs, in words about layers and chunks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantcore.architectures.shape import Shape
from quantcore.convert import open_huggingface
from quantcore.evaluate import forward
from quantcore.evaluate.forward import map_logits
from quantcore.evaluate.meter import SOFTMAX_COST, Meter, layer_cost, logits_cost
from tests.quantcore.convert.families import write_model

# The sizes of SmolLM2-135M, whose output projection costs as much as four layers.
SMOL = Shape(layers=30, embedding=576, feed_forward=1536, heads=9, kv_heads=3, head_size=64, vocab=49152)


def reports_of(source, **options):
    tokens = np.random.default_rng(3).integers(0, 259, size=(3, 24)).astype(np.int32)
    told = []
    map_logits(source, tokens, lambda _chunk, _logits: None, threads=1, report=told.append, **options)
    return told


@pytest.fixture
def source(tmp_path):
    write_model(tmp_path, "llama")
    return open_huggingface(tmp_path)


def test_a_layer_costs_its_matrices_and_its_attention():
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    matrices = sum(np.prod(SMOL.of(f"blk.0.{name}.weight")) for name in names)
    pairs = sum(range(1, 513))

    assert layer_cost(SMOL, 512, 0) == 512 * matrices + pairs * (2 * 576 + 9 * SOFTMAX_COST)


def test_rows_that_are_left_out_cost_keys_and_values_only():
    assert layer_cost(SMOL, 512, 512) == 512 * 2 * 192 * 576


def test_a_vocabulary_weighs_as_much_as_it_costs():
    """A larger output matrix leaves a larger share for after the last layer, as it takes that time."""
    shares = []
    for vocab in (1000, 49152, 200_000):
        told = []
        meter = Meter(replace(SMOL, vocab=vocab), 1, 512, [0] * 30, 255, told.append)
        for index in range(30):
            meter.layer(index, range(1), 1)
        shares.append(1 - told[-1].share)

    layers = 30 * layer_cost(SMOL, 512, 0)
    output = logits_cost(SMOL, 255)
    assert shares == sorted(shares)
    assert shares[0] < 0.01
    assert shares[1] == pytest.approx(output / (layers + output), abs=1 / 512)


def test_progress_ends_with_all_tokens_done(source):
    told = reports_of(source, first=12)

    assert [p.done for p in told] == sorted(p.done for p in told)
    assert (told[-1].done, told[-1].total, told[-1].unit) == (72, 72, "tokens")
    assert all(p.done < p.total for p in told[:-1])


def test_items_are_layers_and_chunks(source, monkeypatch):
    monkeypatch.setattr(forward, "TASK_ROWS", 1)  # every chunk alone

    told = [(p.item, p.index, p.count) for p in reports_of(source)]

    assert told[0] == ("layer 1 of 2, chunks 1-3", 1, 3)
    assert told[5:7] == [("layer 2 of 2, chunks 1-3", 1, 3), ("chunk 1 of 3", 1, 3)]
    assert told[-1] == ("chunk 3 of 3", 3, 3)


def test_later_groups_of_chunks_go_on_counting(source, monkeypatch):
    monkeypatch.setattr(forward, "GROUP_BYTES", 1)  # every chunk a group of its own

    items = [p.item for p in reports_of(source)]

    assert items[:4] == [
        "layer 1 of 2, chunk 1",
        "layer 2 of 2, chunk 1",
        "chunk 1 of 3",
        "layer 1 of 2, chunk 2",
    ]
