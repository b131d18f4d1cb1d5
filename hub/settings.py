"""Django settings. What an operator may set is a row of SETTINGS; the rest is fixed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Setting:
    """One environment variable: its name, its default, and a sentence for the operator's page."""

    name: str
    default: str
    help: str


SETTINGS = (
    Setting(
        "QUANTHUB_DATA", str(BASE_DIR / "data"), "Folder of the database, the files and the broker's log."
    ),
    Setting("DATABASE_URL", "", "Database address; empty means SQLite in the data folder."),
    Setting("REDIS_URL", "", "Broker address; empty means that `make up` starts its own Valkey."),
    Setting("PORT", "8000", "Port of the web server."),
    Setting("QUANTHUB_HOST", "127.0.0.1", "Address the web server listens on."),
    Setting(
        "QUANTHUB_ALLOWED_HOSTS", "", "Host names to answer to, comma separated; empty: local names only."
    ),
    Setting(
        "QUANTHUB_SECRET_KEY",
        "",
        "Key that signs sessions; empty means one is made and kept in the data folder.",
    ),
    Setting("QUANTHUB_DEBUG", "0", "1 shows tracebacks in the browser; never on a shared machine."),
    Setting(
        "QUANTHUB_ADMIN_PASSWORD",
        "",
        "Password of the first admin; empty means one is generated and printed once.",
    ),
    Setting("QUANTHUB_THREADS", "0", "Threads a job may use; 0 means one for each core."),
    Setting("QUANTHUB_BACKEND", "auto", "What makes quants: auto, numpy, jit (compiled kernels) or cuda."),
    Setting("QUANTHUB_EVAL_CHUNKS", "60", "Chunks of 512 tokens that perplexity is measured over."),
    Setting(
        "QUANTHUB_BASES_GB",
        "8",
        "Disk for what KL divergence is measured against; a quarter for one model.",
    ),
    Setting("QUANTHUB_CALIBRATION_CHUNKS", "100", "Chunks of 512 tokens that importance is measured over."),
    Setting("QUANTHUB_ENGINE_SECONDS", "3600", "Seconds after which an engine that is timed is stopped."),
    Setting("QUANTHUB_LEASE_SECONDS", "30", "Silence after which a worker counts as lost."),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def env(name: str) -> str:
    """Return a setting as text; `NAME_FILE` may name a file that holds it, for secrets."""
    path = os.environ.get(f"{name}_FILE")
    if path:
        try:
            return Path(path).read_text().strip()
        except OSError as exc:
            raise ImproperlyConfigured(f"{name}_FILE: cannot read {path}: {exc.strerror}") from exc
    return os.environ.get(name) or _BY_NAME[name].default


def env_int(name: str, *, minimum: int = 0, maximum: int = 1_000_000) -> int:
    """Return a setting as a whole number, refusing anything else."""
    text = env(name)
    if not (text.isdecimal() and len(text) < 9 and minimum <= int(text) <= maximum):
        raise ImproperlyConfigured(
            f"{name} must be a whole number between {minimum} and {maximum}, not {text!r}"
        )
    return int(text)


def env_bool(name: str) -> bool:
    """Return a setting as truth: 1 or 0, nothing else."""
    text = env(name)
    if text not in {"0", "1"}:
        raise ImproperlyConfigured(f"{name} must be 0 or 1, not {text!r}")
    return text == "1"


def env_choice(name: str, choices: tuple[str, ...]) -> str:
    """Return a setting that is one of a few words."""
    text = env(name)
    if text not in choices:
        raise ImproperlyConfigured(f"{name} must be one of {', '.join(choices)}, not {text!r}")
    return text


DATA_DIR = Path(env("QUANTHUB_DATA")).expanduser().resolve()
PORT = env_int("PORT", minimum=1, maximum=65535)
HOST = env("QUANTHUB_HOST")
DEBUG = env_bool("QUANTHUB_DEBUG")
BACKEND = env_choice("QUANTHUB_BACKEND", ("auto", "numpy", "jit", "cuda"))
JOB_THREADS = env_int("QUANTHUB_THREADS") or os.cpu_count() or 1
EVAL_CHUNKS = env_int("QUANTHUB_EVAL_CHUNKS", minimum=1)
BASES_BYTES = env_int("QUANTHUB_BASES_GB", minimum=1) * 10**9
BASE_BYTES = BASES_BYTES // 4
CALIBRATION_CHUNKS = env_int("QUANTHUB_CALIBRATION_CHUNKS", minimum=1)
ENGINE_SECONDS = env_int("QUANTHUB_ENGINE_SECONDS", minimum=1)
LEASE_SECONDS = env_int("QUANTHUB_LEASE_SECONDS", minimum=5)
ADMIN_PASSWORD = env("QUANTHUB_ADMIN_PASSWORD")


def _secret_key() -> str:
    """Return the key from the environment, else the one kept beside the data (made on the first start)."""
    given = env("QUANTHUB_SECRET_KEY")
    if given:
        return given
    from django.core.management.utils import get_random_secret_key

    try:
        return _kept_key(DATA_DIR / "secret-key", get_random_secret_key())
    except OSError as exc:
        raise ImproperlyConfigured(
            f"QUANTHUB_DATA: the folder {DATA_DIR} cannot be used ({exc.strerror})"
        ) from exc


def _kept_key(path: Path, new: str) -> str:
    """Return the key that a file holds; where there is none, write the new one."""
    if not path.exists():
        # Sessions and models lie here: they are nobody else's business on a shared machine.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.touch(mode=0o600)
        partial.write_text(new)
        # link, unlike rename, fails if another process was quicker: all then use the same key.
        try:
            os.link(partial, path)
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    return path.read_text()


SECRET_KEY = _secret_key()
# Local names always work: `quanthub up` and health checks on this machine use them.
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", HOST]
ALLOWED_HOSTS += [name.strip() for name in env("QUANTHUB_ALLOWED_HOSTS").split(",") if name.strip()]

INSTALLED_APPS = [
    "hub.accounts",
    "hub.catalog",
    "hub.jobs",
    "hub.registry",
    "hub.api",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django_htmx",
    "ninja",  # for the API page's own script and style: nothing comes from a network
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "hub.pages.content_security_policy",
    "hub.pages.refuse_zeros",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]
ROOT_URLCONF = "hub.urls"
WSGI_APPLICATION = "hub.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]


def _database(url: str) -> dict[str, Any]:
    if not url:
        # Not as an address: a folder's name may hold letters that mean something there.
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(DATA_DIR / "quanthub.sqlite3")}
    try:
        found = dict(dj_database_url.parse(url))
    except (ValueError, KeyError) as exc:
        # The address itself may hold a password.
        raise ImproperlyConfigured(
            "DATABASE_URL is no address of a database; write it as postgres://user:password@host/name"
        ) from exc
    drivers = ("psycopg", "psycopg2")
    if found["ENGINE"] == "django.db.backends.postgresql" and not any(map(find_spec, drivers)):
        raise ImproperlyConfigured(
            "DATABASE_URL names PostgreSQL, whose driver is missing: pip install 'psycopg[binary]'"
        )
    return found


