"""Addresses. Each app owns its own; this file only says where they hang."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from hub import health

urlpatterns = [
    path("favicon.ico", RedirectView.as_view(url=f"{settings.STATIC_URL}img/favicon.svg"), name="favicon"),
    path("healthz", health.alive, name="healthz"),
    path("readyz", health.ready, name="readyz"),
    path("admin/", admin.site.urls),
    path("accounts/", include("hub.accounts.urls")),
    path("jobs/", include("hub.jobs.urls")),
    path("api/v1/", include("hub.api.urls")),
    path("", include("hub.catalog.urls")),
    path("", include("hub.registry.urls")),
]
