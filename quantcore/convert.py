"""See a model directory of Hugging Face as if it were a GGUF file.

Nothing is copied: metadata are built from the directory's JSON files, tensors keep their stored type and are
read row by row when somebody asks. Whoever writes the file chooses the types.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from quantcore.architectures import Architecture, by_class
from quantcore.architectures.base import Config, head_size
from quantcore.architectures.hparams import n_experts, rope_factors
from quantcore.architectures.shape import Shape, same_shape
from quantcore.errors import InputError, UnknownArchitecture, UnreadableFile, UnsupportedTensor
from quantcore.ggufkv import QUANTIZATION_VERSION, Value, ValueType, encode, string, u32
from quantcore.sources.base import Source
from quantcore.sources.jsonfiles import read_object
from quantcore.sources.mxfp4 import METHOD, PACKED, pack
from quantcore.sources.pieces import Stored, outputs
from quantcore.sources.safetensors import STORAGE, StoredTensor, open_directory
from quantcore.sources.shifted import plus_one
from quantcore.sources.stacked import stack
from quantcore.tensors import RowReader, Tensor, TensorInfo
from quantcore.vocabulary import tokenizer_metadata, without_space_prefix
from quantcore.writerkeys import captured

_EXPERT = re.compile(r"(.*\.experts)\.(\d{1,6})\.(.+)")
_HEAD = re.compile(r"(.*\.([qk])_layernorm)\.norms\.(\d{1,6})\.(.+)")
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "MXFP4": 38}  # of general.file_type

# Buffers that old checkpoints carry along; the forward pass computes them.
BUFFERS = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")

COUNTS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
MAX_COUNT = 2**31 - 1
OPTIONAL_COUNTS = (*("num_key_value_heads", "head_dim", "max_position_embeddings"),)
# Of mixtures; 0 says that there are none.
EXPERT_COUNTS = (
    *("num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size"),
    "shared_expert_intermediate_size",
)


def open_huggingface(directory: Path) -> Source:
    """Return a Hugging Face directory (config.json, safetensors, tokenizer) as a virtual GGUF.

    Raises `UnknownArchitecture` for families that are not described, `UnreadableFile` naming the file that is
    missing or broken, `UnsupportedTensor` for weights that are not floating point.
    """
    directory = Path(directory)
    stated = _load_config(directory)
    architecture = by_class(stated["architectures"][0])
    config = architecture.complete(stated)
    stored, files = open_directory(directory)
    named = _named(directory, architecture, config, stored)
    _check_shapes(directory, architecture, config, named)
    # Only now are all sizes those of tensors that exist: what is made of them stays in bounds.
    factors = _check_sound(directory, architecture, config)
    tensors = (*factors, *(_tensor(architecture, config, name, stored) for name, stored in named.items()))
    metadata = _metadata(directory, architecture, config, tensors)
    return Source(directory, "huggingface", metadata, tensors, (directory / "config.json", *files))


def _load_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    config = read_object(path)
    classes = config.get("architectures")
    if not isinstance(classes, list) or not classes or not isinstance(classes[0], str):
        raise UnreadableFile(f"{path}: does not name its class in 'architectures'")
    try:
        by_class(classes[0])  # an unknown class is a better answer than a field that other families lack
    except UnknownArchitecture as exc:
        raise UnknownArchitecture(f"{path}: architectures: {exc}") from exc
    if isinstance(config.get("text_config"), dict):  # of a model that does more than read and write
        config |= config["text_config"] | {"architectures": classes}
    quantization = config.get("quantization_config")
    known = by_class(classes[0]).packings
    if quantization and not (isinstance(quantization, dict) and quantization.get("quant_method") in known):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise InputError(
            f"{path}: the weights are already quantized ({method}); start from the original model"
        )
    filled = by_class(classes[0]).filled(config)
    stated = [field for field in (*OPTIONAL_COUNTS, *EXPERT_COUNTS) if config.get(field) is not None]
    for field in (*COUNTS, *stated):
        value = filled.get(field)
        least = 0 if field in EXPERT_COUNTS else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UnreadableFile(f"{path}: {field} must be a positive number, not {reprlib.repr(value)}")
        if value > MAX_COUNT:
            raise UnreadableFile(f"{path}: {field} is {reprlib.repr(value)}, more than any model has")
    return config


def _check_sound(directory: Path, architecture: Architecture, config: Config) -> tuple[Tensor, ...]:
    """Refuse a configuration with values of the wrong kind, by making and encoding what follows from it.

    Return the tensor of rope factors, if there is one.
    """
    path = directory / "config.json"
    try:
        stated = architecture.leading(config, architecture.name) | architecture.hparams(config, 0)
        for key, value in stated.items():
            encode(key, value)
        _require_usable(stated, architecture.name, head_size(config))
        return _rope_factors(config)
    except UnknownArchitecture as exc:
        raise UnknownArchitecture(f"{path}: {exc}") from exc
    except InputError as exc:
        raise UnreadableFile(f"{path}: {exc}") from exc
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as exc:
        raise UnreadableFile(f"{path}: {type(exc).__name__}: {exc}") from exc


def _require_usable(stated: Mapping[str, Value], name: str, size: int) -> None:
    """Raise `InputError` for numbers that no model can be run with; heads have `size` elements."""
    for key, value in stated.items():
        if value.type is not ValueType.FLOAT32:
            continue
        above_zero = key.endswith(("freq_base", "freq_base_swa"))
        if not math.isfinite(value.value) or (above_zero and value.value <= 0):
            raise InputError(f"{key} would be {value.value}")
    turned = stated.get(f"{name}.rope.dimension_count")
    if turned is not None and (turned.value % 2 or not 0 < turned.value <= size):
        raise InputError(f"rope cannot turn {turned.value} of {size} elements of a head")


def _named(
    directory: Path, architecture: Architecture, config: Config, stored: Mapping[str, StoredTensor]
) -> dict[str, Stored]:
    """Return the tensors that a GGUF file holds by the names they have there."""
    layers = config["num_hidden_layers"]
    if layers > len(stored):  # a table of names for layers that nobody has could fill the memory
        raise UnreadableFile(
            f"{directory / 'config.json'}: num_hidden_layers is {layers}, "
            f"the weights are {len(stored)} tensors"
        )
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture.name], layers)
    named: dict[str, Stored] = {}
    for stored_name, tensor in _whole(architecture, stored, config).items():
        hf_name = stored_name.replace("language_model.", "")
        if any(part in hf_name for part in architecture.beside):
            continue
        if hf_name.endswith(BUFFERS) or (hf_name == "lm_head.weight" and config.get("tie_word_embeddings")):
            continue
        name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UnsupportedTensor(f"{tensor.path}: {architecture.name} has no tensor called {hf_name}")
        if name in named:
            raise UnreadableFile(f"{tensor.path}: {hf_name} and {named[name].name} are both {name}")
        if tensor.dtype not in (*STORAGE, PACKED):
            raise UnsupportedTensor(
                f"{tensor.path}: {hf_name} is stored as {tensor.dtype}; weights must be F32, F16 or BF16"
            )
        named[name] = tensor
    return named


def _whole(
    architecture: Architecture, stored: Mapping[str, StoredTensor], config: Config
) -> dict[str, Stored]:
    """Return the tensors that stored ones are or hold, by the names that GGUF's tables know."""
    packed: Mapping[str, Stored] = {}
    if METHOD in architecture.packings:
        packed, stored = pack(stored)
    found: dict[str, Stored] = {}
    # llama.cpp's converter writes what is packed before all else.
    for name, tensor in (*packed.items(), *_stacked(stored, config).items()):
        for own, part in _pieces(architecture, name, tensor).items():
            if own in found:
                raise UnreadableFile(
                    f"{tensor.path}: {tensor.name} is there twice, packed and as plain numbers"
                )
            found[own] = part
    return found


