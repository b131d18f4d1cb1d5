"""A Hugging Face directory seen as GGUF."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quantcore.architectures.base import interleave
from quantcore.convert import gathered, native_level, open_huggingface
from quantcore.errors import InputError, UnknownArchitecture, UnreadableFile, UnsupportedTensor
from quantcore.ggufkv import ValueType, encode
from quantcore.models import open_model
from quantcore.pipeline import quantize
from quantcore.plan import make_plan
from tests.golden.make_conversions import family_and_type, short
from tests.quantcore.convert.families import (
    FAMILIES,
    LLAMA3_ROPE,
    config_of,
    safetensors_bytes,
    weights_of,
    write_model,
)

DEMO = "hub/demo/tiny-novels-7m"


@pytest.fixture
def llama(tmp_path):
    write_model(tmp_path / "model", "llama")
    return tmp_path / "model"


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_demo_model_has_the_metadata_of_the_reference_converter(pytestconfig):
    source = open_model(pytestconfig.rootpath / DEMO)

    assert list(source.metadata)[:3] == ["general.architecture", "general.type", "general.name"]
    expected = {
        "general.name": "Tiny Novels 7m",
        "general.size_label": "7M",
        "llama.block_count": 6,
        "llama.attention.head_count_kv": 4,
        "llama.attention.key_length": 32,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 32,
        "llama.vocab_size": 4096,
        "general.file_type": 1,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0,
    }
    assert {key: source.get(key) for key in expected} == expected
    assert "tokenizer.ggml.add_bos_token" not in source.metadata
    assert (len(source.get("tokenizer.ggml.tokens")), len(source.tensors)) == (4096, 57)


def encoded(metadata):
    return {encode(key, value) for key, value in metadata.items()}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_converts_to_a_file_that_reads_the_same(tmp_path, family):
    write_model(tmp_path / "model", family, "F16")
    source = open_huggingface(tmp_path / "model")

    quantize(source, make_plan(source, native_level(source)), tmp_path / "model.gguf", threads=1)

    written = open_model(tmp_path / "model.gguf")
    assert encoded(written.metadata) == encoded(source.metadata)
    for tensor in source.tensors:
        assert np.array_equal(written.tensor(tensor.name).read().astype(np.float32), tensor.read()), (
            tensor.name
        )


def test_norms_and_biases_become_f32(tmp_path):
    write_model(tmp_path, "qwen2", "BF16")
    source = open_huggingface(tmp_path)

    plan = make_plan(source, native_level(source))

    assert plan.level == "BF16"
    assert {t.type for t in plan.tensors if len(t.shape) == 1} == {"F32"}
    assert {t.type for t in plan.tensors if len(t.shape) > 1} == {"BF16"}


def test_rows_of_q_are_interleaved_head_by_head(llama):
    weights = weights_of(config_of("llama"))
    source = open_huggingface(llama)

    q = source.tensor("blk.1.attn_q.weight").read()

    heads = weights["model.layers.1.self_attn.q_proj.weight"].reshape(4, 2, 4, 32)
    assert np.array_equal(q.reshape(4, 4, 2, 32), heads.swapaxes(1, 2))
    assert np.array_equal(
        source.tensor("blk.1.attn_v.weight").read(), weights["model.layers.1.self_attn.v_proj.weight"]
    )


def test_slabs_of_reordered_rows_are_the_rows_of_the_whole():
    stored = np.arange(48).reshape(24, 2)
    read = gathered(lambda start, stop: stored[start:stop], interleave(3, 8))

    whole = read(0, 24)
    pieces = [read(start, min(start + 5, 24)) for start in range(0, 24, 5)]

    assert np.array_equal(np.concatenate(pieces), whole)
    assert read(7, 7).shape == (0, 2)


def test_reading_a_slab_of_reordered_rows_touches_its_heads_only():
    asked = []

    def read_rows(start, stop):
        asked.append((start, stop))
        return np.zeros((stop - start, 1))

    gathered(read_rows, interleave(100, 8))(40, 44)

    assert asked == [(40, 46)]


def test_tied_embeddings_have_no_output_matrix(tmp_path):
    write_model(tmp_path, "qwen2")
    extra = weights_of(config_of("qwen2")) | {"lm_head.weight": np.zeros((260, 32), dtype=np.float32)}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(extra))

    assert open_huggingface(tmp_path).tensor("output.weight") is None


def test_llama3_rope_becomes_a_tensor(llama):
    factors = open_huggingface(llama).tensor("rope_freqs.weight")

    assert (factors.info.shape, factors.info.type) == ((4,), "F32")
    assert factors.read().shape == (1, 4)


def test_an_unknown_class_is_named_with_those_there_are(llama):
    change_config(llama, architectures=["MambaForCausalLM"])

    with pytest.raises(
        UnknownArchitecture,
        match=r"config\.json: architectures: no description of MambaForCausalLM; there are .*Granite",
    ):
        open_huggingface(llama)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(llama, name):
    (llama / name).unlink()

    with pytest.raises(UnreadableFile, match=name.replace(".", r"\.")):
        open_huggingface(llama)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": None}, "'architectures'"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers must be a positive number, not '2'"),
        ({"head_dim": -4}, "head_dim must be a positive number, not -4"),
        (
            {"rms_norm_eps": "small"},
            r"config\.json: llama\.\S+_rms_epsilon cannot be 'small', float32 is",
        ),
        ({"rms_norm_eps": [1e-5, 1e-6]}, r"config\.json: llama\.\S+_rms_epsilon cannot be \[1e-05, 1e-06\]"),
        ({"rms_norm_eps": 1e300}, r"config\.json: llama\.\S+_rms_epsilon cannot be 1e\+300"),
        ({"rms_norm_eps": float("nan")}, r"config\.json: llama\.\S+_rms_epsilon would be nan"),
        ({"rope_parameters": {"rope_theta": 0}}, r"config\.json: llama\.rope\.freq_base would be 0"),
        ({"rope_parameters": LLAMA3_ROPE | {"factor": 0.0}}, r"config\.json: rope_freqs\.weight would hold"),
        ({"rope_parameters": [1]}, r"config\.json: TypeError"),
        ({"num_hidden_layers": 3}, r"lack blk\.2\.attn_norm\.weight"),
        ({"num_hidden_layers": 2**30}, "num_hidden_layers is 1073741824, the weights are 21 tensors"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers is 1099511627776, more than any model has"),
        ({"head_dim": 4}, r"k_proj\.weight is \[16, 32\], config\.json means \[8, 32\]"),
        ({"head_dim": 7}, "heads of 7 cannot be rotated"),
        ({"num_key_value_heads": 2**31 - 1}, r"is \[16, 32\], config\.json means \[17179869176, 32"),
        ({"vocab_size": 100}, r"is \[260, 32\], config\.json means \[100, 32\]"),
        ({"quantization_config": [1]}, r"config\.json: the weights are already quantized"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(llama, changes, said):
    change_config(llama, **changes)

    with pytest.raises(InputError, match=said):
        open_huggingface(llama)


def test_quantized_weights_are_sent_back(llama):
    change_config(llama, quantization_config={"quant_method": "gptq"})

    with pytest.raises(InputError, match=r"already quantized \(gptq\)"):
        open_huggingface(llama)


def test_weights_that_are_not_floats_are_refused_by_name(llama):
    raw = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(raw.replace(b'"F32"', b'"I32"'))

    with pytest.raises(UnsupportedTensor, match=r"lm_head\.weight is stored as I32"):
        open_huggingface(llama)


def test_a_tensor_the_family_does_not_know_is_refused_by_name(llama):
    odd = weights_of(config_of("llama")) | {"model.layers.0.mixer.A_log": np.zeros(3, dtype=np.float32)}
    (llama / "model.safetensors").write_bytes(safetensors_bytes(odd))

    with pytest.raises(UnsupportedTensor, match=r"llama has no tensor called model\.layers\.0\.mixer\.A_log"):
        open_huggingface(llama)


def test_a_name_given_twice_is_refused(llama):
    twice = weights_of(config_of("llama")) | {"transformer.wte.weight": np.zeros((260, 32), np.float32)}
    (llama / "model.safetensors").write_bytes(safetensors_bytes(twice))

    with pytest.raises(
        UnreadableFile, match=r"wte\.weight and model\.embed_tokens\.weight are both token_embd"
    ):
        open_huggingface(llama)


@pytest.mark.parametrize("shape", [(), (0,), (7, 3), (2, 2, 2, 2, 2), (48, 32)])
@pytest.mark.parametrize("part", ["self_attn.q_proj", "mlp.down_proj", "input_layernorm"])
def test_a_tensor_of_another_shape_is_refused_by_name(llama, part, shape):
    """llama.cpp would refuse the file that came of it."""
    name = f"model.layers.0.{part}.weight"
    (llama / "model.safetensors").write_bytes(
        safetensors_bytes(weights_of(config_of("llama")) | {name: np.zeros(shape, np.float32)})
    )

    with pytest.raises(UnreadableFile, match=rf"model\.safetensors: {name} is \[.*\], config\.json means"):
        open_huggingface(llama)


@pytest.fixture
def mixtral(tmp_path):
    write_model(tmp_path, "mixtral")
    return tmp_path


def test_experts_become_one_stack_that_is_read_across_them(mixtral):
    weights = weights_of(config_of("mixtral"))
    stored = [weights[f"model.layers.1.block_sparse_moe.experts.{e}.w3.weight"] for e in range(4)]

    ups = open_huggingface(mixtral).tensor("blk.1.ffn_up_exps.weight")

    assert ups.info.shape == (4, 48, 32)
    assert np.array_equal(ups.read(), np.concatenate(stored))
    pieces = [ups.read_rows(start, min(start + 31, 192)) for start in range(0, 192, 31)]
    assert np.array_equal(np.concatenate(pieces), np.concatenate(stored))
    assert ups.read_rows(48, 48).shape == (0, 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda w, name: w.pop(name),
            r"model\.layers\.0\.block_sparse_moe\.experts\.w1\.weight lacks number 2 of 4",
        ),
        (lambda w, name: w.update({name: w[name][:-1]}), r"experts\.2\.w1\.weight is F32 \[47, 32\]"),
        (lambda w, name: w.update({name.replace("2", "9"): w[name]}), "has number 9, config.json means 4"),
    ],
)
def test_experts_that_are_missing_or_unlike_are_named(mixtral, change, said):
    weights = weights_of(config_of("mixtral"))
    change(weights, "model.layers.0.block_sparse_moe.experts.2.w1.weight")
    (mixtral / "model.safetensors").write_bytes(safetensors_bytes(weights))

    with pytest.raises(UnreadableFile, match=said):
        open_huggingface(mixtral)


def test_more_experts_in_use_than_there_are_is_refused(mixtral):
    change_config(mixtral, num_experts_per_tok=5)

    with pytest.raises(UnreadableFile, match=r"config\.json: num_experts_per_tok is 5 of 4"):
        open_huggingface(mixtral)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob is not set"),
        ("qwen2moe", {"norm_topk_prob": True}, "norm_topk_prob is set"),
        ("qwen2moe", {"decoder_sparse_step": 2}, "leave layers without experts"),
        (
            *("qwen3", {"num_experts": 4, "num_experts_per_tok": 2}),
            r"config\.json: qwen3 with 4 experts is not known",
        ),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}, "not every fourth layer"),
        ("smollm3", {"no_rope_layers": [1, 1]}, "not every fourth layer"),
        ("phi3long", {"partial_rotary_factor": 1.0}, "long_factor has 6 numbers, 8 pairs are rotated"),
        (
            "phi3",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "'linear' is not known; phi3 has longrope",
        ),
    ],
)
def test_models_that_gguf_cannot_describe_are_refused(tmp_path, family, changes, said):
    write_model(tmp_path, family)
    change_config(tmp_path, **changes)

    with pytest.raises(UnknownArchitecture, match=said):
        open_huggingface(tmp_path)


@pytest.mark.parametrize(
    ("family", "field"), [("qwen3moe", "shared_expert_intermediate_size"), ("llama", "num_local_experts")]
)
def test_a_count_of_zero_says_that_there_are_none(tmp_path, family, field):
    write_model(tmp_path, family)
    change_config(tmp_path, **{field: 0})

    assert open_huggingface(tmp_path).tensors


def test_factors_that_granite_does_not_state_are_one(tmp_path):
    write_model(tmp_path, "granite")
    change_config(tmp_path, attention_multiplier=None)

    assert open_huggingface(tmp_path).get("granite.attention.scale") == 1.0


GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "conversions.json").read_text())


def listed(key, value):
    """Return a key with its type and value as they are frozen."""
    kinds = [value.type, *([] if value.item is None else [value.item])]
    plain = float(np.float32(value.value)) if value.type is ValueType.FLOAT32 else value.value
    return [key, " ".join(kind.name for kind in kinds), short(plain)]


@pytest.mark.parametrize("case", sorted(GOLDEN))
def test_files_are_those_of_llama_cpps_converter(tmp_path, case):
    """Metadata one by one, so that a difference is seen, and then all bytes."""
    family, dtype = family_and_type(case)
    write_model(tmp_path / "model", family, dtype)
    source = open_huggingface(tmp_path / "model")

    written = quantize(source, make_plan(source, dtype), tmp_path / "model.gguf", threads=1)

    assert [listed(*pair) for pair in source.metadata.items()] == GOLDEN[case]["metadata"]
    assert written.sha256 == GOLDEN[case]["sha256"]


def test_norms_of_heads_that_are_missing_are_named(tmp_path):
    write_model(tmp_path, "stablelm12b")
    weights = weights_of(config_of("stablelm12b"))
    del weights["model.layers.1.self_attn.k_layernorm.norms.1.weight"]
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(weights))

    with pytest.raises(
        UnreadableFile, match=r"layers\.1\.self_attn\.k_layernorm\.weight lacks number 1 of 2"
    ):
        open_huggingface(tmp_path)


def test_a_longrope_without_its_factors_is_refused(tmp_path):
    write_model(tmp_path, "phi3long")
    change_config(tmp_path, rope_scaling={"type": "longrope"})

    with pytest.raises(UnreadableFile, match=r"config\.json: KeyError: 'long_factor'"):
        open_huggingface(tmp_path)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_that_no_frequency_can_be_divided_by_are_refused(tmp_path, factor):
    write_model(tmp_path, "phi3long")
    factors = {"long_factor": [1.0] * 5 + [factor], "short_factor": [1.0] * 6}
    change_config(tmp_path, rope_scaling={"type": "longrope", **factors})

    with pytest.raises(UnreadableFile, match=r"config\.json: rope_factors_long\.weight would hold numbers"):
        open_huggingface(tmp_path)


@pytest.mark.parametrize(
    ("family", "share", "turned"),
    [("phi3", 3.0, 24), ("phi3", 0.4, 3), ("stablelm", 1.5, 12), ("stablelm", 0.1, 0)],
)
def test_a_part_of_a_head_that_cannot_be_rotated_is_refused(tmp_path, family, share, turned):
    write_model(tmp_path, family)
    change_config(tmp_path, partial_rotary_factor=share)

    with pytest.raises(UnreadableFile, match=rf"config\.json: rope cannot turn {turned} of 8 elements"):
        open_huggingface(tmp_path)


def test_a_base_of_rope_that_stablelms_converter_would_lose_is_kept(tmp_path):
    write_model(tmp_path, "stablelm")
    change_config(tmp_path, rope_theta=50.0)

    assert open_huggingface(tmp_path).get("stablelm.rope.freq_base") == 50.0
