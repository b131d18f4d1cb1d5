"""Gather what was heard of the inputs of a layer's matrices: the same bits for any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from quantcore.statistics.tally import Collect, Shared, Tally

Floats = npt.NDArray[np.float32]

# The matrices that share an input, of which expert they are, and the input, float32 `(rows, width)`.
Heard = tuple[tuple[str, ...], int | None, Floats]


class Collector:
    """Tallies of all inputs of a layer, one for each of `experts` where an input is of one of these."""

    def __init__(self, collect: Collect, seed: int, experts: int) -> None:
        self._collect, self._seed, self._experts = collect, seed, experts
        self._tallies: dict[tuple[str, ...], list[Tally]] = {}

    def take(self, heard: Iterable[Heard], pool: Executor) -> None:
        """Add inputs in the order of the text. Threads have tallies, and strips of X'X, to themselves."""
        batches: dict[tuple[tuple[str, ...], int], list[Floats]] = {}
        for names, expert, x in heard:
            batches.setdefault((names, expert or 0), []).append(x)
            if names not in self._tallies:
                count = 1 if expert is None else self._experts
                self._tallies[names] = [self._empty(x.shape[1]) for _ in range(count)]
        work: list[Callable[[], None]] = []
        for (names, expert), inputs in batches.items():
            tally = self._tallies[names][expert]
            work += tally.products(inputs)
            work.append(_ByChannel(tally, inputs))
        _do(work, pool)

    def finish(self, pool: Executor) -> tuple[Shared, ...]:
        """Return what was found; raises `InputError` naming a matrix whose inputs are no numbers."""
        _do(
            [work for them in self._tallies.values() for it in them for work in it.products([], last=True)],
            pool,
        )
        found = tuple(Shared(names, tuple(tallies)) for names, tallies in self._tallies.items())
        for shared in found:
            shared.require_numbers()
        return found

    def _empty(self, width: int) -> Tally:
        return Tally.empty(width, self._collect, self._seed)


class _ByChannel:
    def __init__(self, tally: Tally, inputs: list[Floats]) -> None:
        self._tally, self._inputs = tally, inputs

    def __call__(self) -> None:
        self._tally.by_channel(self._inputs)


def _do(work: list[Callable[[], None]], pool: Executor) -> None:
    for done in [pool.submit(piece) for piece in work]:
        done.result()