def _pieces(architecture: Architecture, name: str, tensor: Stored) -> dict[str, Stored]:
    """Return what a stored tensor holds, by the names that GGUF's tables know."""
    outer, _, last = name.rpartition(".")
    pieces = architecture.pieces.get(last)
    if pieces is None:
        return {name: tensor}
    return {
        f"{outer}.{piece.name}": outputs(tensor, piece.first, piece.step, inputs_first=piece.inputs_first)
        for piece in pieces
    }


def _stacked(stored: Mapping[str, StoredTensor], config: Config) -> dict[str, Stored]:
    """Return tensors by name, those that GGUF stacks as one under the name that its tables know."""
    found: dict[str, Stored] = {}
    stacks: dict[tuple[str, int], dict[int, StoredTensor]] = {}
    for name, tensor in stored.items():
        place = _place(name, config)
        if place is None:
            found[name] = tensor
            continue
        whole, number, count = place
        stacks.setdefault((whole, count), {})[number] = tensor
        found.pop(whole, None)  # it stands where its last part stands, as llama.cpp's converter has it
        found[whole] = tensor
    return found | {name: stack(name, parts, count) for (name, count), parts in stacks.items()}


def _place(name: str, config: Config) -> tuple[str, int, int] | None:
    """Return which stack a tensor belongs to, its number there, and how many the stack has.

    Experts of a layer are stacked, and the norms of heads where each has its own.
    """
    match, experts = _EXPERT.fullmatch(name), n_experts(config)
    if match is not None and experts:
        return f"{match[1]}.{match[3]}", int(match[2]), experts
    match = _HEAD.fullmatch(name)
    if match is None:
        return None
    heads = config["num_attention_heads" if match[2] == "q" else "num_key_value_heads"]
    return f"{match[1]}.{match[4]}", int(match[3]), heads


