"""The only module that may import cupy: picks the array namespace and brings arrays home."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.errors import MissingEngine


def namespace(device: str = "cpu") -> Any:
    """Return the array namespace of `device`: numpy for "cpu", cupy for "cuda".

    Raises `MissingEngine` when cupy or a card is missing.
    """
    if device == "cpu":
        return np
    if device != "cuda":
        raise ValueError(f"device must be 'cpu' or 'cuda', not {device!r}")
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except ImportError as exc:
        raise MissingEngine("CUDA needs cupy: pip install cupy-cuda12x") from exc
    except Exception as exc:
        raise MissingEngine(f"cupy found no usable CUDA device: {exc}") from exc
    return cupy


def to_host(array: Any) -> npt.NDArray[Any]:
    """Return `array` as numpy, copying from the device when it lives there."""
    get = getattr(array, "get", None)
    return np.asarray(get() if callable(get) else array)
