"""The form that asks for quants."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from django import forms
from django.utils.functional import cached_property

from hub import engine
from hub.catalog.models import Quant, Revision
from hub.jobs.models import Job
from hub.jobs.queries import newest_by_level

FULL_PRECISION = 16


@dataclass(frozen=True)
class Choice:
    """A level as the dialog offers it: what it will weigh, or why it is not to be had."""

    level: engine.LevelInfo
    chosen: bool
    plan: engine.PlanSummary | None
    refusal: str
    quant: Quant | None
    job: Job | None

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


class LevelsField(forms.MultipleChoiceField):
    """Levels by name; one that exists and cannot be made here is refused with the reason."""

    def validate(self, value: list[str]) -> None:
        unavailable = engine.unavailable_levels()
        for level in value:
            if level in unavailable:
                raise forms.ValidationError(unavailable[level])
        super().validate(value)


class RequestForm(forms.Form):
    """One or more levels of a revision. Those that exist or are under way are shown, and joined if asked."""

    levels = LevelsField(
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
        return sorted(found, key=lambda choice: choice.place)

    @property
    def largest(self) -> int:
        """Return the bytes that fill a bar."""
        return max((choice.plan.file_bytes for choice in self.choices if choice.plan), default=0)

    @property
    def shared_refusal(self) -> Choice | None:
        """Return the first of several levels refused for the same cause, which is then said once for all."""
        causes = Counter(choice.cause for choice in self.choices if choice.refusal)
        return next((c for c in self.choices if c.refusal and causes[c.cause] > 1), None)

    def _choice(self, level: engine.LevelInfo, chosen: bool, quant: Quant | None, job: Job | None) -> Choice:
        try:
            plan, refusal = engine.preview(self.revision, level.name), ""
        except engine.EngineError as exc:
            plan, refusal = None, str(exc)
        return Choice(level, chosen, plan, refusal, quant, job)
