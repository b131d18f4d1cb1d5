"""SmolLM3: a Llama that rotates no heads in every fourth layer."""

from __future__ import annotations

from quantcore.architectures.base import Architecture, Config, register
from quantcore.architectures.llama import LLAMA, sizes
from quantcore.errors import UnknownArchitecture
from quantcore.ggufkv import Value

EVERY = 4  # GGUF has no key for it


def rotates(layer: int) -> bool:
    """Return whether a layer has rotary positions."""
    return (layer + 1) % EVERY != 0


def checked_sizes(config: Config, name: str) -> dict[str, Value]:
    """Return the sizes of a Llama; raises `UnknownArchitecture` for other layers without positions."""
    layers, stated = config["num_hidden_layers"], config.get("no_rope_layers")
    if stated is None:
        every = config.get("no_rope_layer_interval") or EVERY
        stated = [(n + 1) % every != 0 for n in range(layers)]
    if [bool(it) for it in stated[:layers]] != [rotates(n) for n in range(layers)]:
        raise UnknownArchitecture("no_rope_layers are not every fourth layer, which is all that GGUF can say")
    if config.get("use_sliding_window"):
        raise UnknownArchitecture("use_sliding_window is set, which GGUF cannot say of smollm3")
    return sizes(config, name)


SMOLLM3 = register(
    Architecture(
        name="smollm3",
        hf_classes={
            "SmolLM3ForCausalLM": {
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "num_key_value_heads": 4,
            }
        },
        rope="normal",
        optional=LLAMA.optional,
        interleaved=LLAMA.interleaved,
        states_head_size=False,
        extra_hparams=checked_sizes,
        rotates=rotates,
    )
)
