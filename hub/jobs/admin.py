"""Jobs change only by the legal steps in `actions`, so here they can be looked at and deleted, not edited."""

from __future__ import annotations

from django.contrib import admin

from hub.catalog.admin import FactsOnly
from hub.jobs.models import Job, JobEvent, Request


class Events(FactsOnly, admin.TabularInline):
    model = JobEvent
    extra = 0
    fields = ("at", "kind", "stage", "text")
    readonly_fields = ("at",)


@admin.register(Job)
class JobAdmin(FactsOnly, admin.ModelAdmin):
    list_display = ("id", "level", "revision", "state", "stage", "attempt", "worker", "created", "finished")
    list_filter = ("state", "stage", "error_kind", "level")
    search_fields = ("id", "level", "revision__model__owner", "revision__model__name", "error")
    list_select_related = ("revision__model",)
    inlines = (Events,)


@admin.register(Request)
class RequestAdmin(FactsOnly, admin.ModelAdmin):
    list_display = ("id", "revision", "user", "created")
    search_fields = ("id", "user__username", "revision__model__name")
    list_select_related = ("revision__model", "user")
