"""What tells one model from another: a hash of its hyperparameters and of every byte of its tensors."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quantcore.cores import usable_threads
from quantcore.sources.base import Source
from quantcore.tensors import Tensor

_PIECE = 1 << 24  # bytes read in one go


def source_digest(source: Source, threads: int | None = None) -> str:
    """Return a SHA-256 of what a model computes: not of its vocabulary, its description, or its file.

    All tensors are read once, several at a time.
    """
    whole = hashlib.sha256()
    for key in sorted(source.metadata):
        if key == "general.architecture" or key.startswith(f"{source.architecture}."):
            whole.update(f"{key}={source.get(key)!r}\n".encode("utf-8", "surrogateescape"))
    tensors = sorted(source.tensors, key=lambda tensor: tensor.name)
    with ThreadPoolExecutor(usable_threads(threads)) as pool:
        for digest in pool.map(_digest, tensors):
            whole.update(digest)
    return whole.hexdigest()


def _digest(tensor: Tensor) -> bytes:
    info = tensor.info
    found = hashlib.sha256(repr((info.name, info.shape, info.type)).encode("utf-8", "surrogateescape"))
    step = max(1, _PIECE * info.n_rows // max(1, info.nbytes))
    for first in range(0, info.n_rows, step):
        rows = tensor.read_rows(first, min(first + step, info.n_rows))
        found.update(np.ascontiguousarray(rows).data)
    return found.digest()
