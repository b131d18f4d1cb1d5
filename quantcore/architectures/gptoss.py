"""gpt-oss: a mixture whose attention has sinks and, in every other layer, a window; published in MXFP4.

Three things of its Hugging Face class have no keys in GGUF, and are refused where they are others than these:
which layers have the window, and the two constants of the experts' gate.
"""

from __future__ import annotations

from quantcore.architectures.base import (
    CLAMPED_LIMIT,
    CLAMPED_SLOPE,
    DENSE,
    EXPERTS,
    Architecture,
    Config,
    register,
)
from quantcore.architectures.pieces import Piece
from quantcore.architectures.windows import Windows
from quantcore.errors import UnknownArchitecture
from quantcore.ggufkv import Value, u32

WINDOWS = Windows(every=2)
NORMS = ("attn_norm.weight", "post_attention_norm.weight")
ATTENTION = tuple(f"attn_{part}.{kind}" for part in ("q", "k", "v", "output") for kind in ("weight", "bias"))
EXPERT_BIASES = tuple(part.replace(".weight", ".bias") for part in EXPERTS)
# Gate and up are one stack, whose outputs belong to one and the other by turns.
PIECES = {
    "gate_up_proj": (
        Piece("gate_proj.weight", 0, 2, inputs_first=True),
        Piece("up_proj.weight", 1, 2, inputs_first=True),
    ),
    "gate_up_proj_bias": (Piece("gate_proj.bias", 0, 2), Piece("up_proj.bias", 1, 2)),
    "down_proj": (Piece("down_proj.weight", inputs_first=True),),
    "down_proj_bias": (Piece("down_proj.bias"),),
    "sinks": (Piece("sinks.weight"),),
}


def sizes(config: Config, name: str) -> dict[str, Value]:
    """Return window and length of experts; raises `UnknownArchitecture` for what GGUF cannot say."""
    layers, window = config["num_hidden_layers"], config.get("sliding_window")
    kinds = WINDOWS.layer_types(layers)
    if list(config.get("layer_types") or kinds) != kinds:
        raise UnknownArchitecture("layer_types are not with a window and without by turns")
    if not window:
        raise UnknownArchitecture("sliding_window is not set, which GGUF cannot say of gpt-oss")
    if not (config.get("rope_parameters") or config.get("rope_scaling")):
        raise UnknownArchitecture("does not say how positions are scaled, in rope_parameters or rope_scaling")
    for field, known in (("swiglu_alpha", CLAMPED_SLOPE), ("swiglu_limit", CLAMPED_LIMIT)):
        if config[field] != known:
            raise UnknownArchitecture(f"{field} is {config[field]}, and GGUF cannot say another than {known}")
    return {
        f"{name}.attention.sliding_window": u32(window),
        f"{name}.expert_feed_forward_length": u32(config["intermediate_size"]),
    }


GPT_OSS = register(
    Architecture(
        name="gpt-oss",
        hf_classes={
            "GptOssForCausalLM": {
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "rope_theta": 150000.0,
                "num_key_value_heads": 8,
                "head_dim": 64,
                "num_local_experts": 128,
                "num_experts_per_tok": 4,
                "sliding_window": 128,
                "swiglu_alpha": CLAMPED_SLOPE,
                "swiglu_limit": CLAMPED_LIMIT,
            }
        },
        rope="neox",
        block=(*NORMS, *ATTENTION, "attn_sinks.weight", *DENSE),
        # By its name it would stand behind attention, and by the model's code before the experts.
        feed_norm="post_attention_norm",
        extra_hparams=sizes,
        experts=(*EXPERTS, *EXPERT_BIASES),
        # A softmax over the logits of the chosen experts is the same.
        shares_add_up=True,
        gate="clamped",
        windows=WINDOWS,
        packings=("mxfp4",),
        pieces=PIECES,
    )
)
