"""Publishing is all or nothing."""

import hashlib

import pytest
from django.db import IntegrityError, connection

from hub import blobs
from hub.catalog.models import Measurement, Quant
from hub.jobs import actions, workspace
from hub.jobs.models import Job, State


@pytest.fixture
def artifact(running):
    folder = workspace.folder(running)
    folder.mkdir(parents=True)
    path = folder / "llama-Q4_K_M.gguf"
    path.write_bytes(b"GGUF and so on")
    figure = actions.Measured(Measurement.Metric.PPL, 12.5, "", 0.25, {"n_ctx": 512}, {"cpu": "x"}, {})
    return actions.Artifact(
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        file_bytes=14,
        bpw=4.8,
        seconds=1.5,
        made_with={"quanthub": "1"},
        figures=(figure,),
    )


def test_a_published_quant_has_its_file_its_figures_and_its_job(running, artifact, alice):
    quant = actions.publish(running, artifact)

    job = Job.objects.get()
    assert (job.state, job.quant) == (State.DONE, quant)
    assert quant.files.get().blob_id == artifact.sha256
    assert quant.measurements.get().value == 12.5
    assert quant.made_by == alice
    assert blobs.exists(artifact.sha256)


def test_a_straggler_publishes_nothing(running, artifact, leftovers):
    straggler = Job.objects.get()
    actions.release(running, "lost")

    with pytest.raises(actions.Stale):
        actions.publish(straggler, artifact)

    assert not Quant.objects.exists()
    assert leftovers() == [artifact.path]  # where it was, in the folder that is wiped with the attempt


def test_bytes_that_are_not_what_was_written_are_not_published(running, artifact, leftovers):
    artifact.path.write_bytes(b"GGUF and so off")

    with pytest.raises(blobs.BlobError, match="the disk holds"):
        actions.publish(running, artifact)

    assert Job.objects.get().state == State.RUNNING
    assert leftovers() == [artifact.path]


def test_no_transaction_is_open_while_the_file_is_read(running, artifact, monkeypatch):
    """It would keep everybody else from writing, heartbeats included, for as long as the file is large."""
    depth = len(connection.savepoint_ids)
    seen = []
    digest = blobs.digest
    monkeypatch.setattr(
        blobs, "digest", lambda path: seen.append(len(connection.savepoint_ids)) or digest(path)
    )

    actions.publish(running, artifact)

    assert seen == [depth]


def test_a_database_that_refuses_leaves_neither_rows_nor_bytes(running, artifact, quant, leftovers):
    with pytest.raises(IntegrityError):
        actions.publish(running, artifact)

    assert Quant.objects.get() == quant
    assert not Measurement.objects.exists()
    assert not blobs.exists(artifact.sha256)
