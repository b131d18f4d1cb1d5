"""Only what describes a model may be edited. Bytes, hashes and figures are facts; they can be looked at."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import Model as DjangoModel
from django.http import HttpRequest

from hub.catalog.models import (
    Blob,
    Measurement,
    Model,
    Quant,
    QuantFile,
    Revision,
    RevisionFile,
    TensorErrors,
)


class FactsOnly:
    """Look, but do not add or change."""

    def has_add_permission(self, request: HttpRequest, obj: DjangoModel | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: DjangoModel | None = None) -> bool:
        return False


class RevisionFiles(FactsOnly, admin.TabularInline):
    model = RevisionFile
    extra = 0


class QuantFiles(FactsOnly, admin.TabularInline):
    model = QuantFile
    extra = 0


class Measurements(FactsOnly, admin.TabularInline):
    model = Measurement
    extra = 0
    fields = ("metric", "value", "deviation", "unit", "created")
    readonly_fields = ("created",)


@admin.register(Model)
class ModelAdmin(admin.ModelAdmin):
    list_display = ("__str__", "architecture", "parameters", "licence", "updated")
    list_filter = ("architecture", "licence")
    search_fields = ("owner", "name", "summary")
    # The name is part of addresses that other people's tools keep.
    readonly_fields = ("owner", "name", "architecture", "parameters", "n_ctx_train", "created", "updated")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False


@admin.register(Revision)
class RevisionAdmin(FactsOnly, admin.ModelAdmin):
    list_display = ("__str__", "source_format", "tensor_type", "file_bytes", "created")
    list_filter = ("source_format", "tensor_type")
    search_fields = ("model__owner", "model__name", "commit")
    list_select_related = ("model",)
    inlines = (RevisionFiles, Measurements)


@admin.register(Quant)
class QuantAdmin(FactsOnly, admin.ModelAdmin):
    list_display = ("__str__", "format", "file_bytes", "bpw", "made_by", "created")
    list_filter = ("level", "format")
    search_fields = ("revision__model__owner", "revision__model__name", "level", "files__blob__sha256")
    list_select_related = ("revision__model", "made_by")
    inlines = (QuantFiles, Measurements)


@admin.register(Measurement)
class MeasurementAdmin(FactsOnly, admin.ModelAdmin):
    list_display = ("metric", "value", "deviation", "unit", "quant", "revision", "created")
    list_filter = ("metric",)
    search_fields = ("quant__level", "quant__revision__model__name", "revision__model__name")
    list_select_related = ("quant__revision__model", "revision__model")


@admin.register(TensorErrors)
class TensorErrorsAdmin(FactsOnly, admin.ModelAdmin):
    list_display = ("__str__", "relative", "created")
    search_fields = ("quant__level", "quant__revision__model__name")
    list_select_related = ("quant__revision__model",)


@admin.register(Blob)
class BlobAdmin(FactsOnly, admin.ModelAdmin):
    """Blobs are deleted by the store, which knows what still refers to them; not here."""

    list_display = ("sha256", "size", "created")
    search_fields = ("sha256",)

    def has_delete_permission(self, request: HttpRequest, obj: Blob | None = None) -> bool:
        return False
