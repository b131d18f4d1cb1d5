"""The Celery application. The database is the truth about jobs: a lost message costs seconds, never a job."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hub.settings")

app = Celery("hub", include=["hub.jobs.tasks"])
# Celery's own options are the CELERY_ rows at the end of hub/settings.py.
app.config_from_object("django.conf:settings", namespace="CELERY")
