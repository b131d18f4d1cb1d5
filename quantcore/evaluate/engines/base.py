"""The contract of an engine: what it loads, what it lacks here, and what it measures.

Instances register themselves when their module is imported; `quantcore.evaluate.engines` imports every module
of this folder. An engine runs in a process of its own, so that nothing of it is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantcore.evaluate.child import Heard
from quantcore.evaluate.hardware import hardware
from quantcore.evaluate.memory import Memory


@dataclass(frozen=True)
class Asked:
    """What to measure: prompts of `pp` tokens, generations of `tg`, behind each of `depths` tokens.

    The first run of each test warms up and is none of `runs`. `threads` None means one for each core, `limit`
    is in seconds.
    """

    pp: int = 512
    tg: int = 128
    depths: tuple[int, ...] = (0,)
    runs: int = 5
    threads: int | None = None
    seed: int = 1  # of the random prompts: every run of a measurement can be repeated
    limit: float | None = None

    @property
    def n_ctx(self) -> int:
        """Return the tokens that the deepest test needs room for."""
        return max(self.depths) + max(self.pp, self.tg + 1) + 8


@dataclass(frozen=True)
class Sampled:
    """Tokens per second of each run of a test; `why` says why there are none."""

    test: str
    depth: int
    samples: tuple[float, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Found:
    """What an engine measured, and how: its version, what it ran on, its memory, the settings that matter."""

    engine_version: str
    backend: str
    threads: int
    sampled: tuple[Sampled, ...]
    memory: Memory
    flags: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """An engine by the name that people know it by.

    `kinds` are the kinds of model it loads (see `kind_of`), each with the packages that it takes beside the
    engine's own `package`, by the names they are imported by. `cuda` tells that it runs on such cards only.
    """

    name: str
    package: str
    install: str
    kinds: Mapping[str, tuple[str, ...]]
    cuda: bool = False

    def lacking(self, kind: str) -> str:
        """Return why this machine cannot run models of a kind that it loads; nothing if it can."""
        if not installed(self.package):
            return f"{self.name} is not installed ({self.install})"
        missing = [package for package in self.kinds[kind] if not installed(package)]
        if missing:
            return f"{self.name} needs {' and '.join(missing)} for {kind} weights: not installed"
        if self.cuda and not hardware().gpus:
            return f"{self.name} needs a CUDA card, and there is none here"
        return ""

    def trained(self, path: Path) -> int:
        """Return how many tokens in a row a model was trained on; 0 where its files do not say."""
        raise NotImplementedError

    def measure(self, path: Path, asked: Asked, heard: Heard) -> Found:
        """Measure a model that nothing is lacking for, in a process of its own; see `child.converse`."""
        raise NotImplementedError


def installed(package: str) -> bool:
    """Return whether a package could be imported, without importing it."""
    return find_spec(package) is not None


def sampled(results: list[dict[str, Any]]) -> tuple[Sampled, ...]:
    """Return what a child told of its runs."""
    return tuple(
        Sampled(told["test"], told["depth"], tuple(told.get("samples", ())), told.get("why", ""))
        for told in results
    )


_registry: dict[str, Engine] = {}


def register(engine: Engine) -> Engine:
    """Add an engine under its name; two of one name are a mistake in the code."""
    if engine.name in _registry:
        raise ValueError(f"engine {engine.name} is registered twice")
    _registry[engine.name] = engine
    return engine


def registry() -> Mapping[str, Engine]:
    """Return the engines registered so far, by name."""
    return _registry
