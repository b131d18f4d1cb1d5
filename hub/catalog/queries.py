"""What the catalog's pages show, read in a fixed number of queries whatever the number of rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

from django.db.models import Prefetch, QuerySet
from django.shortcuts import get_object_or_404

from hub.catalog.models import (
    Measurement,
    Model,
    ModelQuerySet,
    Quant,
    QuantFile,
    Revision,
    RevisionFile,
    TensorErrors,
)

Metric = Measurement.Metric
RUINED = 20.0  # percent of perplexity that a quant may add and still be recommended
FAR = 10
# What of a method is each figure's own where one run gave several.
OF_ONE = frozenset({"baseline", "baseline_commit", "test", "depth"})
LEAST = 0.05  # increases in perplexity that are next to nothing set no scale


@dataclass(frozen=True)
class Figures:
    """The newest measurement of each metric, or None where there is none."""

    perplexity: Measurement | None = None
    increase: Measurement | None = None
    prompt: Measurement | None = None
    generation: Measurement | None = None
    divergence: Measurement | None = None
    same_top: Measurement | None = None
    bits_per_byte: Measurement | None = None
    prompt_deep: Measurement | None = None
    generation_deep: Measurement | None = None
    delta_p: Measurement | None = None

    @property
    def known(self) -> list[Measurement]:
        quality = (self.perplexity, self.bits_per_byte, self.increase)
        closeness = (self.divergence, self.same_top, self.delta_p)
        speeds = (self.prompt, self.generation, self.prompt_deep, self.generation_deep)
        found = (*quality, *closeness, *speeds)
        return [measurement for measurement in found if measurement]

    @property
    def ways(self) -> list[Way]:
        """Return the measurements by how they were made; those made alike are explained once."""
        alike: list[list[Measurement]] = []
        for measurement in self.known:
            group = next((g for g in alike if _conditions(g[0]) == _conditions(measurement)), None)
            if group is None:
                alike.append([measurement])
            else:
                group.append(measurement)
        return [Way(tuple(group)) for group in alike]

    @property
    def memory(self) -> dict[str, object] | None:
        """Return what the engine that was timed said it allocated."""
        measured = self.generation_deep or self.generation
        return measured.method.get("memory") if measured else None

    @property
    def where(self) -> str:
        """Return the machine that measured, as one short phrase."""
        hardware = self.known[-1].hardware if self.known else {}
        cores = hardware.get("cores")
        parts = [hardware.get("cpu"), f"{cores} cores" if cores else "", *hardware.get("gpus", ())]
        return ", ".join(str(part) for part in parts if part)

    @property
    def engines(self) -> str:
        """Return what measured, with versions: the hub, and engines that only some figures come from."""
        found = [measurement.engine for measurement in self.known if measurement.engine]
        shared = [name for name in found[0] if all(name in engine for engine in found)] if found else []
        named = {k: v for engine in found for k, v in engine.items() if k in shared[:1] or k not in shared}
        return " and ".join(f"{name} {version}" for name, version in named.items())


def _conditions(measurement: Measurement) -> tuple[object, ...]:
    """Return what figures share when one run gave them; which of its tests they are is no condition."""
    method = {key: value for key, value in measurement.method.items() if key not in OF_ONE}
    return method, measurement.hardware, measurement.engine


@dataclass(frozen=True)
class Way:
    """One way of measuring, and the figures that were got by it."""

    measurements: tuple[Measurement, ...]

    @property
    def title(self) -> str:
        names = [measurement.get_metric_display() for measurement in self.measurements]
        return ", ".join([names[0], *(_inside(name) for name in names[1:])])

    @property
    def newest(self) -> Measurement:
        return self.measurements[-1]

    @property
    def method(self) -> dict[str, object]:
        """Return the method of all; where they differ, each value in turn. Our own keys are left out."""
        found: dict[str, object] = {}
        for measurement in self.measurements:
            for key, value in measurement.method.items():
                differs = key in found and found[key] != value
                found[key] = f"{found[key]}, {value}" if differs else value
        for key in ("protocol_key", "depth"):  # a test that is behind a depth ends in it
            found.pop(key, None)
        return found


def _inside(name: str) -> str:
    """Return a name as it stands inside a sentence; abbreviations keep their capitals."""
    return name if name[:2].isupper() else name[:1].lower() + name[1:]


@dataclass(frozen=True)
class QuantRow:
    """A quant with its file and figures, as the model page and the job page both show it."""

    quant: Quant
    figures: Figures
    source: Figures
    file: QuantFile | None
    widest: float = 0.0

    @property
    def increase_percent(self) -> float | None:
        """Return the increase relative to the source's perplexity, in percent."""
        increase, perplexity = self.figures.increase, self.source.perplexity
        if increase is None or perplexity is None or not perplexity.value:
            return None
        return increase.value if increase.unit == "%" else 100 * increase.value / perplexity.value

    @property
    def whisker(self) -> Whisker | None:
        """Return where its increase lies beside the others'."""
        increase = self.figures.increase
        return Whisker.over(increase, self.widest) if increase and self.widest else None


