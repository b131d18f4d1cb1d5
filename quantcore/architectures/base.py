"""What a model family is: names, hyperparameters, tensors, and what its forward pass needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from quantcore.architectures.hparams import common_hparams
from quantcore.architectures.pieces import Piece
from quantcore.architectures.scales import Number, Scales, unscaled
from quantcore.architectures.shape import Shape
from quantcore.architectures.windows import Windows
from quantcore.errors import UnknownArchitecture
from quantcore.ggufkv import Value, u32

Config = Mapping[str, Any]
RopeKind = Literal["normal", "neox"]
Gate = Literal["silu", "gelu", "clamped"]
# Of the clamped gate: x / (1 + exp(-CLAMPED_SLOPE * x)) * (y + 1), where x, which stands on the gate, is at
# most the limit, and y, which goes through it, no further from 0.
CLAMPED_SLOPE, CLAMPED_LIMIT = 1.702, 7.0
NormKind = Literal["rms", "layer"]

BLOCK = (
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
)

DENSE = ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")
EXPERTS = ("ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")
SHARED = tuple(f"ffn_{part}_shexp.weight" for part in ("gate_inp", "gate", "up", "down"))


def no_hparams(_config: Config, _name: str) -> dict[str, Value]:
    """Add nothing."""
    return {}


def every_layer(_layer: int) -> bool:
    """Rotate the heads of every layer."""
    return True


@dataclass(frozen=True)
class Architecture:
    """Describe one model family: a decoder of norms, rotary attention and a gated feed-forward part.

    Where norms stand follows from the tensors of a layer: `attn_norm` and `ffn_norm` before the parts,
    `post_attention_norm` and `post_ffw_norm` behind them, `attn_q_norm` and `attn_k_norm` on heads. A layer
    with a norm neither before its feed-forward part nor behind attention gives both the same input. `norm`
    tells RMS norms from layer norms, which subtract the mean and may have a bias.

    `name` is GGUF's `general.architecture`. `hf_classes` maps each Hugging Face class to the values that its
    configuration takes when config.json does not say; a null says nothing, except for the fields in `nulls`.
    `beside` are names of parts beside the text decoder, which are left out. `rope` tells which elements of a
    head rotate together: neighbours ("normal") or the two halves ("neox"). `block` lists the tensors every
    layer must have, after `blk.N.`; `optional` those it may have. `interleaved` names projections whose rows
    Hugging Face keeps in halves and GGUF in neighbours. `states_head_size` says whether the configuration
    always has a head size, which llama.cpp's converter then writes. `common` makes the metadata that stand
    before the file type, `extra_hparams` those after it. `shifted_norms` says that Hugging Face's weights of
    norms lack 1, `space_prefix` that a tokenizer may put a space before all text. `windows` tells which
    layers have a sliding window, None that none has, and `rotates` whether a layer's heads are rotated.
    `scales` finds factors and caps in the metadata and sizes of a model; `gate` is the function on the gate
    of the feed-forward part; `wide_norms` norm queries and keys as a whole, not head by head; `stacked_norms`
    differ by head.

    `fused` matrices hold those named, one below the other. `leading` makes the metadata that stand before all
    but the name. `added_as_stated` families take added tokens of a SentencePiece model for what their files
    say, and do not say whether a text begins with a space.

    In a mixture `experts` stand for the dense feed-forward part: stacks of matrices, a router, and in some
    families a shared expert. Where a file does not say how long an expert is, `splits_length` divides the
    feed-forward length among those that a token uses. `shares_add_up` makes the shares of the chosen experts
    add up to one.

    `feed_norm` is the norm before the feed-forward part. Of a checkpoint, `pieces` tells by the last part of
    a name what a stored tensor holds, and `packings` by which methods it may be quantized.

    `unknown_keys` are of models under the same name that are not described here, if they are not zero.
    """

    name: str
    hf_classes: Mapping[str, Mapping[str, Any]]
    rope: RopeKind
    block: tuple[str, ...] = BLOCK
    optional: tuple[str, ...] = ()
    interleaved: tuple[str, ...] = ()
    states_head_size: bool = True
    nulls: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    common: Callable[[Config, str], dict[str, Value]] = field(default=common_hparams)
    extra_hparams: Callable[[Config, str], dict[str, Value]] = field(default=no_hparams)
    shifted_norms: bool = False
    space_prefix: bool = True
    windows: Windows | None = None
    rotates: Callable[[int], bool] = field(default=every_layer)
    scales: Callable[[Number, Shape], Scales] = field(default=unscaled)
    gate: Gate = "silu"
    wide_norms: bool = False
    stacked_norms: bool = False
    norm: NormKind = "rms"
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    leading: Callable[[Config, str], dict[str, Value]] = field(default=no_hparams)
    added_as_stated: bool = False
    experts: tuple[str, ...] = ()
    shares_add_up: bool = True
    splits_length: bool = False
    feed_norm: str = "ffn_norm"
    pieces: Mapping[str, tuple[Piece, ...]] = field(default_factory=dict)
    packings: tuple[str, ...] = ()
    unknown_keys: tuple[str, ...] = ()

    def parts(self, n_experts: int) -> tuple[str, ...]:
        """Return the tensors that every layer must have; raises `UnknownArchitecture` for a mixture of a
        family that has none.
        """
        if not n_experts:
            return self.block
        if not self.experts:
            raise UnknownArchitecture(f"{self.name} with {n_experts} experts is not known")
        return (*(part for part in self.block if part not in DENSE), *self.experts)

    @property
    def outer(self) -> tuple[str, ...]:
        """Return the tensors that a model must have outside of its layers."""
        biases = ("output_norm.bias",) if self.norm == "layer" else ()
        return ("token_embd.weight", "output_norm.weight", *biases)

    def hparams(self, config: Config, file_type: int) -> dict[str, Value]:
        """Return the `<name>.*` metadata of a complete configuration, in llama.cpp's order and types.

        `general.file_type` stands among them because llama.cpp's converter has it there: files then differ in
        nothing.
        """
        common = self.common(config, self.name) | {"general.file_type": u32(file_type)}
        return common | self.extra_hparams(config, self.name)

    def filled(self, config: Config) -> dict[str, Any]:
        """Return `config` with the values that its class takes where config.json is silent."""
        full = dict(self.hf_classes.get(config["architectures"][0], {}))
        return full | {key: value for key, value in config.items() if value is not None or key in self.nulls}

    def complete(self, config: Config) -> Config:
        """Return `config` with the values of its class, and those that follow from others."""
        full = self.filled(config)
        full.setdefault("num_key_value_heads", full["num_attention_heads"])
        if self.states_head_size:
            full.setdefault("head_dim", head_size(full))
        return full

    def row_order(self, tensor: str, config: Config) -> npt.NDArray[np.int64] | None:
        """Return the Hugging Face row behind each row of the GGUF tensor, or None for the same order."""
        part = tensor.split(".")[-2]
        if part not in self.interleaved:
            return None
        heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
        return interleave(int(heads), head_size(config))


def head_size(config: Config) -> int:
    """Return the length of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def require_plain_heads(config: Config) -> None:
    """Raise `UnknownArchitecture` where heads do not share the width evenly, of which files say nothing in
    families whose converter writes no size of heads.
    """
    plain = config["hidden_size"] // config["num_attention_heads"]
    if head_size(config) != plain:
        raise UnknownArchitecture(
            f"head_dim is {head_size(config)}, and GGUF cannot say another than {plain}"
        )


