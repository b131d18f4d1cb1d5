"""Granite 3, dense: a Llama whose embeddings, residuals, attention and logits are scaled."""

from __future__ import annotations

from quantcore.architectures.base import Architecture, Config, register
from quantcore.architectures.llama import LLAMA, sizes
from quantcore.architectures.scales import Number, Scales
from quantcore.architectures.shape import Shape
from quantcore.ggufkv import Value, f32

# Key after the architecture's name, and the field of config.json.
SCALES = (
    ("attention.scale", "attention_multiplier"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("logit_scale", "logits_scaling"),
)


def stated(config: Config, name: str) -> dict[str, Value]:
    """Return the sizes of a Llama, and the four factors."""
    factors = {f"{name}.{key}": f32(config[field]) for key, field in SCALES if config.get(field)}
    return sizes(config, name) | factors


def scales(number: Number, _shape: Shape) -> Scales:
    """Return the four factors; as in llama.cpp 0 stands for none."""
    return Scales(
        embedding=number("embedding_scale", 0.0) or 1.0,
        residual=number("residual_scale", 0.0) or 1.0,
        attention=number("attention.scale", 0.0) or None,
        logits=1 / (number("logit_scale", 0.0) or 1.0),
    )


GRANITE = register(
    Architecture(
        name="granite",
        hf_classes={
            "GraniteForCausalLM": {
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-6,
                "attention_multiplier": 1.0,
                "embedding_multiplier": 1.0,
                "residual_multiplier": 1.0,
                "logits_scaling": 1.0,
            }
        },
        rope="normal",
        optional=LLAMA.optional,
        interleaved=LLAMA.interleaved,
        states_head_size=False,
        extra_hparams=stated,
        scales=scales,
    )
)
