"""Options on what goes into a file and how many files there are: layers, metadata, parts."""

from __future__ import annotations

import argparse
import re

from quantcore.cli._options import whole_number
from quantcore.errors import InputError
from quantcore.ggufkv import Value
from quantcore.plan import Plan
from quantcore.sources.base import Source
from quantcore.sources.views import in_its_parts, overridden, override_value, parse_layers, pruned
from quantcore.splitting import divided

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([KMGT]?)(I?)B?", re.ASCII)


def size(text: str) -> int:
    """Return the bytes of a size such as 2G or 2GiB; argparse turns the error into bad usage."""
    match = _SIZE.fullmatch(text.strip().upper())
    unit = (1024 if match[3] else 1000) ** _POWERS[match[2]] if match else 0
    count = round(float(match[1]) * unit) if match else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500M or 2G")
    return count


def layers(text: str) -> frozenset[int]:
    try:
        return parse_layers(text)
    except InputError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def key_value(text: str) -> tuple[str, Value]:
    """Return the pair of `KEY=TYPE:VALUE`."""
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    if not (key and equals and colon):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=TYPE:VALUE")
    try:
        return key, override_value(kind, value)
    except InputError as exc:
        raise argparse.ArgumentTypeError(f"{key}: {exc}") from None


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the options on layers, metadata and parts."""
    parser.add_argument(
        "--prune-layers",
        type=layers,
        default=frozenset(),
        metavar="LIST",
        help="leave these layers out, such as 2,5-7; those behind them move up",
    )
    parser.add_argument(
        "--override-kv",
        action="append",
        default=[],
        type=key_value,
        metavar="KEY=TYPE:VALUE",
        help="set a metadata key; TYPE is int, float, bool or str; may be repeated",
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--keep-split", action="store_true", help="make the same parts as the source has, NAME-00001-of-0000N"
    )
    parts.add_argument(
        "--split-max-size",
        type=size,
        metavar="SIZE",
        help="make parts of at most this much data each, such as 2G; a larger tensor gets its own",
    )
    parts.add_argument(
        "--split-max-tensors",
        type=whole_number,
        metavar="N",
        help="make parts of at most N tensors each",
    )


def seen(source: Source, arguments: argparse.Namespace) -> Source:
    """Return the source as the options of `add_files` want it."""
    overrides: dict[str, Value] = {}
    for key, value in arguments.override_kv:
        overrides.pop(key, None)  # the last word on a key also decides where it stands
        overrides[key] = value
    source = pruned(overridden(source, overrides), arguments.prune_layers)
    return in_its_parts(source) if arguments.keep_split else source


def in_parts(plan: Plan, source: Source, arguments: argparse.Namespace) -> Plan:
    """Return the plan in the parts that the options of `add_files` want."""
    return divided(plan, source, max_bytes=arguments.split_max_size, max_tensors=arguments.split_max_tensors)
