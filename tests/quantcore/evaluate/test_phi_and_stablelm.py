"""What is their own in Phi-3 (fused matrices, longrope) and StableLM (layer norms, heads rotated in part)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from quantcore.convert import open_huggingface
from quantcore.errors import InputError, UnreadableFile
from quantcore.evaluate.rope import make_rope
from quantcore.evaluate.weights import Weights
from quantcore.ggufkv import u32
from tests.quantcore.convert.families import FAMILIES, config_of, safetensors_bytes, weights_of, write_model
from tests.quantcore.evaluate.test_forward import far_from, ours, with_tensor


def made(directory, family):
    write_model(directory, family)
    return open_huggingface(directory)


@pytest.mark.parametrize(("family", "other"), [("phi3short", "long"), ("phi3long", "short")])
def test_factors_for_the_other_length_change_nothing(tmp_path, family, other):
    source = made(tmp_path, family)
    name = f"rope_factors_{other}.weight"

    assert np.array_equal(ours(with_tensor(source, name, lambda rows: rows * 2)), ours(source))


@pytest.mark.parametrize(("n_ctx", "length"), [(256, "short"), (257, "long")])
def test_contexts_longer_than_the_original_take_the_long_factors(tmp_path, n_ctx, length):
    rope = make_rope(made(tmp_path, "phi3short"), "neox", 16, n_ctx)

    factors = FAMILIES["phi3short"]["rope_scaling"][f"{length}_factor"]
    angles = np.arctan2(rope.sin[1], rope.cos[1])
    assert np.allclose(angles, 100.0 ** -(np.arange(6) / 6) / factors)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("attn_qkv", 32, 48), ("attn_qkv", 48, 64), ("attn_qkv", 32, 64), ("ffn_up", 48, 96)],
)
def test_the_order_of_what_is_fused_matters(tmp_path, name, first, last):
    source = made(tmp_path, "phi3")

    def moved(rows):
        return np.concatenate([rows[first:last], rows[:first], rows[last:]])

    assert far_from(ours(source), with_tensor(source, f"{name}.weight", moved))


@pytest.mark.parametrize("family", ["stablelm", "stablelm12b"])
def test_how_much_of_a_head_is_rotated_matters(tmp_path, family):
    source = made(tmp_path, family)
    whole = replace(source, metadata=dict(source.metadata) | {"stablelm.rope.dimension_count": u32(8)})

    assert far_from(ours(source), whole)


def test_a_norm_before_the_feed_forward_part_matters(tmp_path):
    """Without one, both parts of a layer read the same."""
    source = made(tmp_path, "stablelm")

    assert far_from(ours(source), with_tensor(source, "ffn_norm.weight", None))


def test_a_layer_norm_needs_its_bias(tmp_path):
    source = with_tensor(made(tmp_path, "stablelm"), "output_norm.bias", None)

    with pytest.raises(UnreadableFile, match=r"has no tensor output_norm\.bias"):
        ours(source)


def test_biases_of_what_is_fused_belong_to_its_pieces(tmp_path):
    weights = weights_of(config_of("phi3"))
    bias = np.arange(64, dtype=np.float32) / 16
    named = {f"model.layers.{n}.self_attn.qkv_proj.bias": bias for n in range(2)}
    plain = made(tmp_path, "phi3")
    logits = ours(plain)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(weights | named))
    source = open_huggingface(tmp_path)
    model = Weights(source)

    with ThreadPoolExecutor(1) as pool:
        parts = model.layer(0, pool)

    assert np.array_equal(parts["attn_k.bias"], bias[32:48])
    assert np.array_equal(model.joined(parts)["attn_qkv.bias"], bias)
    assert far_from(logits, source)


def test_factors_for_another_number_of_pairs_are_refused(tmp_path):
    source = made(tmp_path, "phi3long")
    other = replace(source, metadata=dict(source.metadata) | {"phi3.rope.dimension_count": u32(16)})

    with pytest.raises(InputError, match=r"rope_factors_long\.weight must have 8 numbers"):
        ours(other)