def _check_shapes(
    directory: Path, architecture: Architecture, config: Config, named: Mapping[str, Stored]
) -> None:
    """Refuse weights that lack a tensor or have one of another shape than the configuration means."""
    shape = Shape(
        layers=config["num_hidden_layers"],
        embedding=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_size=head_size(config),
        vocab=config["vocab_size"],
        wide_norms=architecture.wide_norms,
        stacked_norms=architecture.stacked_norms,
        fused=architecture.fused,
        experts=n_experts(config),
        experts_used=config.get("num_experts_per_tok") or 0,
        expert_feed_forward=config.get("moe_intermediate_size") or config["intermediate_size"],
        shared_feed_forward=config.get("shared_expert_intermediate_size") or 0,
    )
    if shape.head_size % 2:
        raise UnreadableFile(f"{directory / 'config.json'}: heads of {shape.head_size} cannot be rotated")
    if shape.experts_used > shape.experts:
        raise UnreadableFile(
            f"{directory / 'config.json'}: num_experts_per_tok is {shape.experts_used} of {shape.experts}"
        )
    try:
        parts = architecture.parts(shape.experts)
    except UnknownArchitecture as exc:
        raise UnknownArchitecture(f"{directory / 'config.json'}: {exc}") from exc
    layers = (f"blk.{n}.{part}" for n in range(shape.layers) for part in parts)
    for name in (*architecture.outer, *layers):
        if name not in named:
            raise UnreadableFile(f"{directory}: the weights lack {name}, which {architecture.name} needs")
    for name, tensor in named.items():
        meant = shape.of(name)
        if not same_shape(tensor.shape, meant):
            raise UnreadableFile(
                f"{tensor.path}: {tensor.name} is {list(tensor.shape)}, config.json means {list(meant)}"
            )