# A connection that was cut, such as by a restart of the server, is noticed and replaced.
DATABASES = {
    "default": {**_database(env("DATABASE_URL")), "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True},
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # WAL lets the pages read while a worker writes; immediate transactions wait instead of failing.
    DATABASES["default"]["OPTIONS"] = {
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
    }
# Holds counts of wrong passwords only; many names tried in a row must not push each other out.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
        "OPTIONS": {"MAX_ENTRIES": 20_000},
    }
}
AUTH_USER_MODEL = "accounts.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "accounts:sign-in"
LOGIN_REDIRECT_URL = "catalog:list"
LOGOUT_REDIRECT_URL = "catalog:list"

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = DATA_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}

BLOB_DIR = DATA_DIR / "blobs"
WORK_DIR = DATA_DIR / "work"
CACHE_DIR = DATA_DIR / "cache"
LOG_DIR = DATA_DIR / "logs"
DEMO_DIR = BASE_DIR / "hub" / "demo"
EVAL_TEXT = DEMO_DIR / "evaluation.txt"
CALIBRATION_TEXT = DEMO_DIR / "calibration.txt"
BROKER_URL = env("REDIS_URL")

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    # The package says at each header it encodes which byte order it uses.
    "loggers": {"gguf": {"level": "WARNING"}},
}

CELERY_BROKER_URL = BROKER_URL or None
CELERY_TASK_DEFAULT_QUEUE = "jobs"
CELERY_TASK_IGNORE_RESULT = True
# A message leaves the queue when its job has ended, so that a killed worker gives it back.
CELERY_TASK_ACKS_LATE = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# Threads, as the work itself happens in a child process; one at a time, as each job uses every core.
CELERY_WORKER_POOL = "threads"
CELERY_WORKER_CONCURRENCY = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_TRANSPORT_OPTIONS = {"socket_connect_timeout": 3}
