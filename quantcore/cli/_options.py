"""Options that several verbs share: the source, the level, and what may be changed about it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from quantcore.errors import UnknownFormat
from quantcore.ggmltypes import block_and_bytes
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
    """Return the name of a level given in any case."""
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


def threads(text: str) -> int:
    """Return a number of threads, one or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SRC",
        type=Path,
        help="GGUF file (first part of a split one) or Hugging Face model directory",
    )


def add_level(parser: argparse.ArgumentParser) -> None:
    """Add `--to` and the options that change a level."""
    parser.add_argument(
        "--to", required=True, type=level, metavar="LEVEL", help=f"one of {', '.join(recipes())}"
    )
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
        "--output-tensor-type", type=tensor_type, metavar="TYPE", help="type of output.weight"
    )
    parser.add_argument(
        "--token-embedding-type", type=tensor_type, metavar="TYPE", help="type of token_embd.weight"
    )
    parser.add_argument(
        "--allow-requantize", action="store_true", help="quantize tensors that are quantized already"
    )


def options(arguments: argparse.Namespace) -> Options:
    """Return what `add_level` collected."""
    return Options(
        pure=arguments.pure,
        overrides=tuple(arguments.tensor_type),
        output_type=arguments.output_tensor_type,
        embedding_type=arguments.token_embedding_type,
        allow_requantize=arguments.allow_requantize,
    )
