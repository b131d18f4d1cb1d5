"""Gemma 3, what it does with text: Gemma 2 with norms on heads instead of caps on scores.

Five of six layers have a window and a rope base of their own; scaling of positions is for the sixth. Models
that see have their text decoder beside other parts, under names of its own; those parts are left out.
"""

from __future__ import annotations

import math

from quantcore.architectures.base import Architecture, Config, register
from quantcore.architectures.gemma2 import GEMMA2, require_layers, require_usual, score_size
from quantcore.architectures.hparams import rope_parameters
from quantcore.architectures.scales import Number, Scales
from quantcore.architectures.shape import Shape
from quantcore.architectures.windows import Windows
from quantcore.errors import UnknownArchitecture
from quantcore.ggufkv import Value, f32, u32

WINDOWS = Windows(every=6, length=0, base=10000.0)
LAYERS_27B = 62

DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window": 4096,
    "sliding_window_pattern": WINDOWS.every,
    "tie_word_embeddings": True,
}


def cap_and_window(config: Config, name: str) -> dict[str, Value]:
    """Return cap and window, if there are any; raises `UnknownArchitecture` for what GGUF cannot say."""
    require_usual(config, LAYERS_27B)
    if config.get("attn_logit_softcapping"):
        raise UnknownArchitecture(f"attn_logit_softcapping is set, which GGUF cannot say of {name}")
    require_plain_rope(config)
    values: dict[str, Value] = {}
    if config.get("final_logit_softcapping"):
        values[f"{name}.final_logit_softcapping"] = f32(config["final_logit_softcapping"])
    layers = config["num_hidden_layers"]
    types = config.get("layer_types")
    if types is None:
        types = Windows(config["sliding_window_pattern"]).layer_types(layers)
    if list(types) != ["full_attention"] * layers:
        require_layers(types, layers, WINDOWS)
        if not config["sliding_window"]:
            raise UnknownArchitecture("sliding_window is not set, though there are layers that need it")
        values[f"{name}.attention.sliding_window"] = u32(config["sliding_window"])
    return values


def require_plain_rope(config: Config) -> None:
    """Raise `UnknownArchitecture` for scaling of positions that GGUF cannot say of this family."""
    local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    if local.get("rope_type", "default") != "default":
        raise UnknownArchitecture("rope scaling in layers with a window is not known")
    if rope_parameters(config)["rope_type"] == "llama3":
        raise UnknownArchitecture("rope scaling 'llama3' is not known of Gemma")


def scales(number: Number, shape: Shape) -> Scales:
    """Return the cap in the metadata, where 0 stands for none as in llama.cpp, and factors by sizes."""
    size = score_size(shape.embedding, shape.heads, shape.head_size, shape.layers == LAYERS_27B)
    return Scales(
        embedding=math.sqrt(shape.embedding),
        attention=1 / math.sqrt(size),
        logits_cap=number("final_logit_softcapping", 0.0) or None,
    )


GEMMA3 = register(
    Architecture(
        name="gemma3",
        hf_classes={"Gemma3ForCausalLM": DEFAULTS, "Gemma3ForConditionalGeneration": DEFAULTS},
        nulls=("sliding_window",),
        beside=("vision_tower.", "multi_modal_projector."),
        rope="neox",
        block=(*GEMMA2.block, "attn_q_norm.weight", "attn_k_norm.weight"),
        extra_hparams=cap_and_window,
        shifted_norms=True,
        space_prefix=False,
        windows=WINDOWS,
        scales=scales,
        gate="gelu",
    )
)
