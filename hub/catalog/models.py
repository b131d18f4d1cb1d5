"""Models, their revisions, the quants made of them, and what was measured."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.validators import RegexValidator
from django.db import models
from django.urls import reverse

NAME = RegexValidator(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z", "Letters, digits, '.', '_' and '-' only.")


class Blob(models.Model):
    """Bytes in the store, named by their SHA-256. Where they lie is the business of `hub.blobs` alone."""

    sha256 = models.CharField(max_length=64, primary_key=True)
    size = models.PositiveBigIntegerField()
    created = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.sha256[:12]


class ModelQuerySet(models.QuerySet["Model"]):
    def matching(self, text: str) -> ModelQuerySet:
        """Return the models in which every word of `text` occurs, in name, owner, architecture or summary."""
        found = self
        for word in text.split():
            found = found.filter(
                models.Q(owner__icontains=word)
                | models.Q(name__icontains=word)
                | models.Q(architecture__icontains=word)
                | models.Q(summary__icontains=word)
            )
        return found

    def named(self, model_id: str) -> ModelQuerySet:
        """Return the model called `OWNER/NAME`, if there is one."""
        owner, _, name = model_id.replace("\0", " ").partition("/")
        return self.filter(owner=owner, name=name)


class Model(models.Model):
    """A source model: what quants are made of."""

    owner = models.CharField(max_length=96, validators=[NAME])
    name = models.CharField(max_length=96, validators=[NAME])
    summary = models.TextField(blank=True)
    licence = models.CharField(max_length=96, blank=True)
    architecture = models.CharField(max_length=64, blank=True)
    parameters = models.PositiveBigIntegerField(default=0)
    n_ctx_train = models.PositiveBigIntegerField(default=0)
    created = models.DateTimeField(auto_now_add=True)
    updated = models.DateTimeField(auto_now=True)

    objects = ModelQuerySet.as_manager()

    class Meta:
        ordering = ["-updated", "-pk"]
        constraints = [models.UniqueConstraint(fields=["owner", "name"], name="model_id_is_unique")]

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"

    def get_absolute_url(self) -> str:
        return reverse("catalog:model", args=[self.owner, self.name])

    @property
    def latest_revision(self) -> Revision | None:
        return self.revisions.order_by("-created", "-pk").first()


class Revision(models.Model):
    """One state of a model's files. `commit` is 40 hex digits over the sorted list of paths and hashes."""

    class SourceFormat(models.TextChoices):
        GGUF = "gguf", "GGUF"
        HUGGINGFACE = "huggingface", "Hugging Face"

    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="revisions")
    commit = models.CharField(max_length=40)
    source_format = models.CharField(max_length=16, choices=SourceFormat.choices)
    file_bytes = models.PositiveBigIntegerField()
    bpw = models.FloatField(
        null=True,
        blank=True,
        help_text="Bits per weight: all tensors, as for quants; unknown of old imports.",
    )
    tensor_type = models.CharField(max_length=16, help_text="The commonest type of its tensors, such as F16.")
    metadata = models.JSONField(default=dict, help_text="GGUF metadata, long lists left out.")
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created", "-pk"]
        constraints = [
            models.UniqueConstraint(fields=["model", "commit"], name="commit_is_unique_within_model")
        ]

    def __str__(self) -> str:
        return f"{self.model}@{self.commit[:12]}"


class RevisionFile(models.Model):
    """A file of a revision, by its path in the model's folder."""

    revision = models.ForeignKey(Revision, on_delete=models.CASCADE, related_name="files")
    path = models.CharField(max_length=255)
    blob = models.ForeignKey(Blob, on_delete=models.PROTECT, related_name="+")

    class Meta:
        ordering = ["path"]
        constraints = [
            models.UniqueConstraint(fields=["revision", "path"], name="path_is_unique_within_revision")
        ]

    def __str__(self) -> str:
        return self.path


