"""What the engine and the hub exchange: errors, frozen figures, and how progress is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import quantcore

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    # What the hub passes along, reading only what these say of themselves.
    Source = quantcore.Source
    Plan = quantcore.Plan
    Importance = quantcore.ImportanceMatrix
    Losses = npt.NDArray[np.float64]

N_CTX = 512  # tokens of a chunk that is measured

Kind = Literal["refused", "retry", "fault"]
Tell = Callable[[dict[str, Any]], None]
SpeedOf = Literal["pp", "tg", "pp_deep", "tg_deep"]


class EngineError(Exception):
    """The engine could not do it. `kind` says who can mend it."""

    kind: Kind = "fault"


class Refused(EngineError):
    """What was given cannot be used; the user can mend it."""

    kind = "refused"


class Useless(Refused):
    """What a model predicts is no number, or next to none: it must be damaged."""


class WorthRetry(EngineError):
    """The machine lacked something; the same may succeed later."""

    kind = "retry"


class NoEngine(EngineError):
    """An optional engine is not installed."""

    kind = "refused"


@dataclass(frozen=True)
class LevelInfo:
    """A level as the pages show it. `bits` is what its base type costs per weight, scales included.

    `usual` marks the one to offer first, `special` those for models that were trained with such weights,
    `legacy` those that better ones superseded. `weighed` ones are made with an importance matrix where one
    can be measured, and some are noise without (`needs_importance`).
    """

    name: str
    title: str
    summary: str
    family: str
    bits: float
    usual: bool = False
    special: bool = False
    legacy: bool = False
    weighed: bool = False
    needs_importance: bool = False


@dataclass(frozen=True)
class Inspection:
    """What a model's headers say."""

    source_format: Literal["gguf", "huggingface"]
    architecture: str
    name: str
    parameters: int
    n_ctx_train: int
    file_bytes: int
    bpw: float
    tensor_type: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A quantized file that lies whole on the disk."""

    path: Path
    file_bytes: int
    sha256: str
    seconds: float


@dataclass(frozen=True)
class Figure:
    """A mean with its deviation, and what else is known of the values it is of, such as percentiles."""

    value: float
    deviation: float | None
    statistics: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Quality:
    """A perplexity, the bits for each byte, the loss of each scored token, and how it was measured."""

    perplexity: Figure
    bits_per_byte: Figure
    losses: Losses
    method: dict[str, Any]


@dataclass(frozen=True)
class Closeness:
    """How near a quant's predictions are to its source's.

    Nats for each token, percent of tokens, and in percent the root mean square of what changed in the
    probability of the token that came.
    """

    divergence: Figure
    delta_p: Figure
    same_top: Figure
    method: dict[str, Any]


@dataclass(frozen=True)
class TensorErrors:
    """How far each tensor of a quant is from its source's, and all weights together (`relative`).

    `columns` has a list for each figure, all in the order of the source's tensors; None stands for what
    cannot be told. Shapes have the row length first, as in plans.
    """

    columns: dict[str, list[Any]]
    relative: float | None
    method: dict[str, Any]


@dataclass(frozen=True)
class Speed:
    """Tokens per second, how they were measured, and by what.

    `others` is the share of the processors, 0 to 1, that other programs used meanwhile, if that is known.
    """

    figure: Figure
    method: dict[str, Any]
    engine: dict[str, Any]
    others: float | None = None


@dataclass(frozen=True)
class Speeds:
    """The speeds that could be measured, and a sentence for each that could not."""

    of: Mapping[SpeedOf, Speed]
    missed: tuple[str, ...] = ()

    @property
    def others(self) -> float:
        """Return the share of the processors that other programs used meanwhile, as far as it is known."""
        return max((speed.others or 0.0) for speed in self.of.values())


@contextmanager
def translated() -> Iterator[None]:
    """Turn quantcore's errors into the hub's; any other exception passes and is our fault."""
    try:
        yield
    except quantcore.errors.MissingEngine as exc:
        raise NoEngine(str(exc)) from exc
    except quantcore.errors.UselessPredictions as exc:
        raise Useless(str(exc)) from exc
    except quantcore.errors.InputError as exc:
        raise Refused(str(exc)) from exc
    except quantcore.errors.QuantcoreError as exc:
        raise (WorthRetry if exc.retryable else EngineError)(str(exc)) from exc


def reporter(tell: Tell) -> Callable[[Any], None]:
    """Return what turns the engine's progress into the hub's."""
    return lambda progress: tell(dataclasses.asdict(progress))
