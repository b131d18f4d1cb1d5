"""What a family's description promises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantcore.architectures import by_class, by_name, registry
from quantcore.architectures.base import Architecture, interleave, register
from quantcore.architectures.hparams import llama3_factors, rope_factors
from quantcore.errors import UnknownArchitecture
from tests.quantcore.convert.families import LLAMA3_ROPE, config_of


def test_a_class_leads_to_the_family_and_a_stranger_to_the_list():
    assert by_class("MistralForCausalLM") is by_name("llama")

    with pytest.raises(
        UnknownArchitecture,
        match=r"MambaForCausalLM; there are .*Granite.*Llama.*Qwen3",
    ):
        by_class("MambaForCausalLM")
    with pytest.raises(UnknownArchitecture, match=r"'mamba'; there are .*granite, llama, .*qwen3"):
        by_name("mamba")


def test_two_families_of_one_name_are_a_mistake():
    with pytest.raises(ValueError, match="registered twice"):
        register(Architecture(name="llama", hf_classes={}, rope="normal"))


@pytest.mark.parametrize("name", sorted(registry()))
def test_tensors_of_a_family_have_names_in_gguf(name):
    assert all(part.rpartition(".")[2] in ("weight", "bias") for part in by_name(name).block)


def test_interleaving_puts_the_halves_of_a_head_side_by_side():
    assert interleave(heads=2, size=4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_only_llama_reorders_rows():
    config = config_of("llama")

    assert by_name("llama").row_order("blk.0.attn_k.weight", config).shape == (16,)
    assert by_name("llama").row_order("blk.0.attn_v.weight", config) is None
    assert by_name("qwen2").row_order("blk.0.attn_q.weight", config) is None


def test_what_config_leaves_out_comes_from_the_class():
    bare = {
        "architectures": ["MistralForCausalLM"],
        "num_attention_heads": 16,
        "hidden_size": 64,
        "head_dim": None,
    }

    config = by_name("llama").complete(bare)

    assert (config["num_key_value_heads"], config["head_dim"]) == (8, 4)


def hparams_with(rope):
    config = by_name("llama").complete(config_of("llama") | rope)
    return {key: value.value for key, value in by_name("llama").hparams(config, 1).items()}


def test_old_and_new_ways_to_state_rope_give_the_same_metadata():
    old = {"rope_parameters": None, "rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 4}}
    new = {"rope_parameters": {"rope_type": "linear", "rope_theta": 7.0, "factor": 4}}

    assert hparams_with(old) == hparams_with(new)
    assert hparams_with(new)["llama.rope.scaling.type"] == "linear"


def test_yarn_keeps_its_details():
    rope = {"rope_type": "yarn", "rope_theta": 7.0, "factor": 4.0, "beta_fast": 30.0, "attention_factor": 1.5}

    values = hparams_with({"rope_parameters": rope})

    assert values["llama.rope.scaling.original_context_length"] == 64
    assert values["llama.rope.scaling.yarn_beta_fast"] == 30.0
    assert values["llama.rope.scaling.yarn_attn_factor"] == 1.5


def test_both_ways_to_state_a_longrope_give_the_same_metadata():
    family = by_name("phi3")
    old = config_of("phi3long")
    moved = {"rope_scaling", "partial_rotary_factor", "rope_theta", "original_max_position_embeddings"}
    scaling = {key: value for key, value in old["rope_scaling"].items() if key != "type"}
    scaling |= {key: old[key] for key in moved - {"rope_scaling"}} | {"rope_type": "longrope"}
    new = {key: value for key, value in old.items() if key not in moved} | {"rope_parameters": scaling}

    one, other = family.complete(old), family.complete(new)

    assert family.hparams(one, 1) == family.hparams(other, 1)
    assert family.leading(one, "phi3") == family.leading(other, "phi3")
    assert rope_factors(one, 12).keys() == rope_factors(other, 12).keys()


@pytest.mark.parametrize("name", ["phi3", "stablelm"])
def test_heads_of_a_size_that_no_file_could_state_are_refused(name):
    config = dict(by_name(name).complete(config_of(name))) | {"head_dim": 16}

    with pytest.raises(UnknownArchitecture, match="head_dim is 16, and GGUF cannot say another than 8"):
        by_name(name).hparams(config, 1)


def test_the_strength_of_a_longrope_follows_from_how_far_it_stretches_unless_it_is_stated():
    family = by_name("phi3")
    config = family.complete(config_of("phi3long"))
    stated = dict(config) | {"rope_scaling": config["rope_scaling"] | {"attention_factor": 1.5}}

    key = "phi3.rope.scaling.attn_factor"
    assert family.leading(config, "phi3")[key].value == math.sqrt(1 + math.log(4) / math.log(16))
    assert family.leading(stated, "phi3")[key].value == 1.5


def test_unknown_rope_scaling_is_refused_by_name():
    with pytest.raises(UnknownArchitecture, match="'longrope' is not known"):
        hparams_with({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}})


def test_llama3_blends_middling_frequencies_and_slows_the_slowest_by_the_factor():
    factors = llama3_factors(config_of("llama"), 8)

    wavelengths = [2 * math.pi * LLAMA3_ROPE["rope_theta"] ** (i / 4) for i in range(4)]
    assert 4 < wavelengths[0] < 8 < wavelengths[1]
    assert 1 < factors[0] < 8
    assert factors[1:].tolist() == [8, 8, 8]
    assert factors.dtype == np.float32