class Quant(models.Model):
    """A finished, published quant of a revision. It exists only once it is whole, verified and measured."""

    revision = models.ForeignKey(Revision, on_delete=models.CASCADE, related_name="quants")
    level = models.CharField(max_length=32)
    format = models.CharField(max_length=32, help_text="The container: gguf, gptq, ...")
    file_bytes = models.PositiveBigIntegerField()
    bpw = models.FloatField(help_text="Bits per weight: all tensors, scales included.")
    plan = models.JSONField(default=dict, help_text="Per tensor: type, bytes and the reason.")
    recipe_fingerprint = models.CharField(max_length=64)
    made_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="quants"
    )
    made_with = models.JSONField(default=dict, help_text="Versions of the engine and its libraries.")
    not_measured = models.JSONField(
        default=list, blank=True, help_text="A sentence for each figure that could not be had, and why."
    )
    seconds = models.FloatField(default=0)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["file_bytes"]
        constraints = [
            models.UniqueConstraint(
                fields=["revision", "recipe_fingerprint"], name="recipe_is_unique_within_revision"
            )
        ]

    def __str__(self) -> str:
        return f"{self.revision.model} {self.level}"


class QuantFile(models.Model):
    """A file of a quant, by its name."""

    quant = models.ForeignKey(Quant, on_delete=models.CASCADE, related_name="files")
    path = models.CharField(max_length=255)
    blob = models.ForeignKey(Blob, on_delete=models.PROTECT, related_name="+")

    class Meta:
        ordering = ["path"]
        constraints = [models.UniqueConstraint(fields=["quant", "path"], name="path_is_unique_within_quant")]

    def __str__(self) -> str:
        return self.path


class Measurement(models.Model):
    """One measured figure with everything needed to measure it again.

    It belongs to a quant, or to a revision when the full-precision source itself was measured. `method` holds
    the dataset with its hash, n_ctx, chunks, tokens, threads; figures compare only where it is equal.
    """

    class Metric(models.TextChoices):
        PPL = "ppl", "Perplexity"
        PPL_INCREASE = "ppl_increase", "Perplexity increase over the source"
        BPB = "bits_per_byte", "Bits per byte"
        KLD = "kl_divergence", "KL divergence from the source"
        SAME_TOP = "same_top", "Same likeliest token as the source"
        DELTA_P = "rms_delta_p", "RMS change of token probability"
        PP = "pp_tps", "Prompt speed"
        TG = "tg_tps", "Generation speed"
        PP_DEEP = "pp_deep_tps", "Prompt speed deep in the context"
        TG_DEEP = "tg_deep_tps", "Generation speed deep in the context"

    revision = models.ForeignKey(
        Revision, null=True, blank=True, on_delete=models.CASCADE, related_name="measurements"
    )
    quant = models.ForeignKey(
        Quant, null=True, blank=True, on_delete=models.CASCADE, related_name="measurements"
    )
    metric = models.CharField(max_length=32, choices=Metric.choices)
    value = models.FloatField()
    unit = models.CharField(max_length=16, blank=True)
    deviation = models.FloatField(
        null=True, blank=True, help_text="Standard error of a mean (quality), standard deviation (speed)."
    )
    statistics = models.JSONField(
        default=dict,
        help_text="What else is known of the values that the figure is of: percentiles, extremes.",
    )
    method = models.JSONField(default=dict)
    hardware = models.JSONField(default=dict)
    engine = models.JSONField(default=dict)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["metric", "-created"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(revision__isnull=True) ^ models.Q(quant__isnull=True),
                name="measurement_has_one_subject",
            )
        ]

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.6g}"


class TensorErrors(models.Model):
    """How far each tensor of a quant is from its source's, with everything needed to measure it again.

    `columns` has a list for each figure, which `tensors` turns into lines: a table of a thousand tensors says
    the figures' names once.
    """

    quant = models.OneToOneField(Quant, on_delete=models.CASCADE, related_name="tensor_errors")
    relative = models.FloatField(
        null=True, help_text="Of all weights together: ||quant - source|| / ||source||."
    )
    columns = models.JSONField(
        default=dict, help_text="Figure by figure, in the order of the source's tensors."
    )
    method = models.JSONField(default=dict)
    hardware = models.JSONField(default=dict)
    engine = models.JSONField(default=dict)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "tensor errors"

    def __str__(self) -> str:
        return f"errors of {self.quant}"

    @property
    def tensors(self) -> list[dict[str, Any]]:
        """Return a line for each tensor."""
        figures = list(self.columns)
        return [dict(zip(figures, line, strict=True)) for line in zip(*self.columns.values(), strict=True)]