@dataclass(frozen=True)
class Whisker:
    """Where an increase and its error lie on a scale shared by all rows, in percent of its width.

    `beyond` tells that the scale ends before it.
    """

    zero: float
    low: float
    value: float
    high: float
    beyond: bool = False

    @classmethod
    def over(cls, increase: Measurement, widest: float) -> Whisker:
        """Place it; the scale runs from a tenth below nothing, as noise may fall below the source."""

        def place(value: float) -> float:
            return round(min(98.0, max(2.0, 12 + 84 * value / widest)), 2)

        error = increase.deviation or 0.0
        value = increase.value
        return cls(*(place(0), place(value - error), place(value), place(value + error)), value > widest)


@dataclass(frozen=True)
class ModelCard:
    """A model of the list: its newest revision, the quants of that, and the best that was measured."""

    model: Model
    revision: Revision | None
    rows: list[QuantRow]
    source: Figures

    @property
    def lowest_increase(self) -> QuantRow | None:
        """Return the quant that loses least; of those that are equal within their errors the smallest."""
        measured = [(row, *_ends(row.figures.increase)) for row in self.rows if row.figures.increase]
        bound = min((high for _, _, high in measured), default=0.0)
        equal = [row for row, low, _ in measured if low <= bound]
        return min(equal, key=lambda row: row.quant.file_bytes, default=None)

    @property
    def fastest(self) -> QuantRow | None:
        """Return the quant that generates fastest, of those that are not ruined."""
        return max(
            (row for row in self.rows if row.figures.generation and (row.increase_percent or 0) < RUINED),
            key=lambda row: row.figures.generation.value if row.figures.generation else 0,
            default=None,
        )


def _ends(increase: Measurement) -> tuple[float, float]:
    error = increase.deviation or 0.0
    return increase.value - error, increase.value + error


def figures_of(measurements: Iterable[Measurement]) -> Figures:
    """Pick the newest of each metric; they arrive newest first."""
    newest: dict[str, Measurement] = {}
    for measurement in measurements:
        newest.setdefault(measurement.metric, measurement)
    return Figures(
        newest.get(Metric.PPL),
        newest.get(Metric.PPL_INCREASE),
        newest.get(Metric.PP),
        newest.get(Metric.TG),
        newest.get(Metric.KLD),
        newest.get(Metric.SAME_TOP),
        newest.get(Metric.BPB),
        newest.get(Metric.PP_DEEP),
        newest.get(Metric.TG_DEEP),
        newest.get(Metric.DELTA_P),
    )


def bits_per_weight(revision: Revision) -> float | None:
    """Return what a weight of the source takes, counted as for quants: tensors only, no vocabulary."""
    return revision.bpw


def rows_of(revision: Revision) -> list[QuantRow]:
    """Return the quants of a revision, smallest first, on one scale. Wants `with_figures` first."""
    source = figures_of(revision.measurements.all())
    found = [(quant, figures_of(quant.measurements.all())) for quant in revision.quants.all()]
    widest = _scale([f.increase.value + (f.increase.deviation or 0) for _, f in found if f.increase])
    return [QuantRow(quant, figures, source, _main_file(quant), widest) for quant, figures in found]


