"""Windows, caps and ropes of Gemma in the forward pass, and the window of Mistral that is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantcore.architectures import by_name
from quantcore.architectures.shape import Shape
from quantcore.convert import open_huggingface
from quantcore.errors import UnreadableFile
from quantcore.ggufkv import f32, string, u32
from tests.quantcore.convert.families import write_model
from tests.quantcore.evaluate.test_forward import TOLERANCE, far_from, ours, with_tensor


@pytest.fixture
def source(tmp_path, family):
    write_model(tmp_path, family)
    return open_huggingface(tmp_path)


def test_a_window_of_mistral_is_neither_written_nor_heeded(tmp_path):
    """As in llama.cpp."""
    write_model(tmp_path, "mistral")
    source = open_huggingface(tmp_path)
    stated = {**source.metadata, "llama.attention.sliding_window": u32(5)}

    assert "llama.attention.sliding_window" not in source.metadata
    assert np.array_equal(ours(replace(source, metadata=stated)), ours(source))


GEMMA = [
    ("gemma2", "attention.sliding_window", u32(6)),
    ("gemma2", "attention.sliding_window", u32(8)),
    ("gemma3", "attention.sliding_window", u32(7)),
    ("gemma2", "attn_logit_softcapping", f32(1e6)),
    ("gemma2", "final_logit_softcapping", f32(1e6)),
    ("gemma3", "final_logit_softcapping", f32(12.0)),
    ("gemma3", "rope.freq_base", f32(30.0)),
    ("gemma3", "rope.freq_base_swa", f32(1000.0)),
    ("gemma3", "rope.scaling.factor", f32(1.0)),
    ("gemma2", "attention.sliding_window_pattern", u32(3)),
]


@pytest.mark.parametrize(("family", "key", "value"), GEMMA)
def test_windows_caps_and_both_ropes_of_gemma_matter(source, family, key, value):
    changed = replace(source, metadata={**source.metadata, f"{family}.{key}": value})

    assert far_from(ours(source), changed)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_the_one_in_norms_matters(source):
    for name in ("attn_norm.weight", "post_ffw_norm.weight", "output_norm.weight"):
        assert far_from(ours(source), with_tensor(source, name, lambda rows: rows - np.float32(1)))


@pytest.mark.parametrize(("family", "largest"), [("gemma2", 46), ("gemma3", 62)])
def test_in_the_largest_gemma_scores_go_by_embeddings_for_each_head(family, largest):
    """As their query_pre_attn_scalar says: 4608 / 32 and 5376 / 32."""
    width = {46: 4608, 62: 5376}[largest]

    def factor(layers):
        shape = Shape(layers, width, 1, heads=32, kv_heads=16, head_size=128, vocab=1)
        return by_name(family).scales(lambda _key, default, *, positive=False: default, shape).attention

    assert np.isclose(factor(largest), (width // 32) ** -0.5)
    assert np.isclose(factor(largest - 1), 128**-0.5)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("gemma2", "attention.sliding_window", u32(0)),
        ("gemma2", "attn_logit_softcapping", f32(0.0)),
        ("gemma2", "final_logit_softcapping", f32(-1.0)),
        ("gemma3", "attention.sliding_window", string("6")),
        ("gemma3", "rope.freq_base_swa", f32(0.0)),
        ("gemma3", "final_logit_softcapping", f32(float("inf"))),
    ],
)
def test_windows_caps_and_bases_that_cannot_be_are_refused(source, family, key, value):
    changed = replace(source, metadata={**source.metadata, f"{family}.{key}": value})

    with pytest.raises(UnreadableFile, match=rf"{family}\.{key} is"):
        ours(changed)


def test_a_gemma_3_that_states_no_window_has_none(tmp_path):
    write_model(tmp_path, "gemma3")
    source = open_huggingface(tmp_path)
    none = {key: value for key, value in source.metadata.items() if "_window" not in key}
    wide = {
        **source.metadata,
        "gemma3.attention.sliding_window": u32(100),
        "gemma3.rope.freq_base_swa": f32(1000),
    }

    logits = ours(replace(source, metadata=none))

    assert far_from(logits, source)
    assert far_from(logits, replace(source, metadata=wide))  # the scaling is then in every layer
    unscaled = {key: value for key, value in none.items() if "scaling" not in key}
    assert np.allclose(
        ours(replace(source, metadata=unscaled)),
        ours(replace(source, metadata=wide | {"gemma3.rope.scaling.factor": f32(1.0)})),
        atol=TOLERANCE,
    )
