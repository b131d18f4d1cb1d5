"""All quantization formats: one module per family, found by scanning this folder."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from quantcore.errors import UnknownFormat
from quantcore.formats.base import Format, Packed, registry
from quantcore.formats.storage import quantize_rows, to_float

__all__ = ["Format", "Packed", "formats", "get_format", "quantize_rows", "to_float"]


def formats() -> Mapping[str, Format]:
    """Return every format by name."""
    return registry()


def get_format(name: str) -> Format:
    """Return the format called `name`; raises `UnknownFormat` with the names there are."""
    found = registry().get(name)
    if found is None:
        raise UnknownFormat(f"no format is called {name!r}; there are {', '.join(sorted(registry()))}")
    return found


for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