def _scale(ends: list[float]) -> float:
    """Return where the scale of increases ends: one level that ruins a model must not flatten all others.

    What ends more than `FAR` times as far as the one before it is beyond the scale, and all that follow.
    """
    widest = 0.0
    for end in sorted(ends):
        if widest > LEAST and end > FAR * widest:
            break
        widest = max(widest, end)
    return widest


def row_of(quant: Quant) -> QuantRow:
    """Return one quant as its model's page shows it."""
    revision = with_figures(Revision.objects.filter(pk=quant.revision_id)).get()
    return next(row for row in rows_of(revision) if row.quant.pk == quant.pk)


def _main_file(quant: Quant) -> QuantFile | None:
    return max(quant.files.all(), key=lambda file: file.blob.size, default=None)


def with_figures(revisions: QuerySet[Revision]) -> QuerySet[Revision]:
    """Load everything that rows of quants show."""
    measured = Measurement.objects.order_by("metric", "-created", "-pk")
    files = QuantFile.objects.select_related("blob")
    quants = (
        Quant.objects.select_related("made_by", "tensor_errors")
        .defer("tensor_errors__columns")  # only their own page shows them
        .prefetch_related(Prefetch("measurements", measured), Prefetch("files", files))
    )
    return revisions.select_related("model").prefetch_related(
        Prefetch("measurements", measured), Prefetch("quants", quants)
    )


def newest_revisions(models: Iterable[Model]) -> dict[int, Revision]:
    """Return the newest revision of each model, with figures."""
    newest = (
        Revision.objects.filter(model__in=list(models))
        .order_by("model_id", "created", "pk")
        .values_list("model_id", "pk")
    )
    wanted = dict(newest)  # the last of each model wins
    found = with_figures(Revision.objects.filter(pk__in=wanted.values()))
    return {revision.model_id: revision for revision in found}


def cards(models: Iterable[Model]) -> list[ModelCard]:
    """Return models as the list shows them."""
    shown = list(models)
    revisions = newest_revisions(shown)
    return [_card(model, revisions.get(model.pk)) for model in shown]


def _card(model: Model, revision: Revision | None) -> ModelCard:
    if revision is None:
        return ModelCard(model, None, [], Figures())
    return ModelCard(model, revision, rows_of(revision), figures_of(revision.measurements.all()))


def search(text: str) -> ModelQuerySet:
    """Return the models that match every word, those that changed last first."""
    return Model.objects.matching(text)


def revision_or_404(owner: str, name: str, commit: str = "") -> Revision:
    """Return a model's newest revision, or the one whose commit begins with `commit`."""
    files = RevisionFile.objects.select_related("blob")
    revisions = with_figures(Revision.objects.filter(model__owner=owner, model__name=name))
    if commit:
        revisions = revisions.filter(commit__startswith=commit)
    newest = revisions.order_by("-created", "-pk").prefetch_related(Prefetch("files", files)).first()
    return newest or get_object_or_404(revisions)


def errors_or_404(quant_id: int, owner: str | None = None, name: str | None = None) -> TensorErrors:
    """Return the errors of a quant's tensors, of a quant of that model where one is named."""
    found = TensorErrors.objects.select_related("quant__revision__model").defer("quant__plan")
    if owner is not None:
        found = found.filter(quant__revision__model__owner=owner, quant__revision__model__name=name)
    # By the quant's own key: `quant_id` would be compared with numbers that no database holds.
    return get_object_or_404(found, quant__pk=quant_id)


def worst_first(errors: TensorErrors) -> list[dict[str, Any]]:
    """Return the lines of a quant's tensors by relative error, those of which none can be told before all."""

    def badness(line: dict[str, Any]) -> float:
        return inf if line["relative"] is None else float(line["relative"])

    return sorted(errors.tensors, key=badness, reverse=True)
