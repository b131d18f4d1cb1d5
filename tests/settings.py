"""The settings of tests: the real ones, on a data folder of their own that is gone afterwards."""

import atexit
import os
import shutil
import tempfile

_data = tempfile.mkdtemp(prefix="quanthub-tests-")
atexit.register(shutil.rmtree, _data, ignore_errors=True)
os.environ["QUANTHUB_DATA"] = _data
os.environ["QUANTHUB_EVAL_CHUNKS"] = "2"
os.environ["QUANTHUB_THREADS"] = "2"
# A developer's own broker is none of the tests' business; DATABASE_URL may choose another database server.
for _name in ("REDIS_URL", "QUANTHUB_ADMIN_PASSWORD", "PORT"):
    os.environ.pop(_name, None)

from hub.settings import *  # noqa: E402, F403

# Whitenoise warns where there is none.
STATIC_ROOT.mkdir()  # noqa: F405

STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# pytest collects the log by itself.
LOGGING = {}
# Slow on purpose elsewhere; here it would only make tests slow.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
