"""Addresses that other people's clients know."""

from __future__ import annotations

from django.urls import path

from hub.registry import views

app_name = "registry"
urlpatterns = [
    path("<str:owner>/<str:name>/resolve/<str:rev>/<path:path>", views.resolve, name="resolve"),
]
