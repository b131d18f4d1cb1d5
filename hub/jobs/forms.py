"""The form that asks for quants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from django import forms
from django.utils.functional import cached_property

from hub import engine, previews
from hub.catalog.models import Quant, Revision
from hub.jobs.models import Job
from hub.jobs.queries import newest_by_level

FULL_PRECISION = 16
MATRIX = (
    "The hub first measures on a text which columns of the weights count, once for each model; that takes "
    "about as long as measuring perplexity."
)
SHARED = 3  # as many levels with the same warning have it said once, above them all


@dataclass(frozen=True)
class Choice:
    """A level as the dialog offers it: what it will weigh, or why it is not to be had."""

    level: engine.LevelInfo
    chosen: bool
    plan: previews.PlanSummary | None
    refusal: str
    quant: Quant | None
    job: Job | None
    notes: tuple[str, ...] = ()  # what is to be known of it for this model

    @property
    def open(self) -> bool:
        return not (self.refusal or self.quant or self.job)

    @property
    def cause(self) -> str:
        """Return a refusal without the tensor it met first, which differs between levels refused alike."""
        return self.refusal.partition("; ")[2] or self.refusal

    @property
    def place(self) -> tuple[bool, bool, int, int, float]:
        """Return the sorting key: the usual level, others from the safe end, those for few, the refused.

        For few are levels for models that were trained to bear them, and behind these full precision.
        """
        level, n_bytes = self.level, self.plan.file_bytes if self.plan else 0
        kind = 2 if level.bits >= FULL_PRECISION else int(level.special)
        return bool(self.refusal), not level.usual, kind, -n_bytes, -level.bits


@dataclass(frozen=True)
class Group:
    """Choices under a heading of their own, folded away unless `open`; those without a title always show."""

    title: str
    note: str
    choices: list[Choice]
    open: bool = False


class RequestForm(forms.Form):
    """One or more levels of a revision. Those that exist or are under way are shown, and joined if asked."""

    levels = forms.MultipleChoiceField(
        error_messages={
            "required": "Choose at least one level.",
            "invalid_choice": "No level is called “%(value)s”.",
        }
    )

    def __init__(self, data: object, revision: Revision) -> None:
        super().__init__(data)  # type: ignore[arg-type]  # a QueryDict or None
        self.revision = revision
        field = self.fields["levels"]
        field.choices = [(level.name, level.name) for level in engine.levels()]  # type: ignore[attr-defined]

    @cached_property
    def choices(self) -> list[Choice]:
        """Return every level, the usual one first."""
        quants = {quant.level: quant for quant in self.revision.quants.all()}
        jobs = newest_by_level(self.revision)
        asked = self.data.getlist("levels") if hasattr(self.data, "getlist") else []
        found = [
            self._choice(level, level.name in asked, quants.get(level.name), jobs.get(level.name))
            for level in engine.levels()
        ]
        shared = _told_often(found)
        return [
            replace(choice, notes=_notes(choice, shared))
            for choice in sorted(found, key=lambda choice: choice.place)
        ]

    @cached_property
    def groups(self) -> list[Group]:
        """Return the choices that most people make, and others by what they are for; empty ones left out."""
        possible = [choice for choice in self.choices if not choice.refusal]
        exact = [choice for choice in possible if choice.level.bits >= FULL_PRECISION]
        special = [choice for choice in possible if choice.level.special and choice not in exact]
        legacy = [choice for choice in possible if choice.level.legacy]
        weighed = [choice for choice in possible if choice.level.needs_importance]
        others = [*exact, *special, *legacy, *weighed]
        first = [choice for choice in possible if choice not in others]
        refused = [choice for choice in self.choices if choice.refusal]
        precise = "For comparing and converting."
        if self.is_quantized:
            precise = f"Unpacked from {self.revision.tensor_type}: larger, and no more exact than that."
        found = [
            Group("", "", first),
            Group("Smallest, by an importance matrix", MATRIX, weighed),
            Group("Older types", "Superseded, but fast on some processors.", legacy),
            Group("For models trained so", "They ruin models that were not.", special),
            Group("Full precision", precise, exact, open=not first),
            Group("Not possible with this source", self._why_none, refused),
        ]
        return [self._unfolded(group) for group in found if group.choices]

    def _unfolded(self, group: Group) -> Group:
        chosen = any(choice.chosen for choice in group.choices)
        return replace(group, open=True) if chosen else group

    @property
    def _why_none(self) -> str:
        return f"{self.shared_refusal.refusal}." if self.shared_refusal else ""

    @property
    def is_quantized(self) -> bool:
        """Return whether the source is itself a quant."""
        return engine.is_quantized(self.revision.tensor_type)

    @property
    def shared_warnings(self) -> list[str]:
        """Return what is true of many levels, which name it by its number."""
        return _told_often(self.choices)

    @property
    def largest(self) -> int:
        """Return the bytes that fill a bar: those of the largest level that saves any."""
        sizes = [(c.level.bits < FULL_PRECISION, c.plan.file_bytes) for c in self.choices if c.plan]
        return max(sizes, default=(False, 0))[1]

    @property
    def shared_refusal(self) -> Choice | None:
        """Return the first of several levels refused for the same cause, which is then said once for all."""
        causes = Counter(choice.cause for choice in self.choices if choice.refusal)
        return next((c for c in self.choices if c.refusal and causes[c.cause] > 1), None)

    def _choice(self, level: engine.LevelInfo, chosen: bool, quant: Quant | None, job: Job | None) -> Choice:
        try:
            plan, refusal = previews.preview(self.revision, level.name), ""
        except engine.EngineError as exc:
            plan, refusal = None, str(exc)
        return Choice(level, chosen, plan, refusal, quant, job)


def _told_often(choices: Iterable[Choice]) -> list[str]:
    told = Counter(text for choice in choices if choice.plan for text in choice.plan.warnings)
    return [text for text, count in told.items() if count >= SHARED]


def _notes(choice: Choice, shared: list[str]) -> tuple[str, ...]:
    if choice.plan is None:
        return ()
    same = [f"The same tensors as {choice.plan.same_as}."] if choice.plan.same_as else []
    if choice.level.weighed and not choice.level.needs_importance and choice.plan.weighed:
        same.append("Made with an importance matrix.")
    if choice.plan.unchanged:
        same = ["A copy: the source has these types already."]
    numbered = (
        f"Note {shared.index(text) + 1}." if text in shared else text for text in choice.plan.warnings
    )
    return (*same, *numbered)