def _tensor(architecture: Architecture, config: Config, name: str, stored: Stored) -> Tensor:
    info = TensorInfo(name, stored.shape, stored.dtype, stored.nbytes)
    if architecture.shifted_norms and name.endswith("_norm.weight"):
        return plus_one(info, stored.read_rows)
    order = architecture.row_order(name, config)
    if order is None:
        return Tensor(info, stored.read_rows)
    if len(info.shape) == 1:
        return Tensor(info, lambda start, stop: stored.read_rows(start, stop)[:, order])
    return Tensor(info, gathered(stored.read_rows, order))


def gathered(read_rows: RowReader, order: npt.NDArray[np.int64]) -> RowReader:
    """Return a reader whose row i is row `order[i]` of `read_rows`.

    A slab is taken from the smallest run of stored rows that holds it: rows move within their head only, so
    that the run is at most two heads longer than the slab.
    """

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        wanted = order[start:stop]
        if not len(wanted):
            return read_rows(start, stop)
        first, last = int(wanted.min()), int(wanted.max())
        return read_rows(first, last + 1)[wanted - first]

    return read


def _rope_factors(config: Config) -> tuple[Tensor, ...]:
    """Return the tensors that rope scaling becomes, if the model has some that needs them.

    Raises `InputError` naming one that frequencies cannot be divided by.
    """
    with np.errstate(all="ignore"):
        found = rope_factors(config, head_size(config))
    for name, factors in found.items():
        if not (np.isfinite(factors) & (factors > 0)).all():
            raise InputError(f"{name} would hold numbers that are not positive")
    return tuple(_vector(name, factors) for name, factors in found.items())


def _vector(name: str, values: npt.NDArray[np.float32]) -> Tensor:
    rows = values.reshape(1, -1)  # (1, values)
    info = TensorInfo(name, values.shape, "F32", values.nbytes)
    return Tensor(info, lambda start, stop: rows[start:stop].copy())


def _metadata(
    directory: Path, architecture: Architecture, config: Config, tensors: tuple[Tensor, ...]
) -> dict[str, Value]:
    stored = next((t.info.type for t in tensors if len(t.info.shape) > 1), "F16")
    tokenizer = tokenizer_metadata(directory, config["vocab_size"], architecture.added_as_stated)
    metadata = {
        "general.architecture": string(architecture.name),
        **architecture.leading(config, architecture.name),
        "general.type": string("model"),
        **_general(directory, tensors, n_experts(config)),
        **architecture.hparams(config, FILE_TYPES[stored]),
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        **(tokenizer if architecture.space_prefix else without_space_prefix(tokenizer)),
    }
    for key, value in metadata.items():
        try:
            encode(key, value)
        except InputError as exc:
            raise UnreadableFile(f"{directory}: {exc}") from exc
    return metadata


def _general(directory: Path, tensors: tuple[Tensor, ...], experts: int) -> dict[str, Value]:
    """Return name, licence, size and the like, from the model card and the directory's name."""
    directory = directory.resolve()
    parameters = sum(tensor.info.n_elements for tensor in tensors)
    # Biases of experts count as shared, as llama.cpp's converter has it.
    stacks = (tensor.info for tensor in tensors if "_exps." in tensor.name and len(tensor.info.shape) > 2)
    of_experts = sum(info.n_elements for info in stacks)

    def fill(writer: gguf.GGUFWriter) -> None:
        card = gguf.Metadata.load(None, directory, None, parameters)
        card.name = card.name or directory.name
        card.size_label = card.size_label or gguf.size_label(
            parameters, parameters - of_experts, of_experts // max(1, experts), experts
        )
        card.set_gguf_meta_model(writer)

    try:
        return captured(fill)
    except Exception:  # noqa: BLE001 - a model card is free text by strangers; a bad one must not stop the model
        return {"general.name": string(directory.name)}


def native_level(source: Source) -> str:
    """Return the level that loses least without growing: BF16 for BF16 weights, else F16.

    The first matrix that is not packed decides; what config.json calls its dtype is often wrong.
    """
    first = next((info.type for info in source.infos if len(info.shape) > 1 and info.type != PACKED), "F16")
    return "BF16" if first == "BF16" else "F16"
