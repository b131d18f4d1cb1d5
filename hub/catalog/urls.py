from __future__ import annotations

from django.urls import path

from hub.catalog import views

app_name = "catalog"
urlpatterns = [
    path("", views.catalog, name="list"),
    path("models/<str:owner>/<str:name>", views.model, name="model"),
    path("models/<str:owner>/<str:name>/quants/<int:quant_id>/errors", views.errors, name="errors"),
]
