"""Options that several verbs share: the source, the level, and what may be changed about it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Literal

from quantcore.errors import UnknownFormat
from quantcore.ggmltypes import block_and_bytes
from quantcore.imatrix import ImportanceMatrix, open_imatrix
from quantcore.plan import Options
from quantcore.recipes import get_recipe, recipes


def tensor_type(text: str) -> str:
    """Return a tensor type given in any case; argparse turns the error into bad usage."""
    try:
        block_and_bytes(text.upper())
    except UnknownFormat as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text.upper()


def level(text: str) -> str:
    """Return the name of a level given in any case, or by the number of its file type."""
    try:
        return get_recipe(text).name
    except UnknownFormat as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def override(text: str) -> tuple[str, str]:
    """Return the pair of `REGEX=TYPE`."""
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern:
        raise argparse.ArgumentTypeError(f"{text!r} is not REGEX=TYPE")
    try:
        re.compile(pattern)
    except re.error as exc:
        raise argparse.ArgumentTypeError(f"pattern {pattern!r}: {exc}") from None
    return pattern, tensor_type(kind)


def overrides_in(text: str) -> list[tuple[str, str]]:
    """Return the pairs in a file of REGEX=TYPE, set apart by spaces or line ends."""
    try:
        words = Path(text).read_text("utf-8", "surrogateescape").split()
    except OSError as exc:
        raise argparse.ArgumentTypeError(f"{text}: {exc.strerror}") from None
    try:
        return [override(word) for word in words]
    except argparse.ArgumentTypeError as exc:
        raise argparse.ArgumentTypeError(f"{text}: {exc}") from None


def whole_number(text: str) -> int:
    """Return a whole number of one or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def add_source(parser: argparse.ArgumentParser, nargs: Literal["?"] | None = None) -> None:
    parser.add_argument(
        "source",
        metavar="SRC",
        nargs=nargs,
        type=Path,
        help="GGUF file (first part of a split one) or Hugging Face model directory",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where the model runs: the processor (the default), or a CUDA card through cupy",
    )


def _levels() -> str:
    plain = ", ".join(name for name, recipe in recipes().items() if not recipe.needs_imatrix)
    weighted = ", ".join(name for name, recipe in recipes().items() if recipe.needs_imatrix)
    return f"one of {plain}; with an importance matrix also {weighted}"


def add_level(parser: argparse.ArgumentParser) -> None:
    """Add `--to` and the options that change a level."""
    parser.add_argument("--to", type=level, metavar="LEVEL", help=_levels())
    parser.add_argument("--pure", action="store_true", help="give every tensor the level's base type")
    parser.add_argument(
        "--tensor-type",
        action="append",
        default=[],
        type=override,
        metavar="REGEX=TYPE",
        help="type of the tensors whose name the pattern is found in; may be repeated, the first match wins",
    )
    parser.add_argument(
        "--tensor-type-file",
        action="extend",
        dest="tensor_type",
        type=overrides_in,
        metavar="FILE",
        help="file of such pairs, set apart by spaces or line ends",
    )
    parser.add_argument(
        "--output-tensor-type", type=tensor_type, metavar="TYPE", help="type of output.weight"
    )
    parser.add_argument(
        "--token-embedding-type", type=tensor_type, metavar="TYPE", help="type of token_embd.weight"
    )
    parser.add_argument("--leave-output-tensor", action="store_true", help="leave output.weight as it is")
    parser.add_argument(
        "--allow-requantize", action="store_true", help="quantize tensors that are quantized already"
    )
    add_imatrix(parser)


def add_imatrix(parser: argparse.ArgumentParser) -> None:
    """Add `--imatrix` and what of it counts."""
    parser.add_argument(
        "--imatrix",
        metavar="FILE",
        help="importance matrix: what `quantcore imatrix` or llama-imatrix measured of this model",
    )
    weights = parser.add_mutually_exclusive_group()
    for option, verb in (
        ("--include-weights", "use it only for"),
        ("--exclude-weights", "do not use it for"),
    ):
        weights.add_argument(
            option,
            action="append",
            default=[],
            metavar="PART",
            help=f"{verb} tensors whose name contains this; may be repeated",
        )


def imatrix(arguments: argparse.Namespace) -> ImportanceMatrix | None:
    """Return the importance matrix that was given; raises `UnreadableFile` where it is none."""
    if arguments.imatrix is None:
        return None
    found = open_imatrix(arguments.imatrix)
    return found.selected(include=arguments.include_weights, exclude=arguments.exclude_weights)


def options(arguments: argparse.Namespace) -> Options:
    """Return what `add_level` collected. A verb that has no `--dry-run` makes no file anyway."""
    return Options(
        pure=arguments.pure,
        overrides=tuple(arguments.tensor_type),
        output_type=arguments.output_tensor_type,
        embedding_type=arguments.token_embedding_type,
        leave_output=arguments.leave_output_tensor,
        allow_requantize=arguments.allow_requantize,
        imatrix=imatrix(arguments),
        dry_run=getattr(arguments, "dry_run", True),
    )
