"""Model families: one module each, found by scanning this folder.

To add one, write a module with `register(Architecture(...))`; conversion, evaluation and the memory
calculator meet it through this registry.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from quantcore.architectures.base import Architecture, by_class, by_name, registry

__all__ = ["Architecture", "by_class", "by_name", "registry"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
