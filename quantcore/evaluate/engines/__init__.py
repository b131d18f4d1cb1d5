"""Engines that run models, one module each, found by scanning this folder.

To add one, write a module with `register(...)` of an `Engine`, and its process in `evaluate/children`; the
command line and the hub meet it through this registry.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from quantcore.evaluate.engines.base import Asked, Engine, Found, registry

__all__ = ["Asked", "Engine", "Found", "registry"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
