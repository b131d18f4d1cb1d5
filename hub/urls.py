"""Addresses. Each app owns its own; this file only says where they hang."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from hub import health

urlpatterns = [
    path("healthz", health.alive, name="healthz"),
    path("readyz", health.ready, name="readyz"),
    path("admin/", admin.site.urls),
    path("accounts/", include("hub.accounts.urls")),
    path("jobs/", include("hub.jobs.urls")),
    path("api/v1/", include("hub.api.urls")),
    path("", include("hub.catalog.urls")),
    path("", include("hub.registry.urls")),
]
