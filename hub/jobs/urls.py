from __future__ import annotations

from django.urls import path

from hub.jobs import views

app_name = "jobs"
urlpatterns = [
    path("", views.queue, name="list"),
    path("request/<str:owner>/<str:name>/", views.request_quants, name="request"),
    path("<slug:pk>/", views.job, name="job"),
    path("<slug:pk>/retry/", views.retry, name="retry"),
    path("<slug:pk>/cancel/", views.cancel, name="cancel"),
]
