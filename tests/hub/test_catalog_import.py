"""Taking models into the catalog."""

import shutil

import pytest

from hub import blobs, engine
from hub.catalog import actions
from hub.catalog.models import Blob, Model, Revision


@pytest.fixture
def folder(tmp_path, settings):
    copy = tmp_path / "tiny"
    shutil.copytree(settings.DEMO_DIR / "tiny-novels-7m", copy)
    return copy


def test_the_demo_model_is_described(demo):
    model = demo.model

    assert str(model) == "quanthub/tiny-novels-7m"
    assert (model.architecture, model.parameters, model.licence) == ("llama", 6_819_072, "CC0-1.0")
    assert model.summary
    assert {file.path for file in demo.files.all()} >= {"config.json", "model.safetensors"}
    assert all(blobs.exists(file.blob_id) for file in demo.files.all())


def test_importing_again_changes_nothing(demo):
    updated = Model.objects.get().updated

    assert actions.import_demo() == demo
    assert Revision.objects.count() == 1
    assert Model.objects.get().updated == updated


def test_bits_per_weight_count_tensors_alone_as_for_quants(demo):
    assert round(demo.bpw, 1) == 16.0
    assert 8 * demo.file_bytes / demo.model.parameters > demo.bpw


def test_importing_again_fills_in_bits_per_weight_of_an_old_import(demo):
    Revision.objects.update(bpw=None)

    actions.import_demo()

    assert Revision.objects.get().bpw == demo.bpw


def test_a_changed_file_is_a_new_revision_of_the_same_model(db, folder):
    first = actions.import_path(folder, "me/tiny").revision
    (folder / "generation_config.json").write_text("{}")

    second = actions.import_path(folder, "me/tiny").revision

    assert (first.model, Revision.objects.count()) == (second.model, 2)
    assert first.commit != second.commit
    assert second.model.latest_revision == second


def test_equal_files_have_equal_commits(db, folder):
    one = actions.import_path(folder, "me/one").revision
    other = actions.import_path(folder, "you/other").revision

    assert one.commit == other.commit
    assert len(one.commit) == 40


def test_what_people_wrote_stays(db, folder):
    actions.import_path(folder, "me/tiny", summary="Mine", licence="MIT")

    actions.import_path(folder, "me/tiny")

    assert (Model.objects.get().summary, Model.objects.get().licence) == ("Mine", "MIT")


@pytest.mark.parametrize("name", ["tiny", "/tiny", "me/", "me/ti ny", "a/b/c", "../etc/x", "me/tiny\n"])
def test_a_name_that_is_no_model_id_is_refused(db, folder, name):
    with pytest.raises(actions.Refused, match="no model id"):
        actions.import_path(folder, name)


def test_a_truncated_model_is_refused_and_leaves_nothing(db, folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)

    with pytest.raises(engine.Refused, match="safetensors"):
        actions.import_path(folder, "me/tiny")

    assert not Model.objects.exists()
    assert not Blob.objects.exists()


def test_an_import_that_breaks_off_leaves_no_rows_behind(db, folder, monkeypatch):
    put, calls = blobs.put, []

    def full_at_the_second(path):
        calls.append(path)
        if len(calls) == 2:
            raise blobs.StoreFull("The disk of the store is full.")
        return put(path)

    monkeypatch.setattr(blobs, "put", full_at_the_second)

    with pytest.raises(blobs.StoreFull):
        actions.import_path(folder, "me/tiny")

    assert not Blob.objects.exists()


def test_a_path_that_is_not_there_is_refused(db, tmp_path):
    with pytest.raises(actions.Refused, match="no such file"):
        actions.import_path(tmp_path / "nothing")
