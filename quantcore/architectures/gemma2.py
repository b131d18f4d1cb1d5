"""Gemma 2: norms before and behind both parts, scores and logits with caps, a window in every other layer.

A GGUF file holds the norms' weights with the 1 that Hugging Face's lack. The output matrix is the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantcore.architectures.base import BLOCK, Architecture, Config, register
from quantcore.architectures.hparams import common_hparams
from quantcore.architectures.scales import Number, Scales
from quantcore.architectures.shape import Shape
from quantcore.architectures.windows import Windows
from quantcore.errors import UnknownArchitecture
from quantcore.ggufkv import Value, f32, u32

NORMS = ("post_attention_norm.weight", "post_ffw_norm.weight")
WINDOWS = Windows(every=2, length=4096)
# llama.cpp tells the size whose heads are not as long as scores mean by its number of layers.
LAYERS_27B = 46
USUAL_BASE = 10000.0


def score_size(embedding: int, heads: int, head_size: int, shares: bool) -> int:
    """Return the length whose root scores are divided by; in the largest models heads `share` embeddings."""
    return embedding // heads if shares else head_size


def in_order(config: Config, name: str) -> dict[str, Value]:
    """Return the metadata of all families in the order of llama.cpp's converter for this one.

    It states no rope base, which is the usual one; another has to be stated.
    """
    values = common_hparams(config, name)
    if values[f"{name}.rope.freq_base"].value == USUAL_BASE:
        del values[f"{name}.rope.freq_base"]
    return {key: values[key] for key in (f"{name}.context_length", f"{name}.embedding_length")} | values


def caps_and_window(config: Config, name: str) -> dict[str, Value]:
    """Return caps and window; raises `UnknownArchitecture` for what GGUF cannot say of this family."""
    require_usual(config, LAYERS_27B)
    require_layers(config.get("layer_types"), config["num_hidden_layers"], WINDOWS)
    if not config["tie_word_embeddings"]:
        raise UnknownArchitecture(f"tie_word_embeddings is not set, which GGUF cannot say of {name}")
    for field in ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window"):
        if not config[field]:
            raise UnknownArchitecture(f"{field} is not set, which GGUF cannot say of {name}")
    return {
        f"{name}.attn_logit_softcapping": f32(config["attn_logit_softcapping"]),
        f"{name}.final_logit_softcapping": f32(config["final_logit_softcapping"]),
        f"{name}.attention.sliding_window": u32(config["sliding_window"]),
    }


def require_usual(config: Config, largest: int) -> None:
    """Raise `UnknownArchitecture` for what no Gemma has; `largest` is the layers of the largest."""
    if config["hidden_activation"] != "gelu_pytorch_tanh":
        raise UnknownArchitecture(
            f"hidden_activation is {config['hidden_activation']!r}, not gelu_pytorch_tanh"
        )
    for field in ("attention_bias", "use_bidirectional_attention"):
        if config.get(field):
            raise UnknownArchitecture(f"{field} is set, which GGUF cannot say of Gemma")
    shares = config["num_hidden_layers"] == largest
    size = score_size(config["hidden_size"], config["num_attention_heads"], config["head_dim"], shares)
    if config["query_pre_attn_scalar"] != size:
        raise UnknownArchitecture(
            f"query_pre_attn_scalar is {config['query_pre_attn_scalar']!r}, llama.cpp takes {size}"
        )


def require_layers(stated: Sequence[str] | None, layers: int, windows: Windows) -> None:
    """Raise `UnknownArchitecture` where other layers have a window than in all models of a family."""
    if stated is not None and list(stated) != windows.layer_types(layers):
        every = windows.every
        raise UnknownArchitecture(
            f"layer_types: layers {every}, {2 * every}, ... alone may be full_attention"
        )


def scales(number: Number, shape: Shape) -> Scales:
    """Return the caps in the metadata, and factors by sizes."""
    size = score_size(shape.embedding, shape.heads, shape.head_size, shape.layers == LAYERS_27B)
    return Scales(
        embedding=math.sqrt(shape.embedding),
        attention=1 / math.sqrt(size),
        attention_cap=number("attn_logit_softcapping", 50.0, positive=True),
        logits_cap=number("final_logit_softcapping", 30.0, positive=True),
    )


GEMMA2 = register(
    Architecture(
        name="gemma2",
        hf_classes={
            "Gemma2ForCausalLM": {
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-6,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "hidden_activation": "gelu_pytorch_tanh",
                "query_pre_attn_scalar": 256,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
                "sliding_window": 4096,
                "tie_word_embeddings": True,
            }
        },
        nulls=("attn_logit_softcapping", "final_logit_softcapping", "sliding_window"),
        rope="neox",
        block=(*BLOCK, *NORMS),
        common=in_order,
        extra_hparams=caps_and_window,
        shifted_norms=True,
        space_prefix=False,
        windows=WINDOWS,
        scales=scales,
        gate="gelu",
    )
)
