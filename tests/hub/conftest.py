"""The cast: Alice asks for quants, Bob is somebody else, Grace runs the hub."""

import pytest
from django.conf import settings
from django.core.cache import cache

from hub.accounts.models import Token, User
from hub.catalog import actions as catalog
from hub.catalog.models import Blob, Model, Quant, QuantFile, Revision
from hub.jobs import actions


@pytest.fixture(autouse=True)
def own_folders(settings, tmp_path):
    """Give each test a store, a working folder, a cache and logs of its own."""
    settings.DATA_DIR = tmp_path / "data"
    for name in ("BLOB_DIR", "WORK_DIR", "CACHE_DIR", "LOG_DIR"):
        folder = settings.DATA_DIR / name.removesuffix("_DIR").lower()
        folder.mkdir(parents=True)
        setattr(settings, name, folder)


@pytest.fixture(autouse=True)
def nothing_counted():
    """Wrong passwords of one test must not count in the next."""
    cache.clear()


@pytest.fixture
def alice(db):
    return User.objects.create_user("alice", password="wonderland")


@pytest.fixture
def bob(db):
    return User.objects.create_user("bob", password="builder")


@pytest.fixture
def grace(db):
    return User.objects.create_superuser("grace", password="hopper")


@pytest.fixture
def revision(db):
    """A revision of which only the rows exist: enough for whatever never opens it."""
    model = Model.objects.create(owner="acme", name="llama")
    return Revision.objects.create(
        model=model, commit="c" * 40, source_format="huggingface", file_bytes=10, tensor_type="F16"
    )


@pytest.fixture
def demo(db):
    """The demo model, imported for real."""
    return catalog.import_demo()


@pytest.fixture
def quant(revision):
    """A published quant of which only the rows exist."""
    from hub import engine

    blob = Blob.objects.create(sha256="a" * 64, size=5)
    made = Quant.objects.create(
        revision=revision,
        level="Q4_K_M",
        format="gguf",
        file_bytes=5,
        bpw=4.8,
        recipe_fingerprint=engine.fingerprint("Q4_K_M"),
    )
    QuantFile.objects.create(quant=made, path="llama-Q4_K_M.gguf", blob=blob)
    return made


@pytest.fixture
def job(alice, revision):
    """A job of Alice's that waits."""
    return actions.submit(alice, revision, ["Q4_K_M"]).jobs.get()


@pytest.fixture
def running(job):
    """The same, running its first attempt."""
    return actions.claim(job.pk, "worker")


@pytest.fixture
def token(alice):
    """Return a function that gives Alice a token of some scope, and returns its secret."""
    return lambda scope: Token.issue(user=alice, name="test", scope=scope)[1]


def files_below(folder):
    """Return every file and link below a folder."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture
def leftovers():
    """Return a function that lists what lies in the store without a row, and whatever is being worked on."""

    def list_them():
        stored = [path for path in files_below(settings.BLOB_DIR) if not Blob.objects.filter(pk=path.name)]
        return stored + files_below(settings.WORK_DIR)

    return list_them
