"""Where the API hangs below its prefix."""

from __future__ import annotations

from django.urls import path

from hub.api.views import api, nothing_here

urlpatterns = [path("", api.urls), path("<path:rest>", nothing_here)]