def interleave(heads: int, size: int) -> npt.NDArray[np.int64]:
    """Return the row order that turns each head from halves (i, i + size/2) into neighbours (2i, 2i + 1)."""
    rows = np.arange(heads * size, dtype=np.int64).reshape(heads, 2, size // 2)  # (heads, half, pairs)
    return rows.swapaxes(1, 2).reshape(-1)  # (heads * size,)


_by_name: dict[str, Architecture] = {}
_by_class: dict[str, Architecture] = {}


def register(architecture: Architecture) -> Architecture:
    """Add a family under its name and its Hugging Face classes; two of one name are a mistake in the code."""
    taken = architecture.name in _by_name or any(name in _by_class for name in architecture.hf_classes)
    if taken:
        raise ValueError(f"architecture {architecture.name} is registered twice")
    _by_name[architecture.name] = architecture
    _by_class.update(dict.fromkeys(architecture.hf_classes, architecture))
    return architecture


def registry() -> Mapping[str, Architecture]:
    """Return the families by GGUF name."""
    return _by_name


def by_name(name: str) -> Architecture:
    """Return the family of a `general.architecture`; raises `UnknownArchitecture` with those there are."""
    found = _by_name.get(name)
    if found is None:
        raise UnknownArchitecture(
            f"no architecture is called {name!r}; there are {', '.join(sorted(_by_name))}"
        )
    return found


def by_class(name: str) -> Architecture:
    """Return the family of a Hugging Face class; raises `UnknownArchitecture` with those there are."""
    found = _by_class.get(name)
    if found is None:
        raise UnknownArchitecture(f"no description of {name}; there are {', '.join(sorted(_by_class))}")
    return found
