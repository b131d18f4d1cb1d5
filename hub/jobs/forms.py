"""The form that asks for quants."""

from __future__ import annotations

from dataclasses import dataclass

from django import forms

from hub import engine
from hub.catalog.models import Quant, Revision
from hub.jobs.models import Job
from hub.jobs.queries import newest_by_level


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

    def choices(self) -> list[Choice]:
        """Return every level, largest file first: whoever is undecided reads from the safe end."""
        quants = {quant.level: quant for quant in self.revision.quants.all()}
        jobs = newest_by_level(self.revision)
        asked = self.data.getlist("levels") if hasattr(self.data, "getlist") else []
        found = [
            self._choice(level, level.name in asked, quants.get(level.name), jobs.get(level.name))
            for level in engine.levels()
        ]
        return sorted(found, key=lambda c: (c.plan.file_bytes if c.plan else 0, c.level.bits), reverse=True)

    def _choice(self, level: engine.LevelInfo, chosen: bool, quant: Quant | None, job: Job | None) -> Choice:
        try:
            plan, refusal = engine.preview(self.revision, level.name), ""
        except engine.EngineError as exc:
            plan, refusal = None, str(exc)
        return Choice(level, chosen, plan, refusal, quant, job)
