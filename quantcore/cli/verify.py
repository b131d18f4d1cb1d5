"""`quantcore verify`: whether two models are the same, and where and how far they differ if not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantcore.cli._options import whole_number
from quantcore.cli._terminal import add_json, progress_bar, visible
from quantcore.cli.inspect import plain
from quantcore.comparison import Comparison, KeyDifference, TensorDifference, compare_models
from quantcore.distance import badness
from quantcore.ggufkv import Value
from quantcore.models import open_model

SHOWN = 10  # tensors and keys that people see; all stand in the document


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "verify", help="compare two models tensor by tensor; exit status 0 if they are the same, 1 if not"
    )
    what = "GGUF file (first part of a split one) or Hugging Face model directory"
    parser.add_argument("a", metavar="A", type=Path, help=what)
    parser.add_argument("b", metavar="B", type=Path, help="the same")
    parser.add_argument(
        "--tensors-only", action="store_true", help="call models the same whose metadata differ"
    )
    parser.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads to use; one for each core if left out"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    a, b = open_model(arguments.a), open_model(arguments.b)
    with progress_bar() as report:
        found = compare_models(a, b, threads=arguments.threads, report=report)
    same = found.tensors_identical if arguments.tensors_only else found.identical
    if not arguments.json:
        _print(found, same=same)
    arguments.status = 0 if same else 1
    return document(found, same=same)


def document(found: Comparison, *, same: bool) -> dict[str, Any]:
    """Return the document of `--json`; shapes in GGUF order, row length first."""
    return {
        "identical": same,
        "tensors_identical": found.tensors_identical,
        "metadata_identical": not found.metadata,
        "tensors": [_tensor(tensor) for tensor in found.tensors],
        "only_in_a": [tensor.name for tensor in found.tensors if tensor.type_b is None],
        "only_in_b": [tensor.name for tensor in found.tensors if tensor.type_a is None],
        "metadata": [_key(key) for key in found.metadata],
    }


def _tensor(tensor: TensorDifference) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "identical": tensor.identical,
        "type_a": tensor.type_a,
        "type_b": tensor.type_b,
        "max_abs": tensor.max_abs,
        "rmse": tensor.rmse,
        "relative": tensor.relative,
        "shape_a": _shape(tensor.shape_a),
        "shape_b": _shape(tensor.shape_b),
    }


def _key(key: KeyDifference) -> dict[str, Any]:
    return {"key": key.key, "a": _value(key.a), "b": _value(key.b), "first_item": key.first_item}


def _shape(shape: tuple[int, ...] | None) -> list[int] | None:
    return None if shape is None else list(reversed(shape))


def _value(value: Value | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"type": value.type.name.lower(), "value": plain(value)}


def _print(found: Comparison, *, same: bool) -> None:
    unlike = [tensor for tensor in found.tensors if not tensor.identical]
    print(
        f"{'identical' if same else 'not identical'}: {len(found.tensors) - len(unlike)} of "
        f"{len(found.tensors)} tensors have the same bytes, {_count(len(found.metadata), 'metadata key')} "
        f"differ{'s' if len(found.metadata) == 1 else ''}"
    )
    for tensor in sorted(unlike, key=lambda tensor: badness(tensor.relative), reverse=True)[:SHOWN]:
        print(f"  {visible(tensor.name):<34} {_words(tensor)}")
    _and_more(len(unlike), "tensor")
    for key in found.metadata[:SHOWN]:
        print(f"  {visible(_two_values(key))[:150]}")
    _and_more(len(found.metadata), "key")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _and_more(number: int, what: str) -> None:
    if number > SHOWN:
        print(f"  and {_count(number - SHOWN, f'more {what}')}")


def _words(tensor: TensorDifference) -> str:
    if tensor.type_a is None or tensor.type_b is None:
        return f"only in {'B' if tensor.type_a is None else 'A'}"
    types = tensor.type_a if tensor.type_a == tensor.type_b else f"{tensor.type_a} and {tensor.type_b}"
    if tensor.shape_a != tensor.shape_b:
        return f"{types}: {_sides(tensor.shape_a)} and {_sides(tensor.shape_b)}"
    if tensor.max_abs is None or tensor.rmse is None:
        return f"{types}: differs, and cannot be decoded to numbers"
    if tensor.max_abs == 0:
        return f"{types}: the same numbers"
    share = "" if tensor.relative is None else f" ({tensor.relative:.2%})"
    return f"{types}: rmse {tensor.rmse:.3g}{share}, at most {tensor.max_abs:.3g}"


def _sides(shape: tuple[int, ...] | None) -> str:
    return " x ".join(str(side) for side in _shape(shape) or [])


def _two_values(key: KeyDifference) -> str:
    a, b = ("nothing" if value is None else repr(plain(value)) for value in (key.a, key.b))
    place = "" if key.first_item is None else f", from item {key.first_item} on"
    return f"{key.key}: {a} and {b}{place}"
