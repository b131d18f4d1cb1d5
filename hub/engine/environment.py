"""What makes and measures: the machine, and the versions of all that bytes and figures depend on."""

from __future__ import annotations

import dataclasses
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import quantcore

PACKAGES = ("quanthub", "numpy", "gguf", "tokenizers")


def hardware() -> dict[str, Any]:
    """Describe the machine that measures."""
    return dataclasses.asdict(quantcore.hardware())


def measured_with() -> dict[str, str]:
    """Return what measures, down to the build of the engine's own source."""
    return versions() | {"python": platform.python_version(), "build": quantcore.build()}


def versions() -> dict[str, str]:
    """Return the versions of what makes every byte and every figure; engines that only time add their own."""
    return {name: found for name in PACKAGES if (found := _version(name))}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
