"""Gemma 2 and 3: what llama.cpp's converter makes of them, and what GGUF cannot say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from quantcore.convert import open_huggingface
from quantcore.errors import UnknownArchitecture, UnreadableFile
from quantcore.evaluate.tokenizer import load_tokenizer
from quantcore.pipeline import quantize
from quantcore.plan import make_plan
from tests.golden.make_conversions import KEPT
from tests.quantcore.convert import gemma
from tests.quantcore.convert.families import (
    config_of,
    safetensors_bytes,
    weights_of,
    write_model,
    write_seeing,
)


def opened(directory, family, **changes):
    """Return a model of `family` whose configuration is changed."""
    write_model(directory, family)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return open_huggingface(directory)


def without(directory, family, *fields):
    """Return a model of `family` whose configuration does not have these fields."""
    write_model(directory, family)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in fields}))
    return open_huggingface(directory)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_norms_have_the_one_that_is_added_to_them(tmp_path, dtype):
    weights = write_model(tmp_path, "gemma3", dtype)
    source = open_huggingface(tmp_path)

    for hf_name, name in (("self_attn.q_norm", "attn_q_norm"), ("input_layernorm", "attn_norm")):
        stored = weights[f"model.layers.2.{hf_name}.weight"]
        read = source.tensor(f"blk.2.{name}.weight").read().astype(np.float32).ravel()
        assert np.allclose(read, stored + 1, atol={"F32": 1e-7, "F16": 2e-3, "BF16": 1e-2}[dtype])
    assert source.tensor("blk.2.attn_q.weight").info.type == dtype


@pytest.mark.parametrize("decoder", ["language_model.model.", "model.language_model."])
def test_a_model_that_sees_becomes_the_file_of_its_text_decoder(tmp_path, decoder):
    """Under the names that its weights once had, and those they have now."""
    write_seeing(tmp_path / "model", decoder=decoder)
    source = open_huggingface(tmp_path / "model")

    written = quantize(source, make_plan(source, "BF16"), tmp_path / "model.gguf", threads=1)

    assert written.sha256 == json.loads(KEPT.read_text())["gemma3 in BF16"]["sha256"]


def test_what_a_text_decoder_does_not_say_comes_from_its_class(tmp_path):
    """Published models of this kind state few sizes."""
    defaults = {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
    }
    config = config_of("gemma3") | defaults | {"vocab_size": 320, "num_hidden_layers": 1}
    (tmp_path / "model").mkdir()
    write_seeing(tmp_path / "model")
    weights = {f"language_model.{name}": array for name, array in weights_of(config).items()}
    (tmp_path / "model" / "model.safetensors").write_bytes(safetensors_bytes(weights))
    path = tmp_path / "model" / "config.json"
    outer = json.loads(path.read_text())
    stated = {name: config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    path.write_text(json.dumps(outer | {"text_config": stated | {"vocab_size": 320}}))

    source = open_huggingface(tmp_path / "model")

    wanted = {
        "gemma3.attention.head_count": 8,
        "gemma3.attention.key_length": 256,
        "gemma3.context_length": 131072,
        "gemma3.rope.freq_base": 1e6,
        "gemma3.rope.freq_base_swa": 1e4,
        "gemma3.attention.sliding_window": 4096,
    }
    assert {key: source.get(key) for key in wanted} == wanted


def test_newer_configurations_say_the_same_of_rope(tmp_path):
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
    }
    old = opened(tmp_path / "old", "gemma3")
    new = opened(
        tmp_path / "new",
        "gemma3",
        rope_parameters=rope,
        rope_theta=None,
        rope_scaling=None,
        rope_local_base_freq=None,
    )

    keys = [key for key in old.metadata if ".rope." in key]
    assert len(keys) == 4
    assert {key: new.get(key) for key in keys} == {key: old.get(key) for key in keys}


def test_gemma_2_states_a_rope_base_only_where_it_is_not_the_usual_one(tmp_path):
    assert "gemma2.rope.freq_base" not in opened(tmp_path / "usual", "gemma2").metadata
    assert opened(tmp_path / "other", "gemma2", rope_theta=500.0).get("gemma2.rope.freq_base") == 500.0


def test_gemma_3_without_windows_states_none(tmp_path):
    full = opened(tmp_path / "full", "gemma3", layer_types=["full_attention"] * 7, sliding_window=None)
    old = opened(tmp_path / "old", "gemma3", sliding_window_pattern=1)

    for source in (full, old):
        assert "gemma3.attention.sliding_window" not in source.metadata


def test_gemma_3_may_cap_its_logits(tmp_path):
    assert (
        opened(tmp_path, "gemma3", final_logit_softcapping=9.0).get("gemma3.final_logit_softcapping") == 9.0
    )


def test_caps_that_are_not_mentioned_are_those_of_the_class(tmp_path):
    source = without(
        tmp_path, "gemma2", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"
    )

    wanted = {"attn_logit_softcapping": 50, "final_logit_softcapping": 30, "attention.sliding_window": 4096}
    assert {key: source.get(f"gemma2.{key}") for key in wanted} == wanted


SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        (
            "gemma2",
            {"attn_logit_softcapping": None},
            "attn_logit_softcapping is not set, which GGUF cannot say",
        ),
        (
            "gemma2",
            {"final_logit_softcapping": None},
            "final_logit_softcapping is not set, which GGUF cannot say",
        ),
        ("gemma2", {"sliding_window": None}, "sliding_window is not set, which GGUF cannot say of gemma2"),
        ("gemma2", {"sliding_window": 0}, "sliding_window is not set"),
        ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings is not set"),
        (
            "gemma2",
            {"layer_types": [FULL, SLIDING] * 2},
            r"layer_types: layers 2, 4, \.\.\. alone may be full",
        ),
        ("gemma2", {"query_pre_attn_scalar": 8}, "query_pre_attn_scalar is 8, llama.cpp takes 16"),
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation is 'silu', not gelu_pytorch_tanh"),
        ("gemma2", {"attention_bias": True}, "attention_bias is set, which GGUF cannot say"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is set"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is set, which GGUF cannot say"),
        (
            "gemma3",
            {"sliding_window": None},
            "sliding_window is not set, though there are layers that need it",
        ),
        ("gemma3", {"layer_types": [SLIDING] * 7}, r"layer_types: layers 6, 12, \.\.\. alone may be full"),
        ("gemma3", {"sliding_window_pattern": 3}, r"layer_types: layers 6, 12, \.\.\. alone may be full"),
        (
            *("gemma3", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
            "rope scaling 'llama3' is not known of Gemma",
        ),
        (
            *("gemma3", {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}}),
            "rope scaling in layers with a window is not known",
        ),
    ],
)
def test_what_gguf_cannot_say_of_a_gemma_is_refused(tmp_path, family, changes, said):
    with pytest.raises(UnknownArchitecture, match=rf"config\.json: {said}"):
        opened(tmp_path, family, **changes)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("gemma2", {"sliding_window": -1}, r"gemma2\.attention\.sliding_window cannot be -1"),
        ("gemma3", {"sliding_window": "6"}, r"gemma3\.attention\.sliding_window cannot be '6'"),
        ("gemma2", {"attn_logit_softcapping": [50]}, r"gemma2\.attn_logit_softcapping cannot be \[50\]"),
        ("gemma3", {"layer_types": 3}, "TypeError"),
        ("gemma3", {"sliding_window_pattern": "6"}, "TypeError"),
        ("gemma3", {"rope_local_base_freq": "low"}, r"gemma3\.rope\.freq_base_swa cannot be 'low'"),
        ("gemma3", {"rope_parameters": {SLIDING: 3}}, "AttributeError"),
        (
            "gemma3",
            {"text_config": {"num_hidden_layers": "7"}},
            "num_hidden_layers must be a positive number",
        ),
    ],
)
def test_fields_of_the_wrong_kind_are_refused_by_name(tmp_path, family, changes, said):
    with pytest.raises(UnreadableFile, match=rf"config\.json: {said}"):
        opened(tmp_path, family, **changes)


def test_a_norm_behind_a_part_that_is_missing_is_named(tmp_path):
    write_model(tmp_path, "gemma2")
    weights = weights_of(config_of("gemma2"))
    del weights["model.layers.1.post_feedforward_layernorm.weight"]
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(weights))

    with pytest.raises(
        UnreadableFile, match=r"the weights lack blk\.1\.post_ffw_norm\.weight, which gemma2 needs"
    ):
        open_huggingface(tmp_path)


def test_ids_are_those_of_llama_cpp(tmp_path):
    """Whole tokens first, control tokens as text, the rest by scores or as bytes; no space before all."""
    write_model(tmp_path, "gemma3")
    tokenizer = load_tokenizer(open_huggingface(tmp_path))

    ids = tokenizer.encode("  the tea\n\n\n   h\u00e9at <table><eos> \u6211\u2581a<start_of_turn>").tolist()

    assert ids[:16] == [2, 10, 272, 280, 274, 280, 278, 9, 8, 11, 277, 275, 278, 279, 281, 12]
    assert ids[16:27] == [73, 280, 124, 128, 75, 281, 243, 149, 158, 269, 73]
    assert ids[27:] == [128, 279, 278, 127, 279, 108, 124, 115, 108, 279, 130, 127, 123, 75]


def test_a_tokenizer_saved_as_json_alone_puts_no_space_before_text_either(tmp_path):
    """The converter of llama.cpp takes such a model for one with another kind of tokenizer."""
    write_model(tmp_path, "gemma3")
    (tmp_path / "tokenizer.model").unlink()
    entries = gemma.pieces()
    added = [{"id": n, "content": text, "special": True} for n, (text, _, _) in enumerate(entries[:8])]
    model = {
        "type": "BPE",
        "byte_fallback": True,
        "vocab": {text: n for n, (text, _, _) in enumerate(entries)},
    }
    model |= {"unk_token": "<unk>", "merges": [["t", "h"], ["h", "e"], ["\u2581", "t"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))

    source = open_huggingface(tmp_path)

    assert source.get("tokenizer.ggml.add_space_prefix") is False
    assert source.get("tokenizer.ggml.token_type")[:14] == [3, 3, 3, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 6]
    assert load_tokenizer(source).encode("th").tolist() == [2, 272]
