"""`quantcore inspect`: what a model is made of, from headers alone."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from quantcore.cli._options import add_source
from quantcore.cli._terminal import add_json, human_bytes, visible
from quantcore.ggufkv import Value, ValueType
from quantcore.models import open_model
from quantcore.sources.base import Source

SHOWN_ITEMS = 16


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("inspect", help="show metadata and tensors of a model")
    add_source(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def plain(value: Value) -> Any:
    """Return a metadata value for JSON; long lists (vocabularies) are named by their length only."""
    if value.type is ValueType.ARRAY:
        if len(value.value) > SHOWN_ITEMS:
            kind = value.item.name.lower() if value.item is not None else "?"
            return {"array": kind, "length": len(value.value)}
        if value.item is ValueType.ARRAY:
            return [plain(inner) for inner in value.value]
        return [_printable(item) for item in value.value]
    return _printable(value.value)


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value


def describe(source: Source) -> dict[str, Any]:
    """Return the document of `inspect --json`."""
    infos = source.infos
    weights = sum(info.n_elements for info in infos)
    nbytes = sum(info.nbytes for info in infos)
    return {
        "format": source.format,
        "architecture": source.architecture,
        "name": _printable(source.get("general.name", source.path.name)),
        "parameters": weights,
        "file_bytes": sum(file.stat().st_size for file in source.files),
        "bpw": nbytes * 8 / weights if weights else 0.0,
        "metadata": {key: plain(value) for key, value in source.metadata.items()},
        "tensors": [
            {"name": i.name, "shape": list(reversed(i.shape)), "type": i.type, "nbytes": i.nbytes}
            for i in infos
        ],
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    document = describe(open_model(arguments.source))
    if not arguments.json:
        _print(document)
    return document


def _print(document: dict[str, Any]) -> None:
    kinds = Counter(tensor["type"] for tensor in document["tensors"])
    title = visible(f"{document['name']}: {document['architecture']}")
    print(f"{title}, {document['parameters'] / 1e6:,.1f} M parameters")
    print(
        f"{document['format']}, {human_bytes(document['file_bytes'])}, {document['bpw']:.2f} bits per weight"
    )
    print(
        f"{len(document['tensors'])} tensors: {', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}\n"
    )
    for key, value in document["metadata"].items():
        text = visible(f"{key} = {value}")
        print(f"  {text if len(text) <= 110 else text[:107] + '...'}")
    print()
    for tensor in document["tensors"]:
        shape = " x ".join(str(n) for n in tensor["shape"])
        name, size = visible(tensor["name"]), human_bytes(tensor["nbytes"])
        print(f"  {name:<40} {shape:>20} {tensor['type']:<6} {size:>9}")
