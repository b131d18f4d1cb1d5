"""Collections on the disk: what was collected comes back, of the right model, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantcore.calibrate import collect, importance
from quantcore.cli import main
from quantcore.convert import open_huggingface
from quantcore.errors import Cancelled, InputError, NotEnoughSpace, ShortText, UnreadableFile
from quantcore.imatrix import open_imatrix
from quantcore.sources.safetensors import read_header
from quantcore.statistics.collection import INDEX, layer_path, open_collection, save_layer
from quantcore.statistics.tally import Collect
from quantcore.walk import walk
from tests.quantcore.convert.families import write_model

TEXT = "the quick brown fox jumps over the lazy dog. " * 12
OTHER = "sphinx of black quartz, judge my vow: the five wizards. " * 9
ALL = Collect(importance=True, hessians=True, activations=True, samples=6)
CTX = 32


@pytest.fixture(params=["llama", "qwen2moe"])
def source(tmp_path, request):
    write_model(tmp_path / "model", request.param)
    return open_huggingface(tmp_path / "model")


@pytest.fixture
def llama(tmp_path):
    write_model(tmp_path / "model", "llama")
    return open_huggingface(tmp_path / "model")


def made(source, path, text=TEXT, wanted=ALL, **options):
    return collect(source, text, "it.txt", path, wanted, n_ctx=CTX, **options)


def tallies(collection):
    return {
        shared.names: shared.tallies
        for index in range(len(collection.layers))
        for shared in collection.layer(index)
    }


def tallies_of(collection, names):
    """Return what was collected of one input, without its Hessians."""
    wanted = Collect(importance=True, samples=1)
    layers = range(len(collection.layers))
    return next(it.tallies for n in layers for it in collection.layer(n, wanted) if it.names == names)


def test_what_was_collected_comes_back(source, tmp_path, monkeypatch):
    told = {}
    save = lambda stage: told.update({shared.names: shared.tallies for shared in stage.inputs})  # noqa: E731
    monkeypatch.setattr(
        "quantcore.calibrate.walk",
        lambda *given, **options: walk(
            *given[:3], lambda stage: (save(stage), given[3](stage))[1], **options
        ),
    )

    made(source, tmp_path / "out")
    found = tallies(open_collection(tmp_path / "out"))

    assert found.keys() == told.keys()
    for names, many in told.items():
        for ours, theirs in zip(found[names], many, strict=True):
            assert (ours.rows, ours.width) == (theirs.rows, theirs.width)
            assert (ours.hessian() == theirs.hessian().astype(np.float32)).all()
            assert (ours.squares == theirs.squares).all()
            assert (ours.means == theirs.means).all()
            assert (ours.largest == theirs.largest).all()
            assert (ours.sample.rows == theirs.sample.rows).all()
            assert (ours.sample.keys == theirs.sample.keys).all()


def test_the_importance_in_it_is_that_of_the_importance_matrix(source, tmp_path):
    sums, alone = made(source, tmp_path / "out").sums(), importance(source, TEXT, "it.txt", n_ctx=CTX)

    assert sums.values.keys() == alone.values.keys()
    for name, values in alone.values.items():
        assert (sums.values[name] == values).all()
        assert (sums.counts[name] == alone.counts[name]).all()
    assert (sums.datasets, sums.hashes, sums.n_chunks) == (alone.datasets, alone.hashes, alone.n_chunks)


def test_what_is_not_wanted_is_not_read(llama, tmp_path, monkeypatch):
    """Hessians are gigabytes where the sums beside them are a page."""
    collection = made(llama, tmp_path / "out")

    monkeypatch.setattr("quantcore.statistics.layerfiles.Gram.unpacked", None)

    assert len(collection.sums().values) == 14
    (tally,) = collection.layer(0, Collect(activations=True, samples=1))[0].tallies
    assert (tally.gram, tally.squares, len(tally.sample.rows)) == (None, None, 6)


def test_files_say_what_they_are_of(llama, tmp_path):
    origin = open_collection(made(llama, tmp_path / "out").path).origin

    (text,) = origin.texts
    assert (text.name, text.sha256) == ("it.txt", hashlib.sha256(TEXT.encode()).hexdigest())
    assert (text.n_ctx, text.chunks, origin.collect) == (CTX, 14, ALL)
    names = read_header(layer_path(tmp_path / "out", 1))
    assert names["blk.1.attn_q.hessian"].shape == (1, 32 * 33 // 2)
    assert len(names) == 4 * 8


def test_only_what_is_asked_for_is_kept(llama, tmp_path):
    collection = made(llama, tmp_path / "out", wanted=Collect(importance=True))

    assert {name.rsplit(".", 1)[1] for name in read_header(layer_path(collection.path, 0))} == {
        "rows", "squares",
    }  # fmt: skip
    (tally,) = collection.layer(0)[0].tallies
    assert (tally.magnitudes, tally.largest, tally.gram, tally.sample) == (None,) * 4


def test_threads_change_no_byte_of_any_file(source, tmp_path):
    one, three = (made(source, tmp_path / str(n), threads=n).path for n in (1, 3))

    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in three.iterdir())
    assert len(names) == 3
    for name in names:
        assert (one / name).read_bytes() == (three / name).read_bytes()


def test_two_collections_merged_are_one_of_both(source, tmp_path):
    one = made(source, tmp_path / "one")
    two = made(source, tmp_path / "two", OTHER)
    both = made(source, tmp_path / "both", OTHER, merge=[one])

    for names, merged in tallies(open_collection(both.path)).items():
        for sum_, *parts in zip(merged, tallies(one)[names], tallies(two)[names], strict=True):
            assert sum_.rows == parts[0].rows + parts[1].rows
            assert np.allclose(sum_.hessian(), parts[0].hessian() + parts[1].hessian(), rtol=1e-5, atol=1e-5)
            assert np.allclose(sum_.squares, parts[0].squares + parts[1].squares)
            assert (sum_.largest == np.maximum(parts[0].largest, parts[1].largest)).all()
            kept = np.sort(np.concatenate([part.sample.keys for part in parts]))[:6]
            assert (sum_.sample.keys == kept).all()
    assert [text.chunks for text in both.origin.texts] == [14, 14]


def test_another_model_is_neither_loaded_nor_merged(llama, tmp_path):
    write_model(tmp_path / "other", "mistral")
    other = made(open_huggingface(tmp_path / "other"), tmp_path / "theirs")

    with pytest.raises(InputError, match=r"theirs: was made for another model"):
        made(llama, tmp_path / "out", merge=[other])
    assert not (tmp_path / "out").exists()


def test_what_a_collection_lacks_is_named(llama, tmp_path):
    bare = made(llama, tmp_path / "bare", wanted=Collect(activations=True))

    with pytest.raises(InputError, match="bare: has no importance and no hessians and no samples"):
        made(llama, tmp_path / "out", merge=[bare])
    with pytest.raises(InputError, match="bare: has no importance"):
        bare.sums()


def test_files_of_two_folders_are_not_mixed_up(llama, tmp_path):
    one, two = made(llama, tmp_path / "one"), made(llama, tmp_path / "two", OTHER)

    layer_path(one.path, 1).write_bytes(layer_path(two.path, 1).read_bytes())

    with pytest.raises(UnreadableFile, match=r"layer-00001\.safetensors: is of another model, text"):
        one.layer(1)


def edited(path, change):
    document = json.loads((path / INDEX).read_text())
    change(document)
    (path / INDEX).write_text(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.pop("model_sha256"),
        lambda it: it.update(version=2),
        lambda it: it.update(layers=3),
        lambda it: it.update(texts=[{}]),
        lambda it: it.update(texts=[]),
        lambda it: it["texts"][0].update(chunks=0),
        lambda it: it["collect"].update(hessians="yes"),
        lambda it: it["layers"][0][0].update(names=[]) or it["layers"][0][0].update(width=-1),
        lambda it: it["layers"][0].append(None),
        lambda it: it["layers"][0].append(it["layers"][0][0]),
        lambda it: it["layers"][0][0].update(names=[]),
        lambda it: it["layers"][0].clear(),
        lambda it: it["layers"].clear(),
    ],
)
def test_an_index_that_cannot_be_is_refused(llama, tmp_path, change):
    made(llama, tmp_path / "out")

    edited(tmp_path / "out", change)

    with pytest.raises(UnreadableFile, match=r"calibration\.json: not the index of a calibration"):
        open_collection(tmp_path / "out")


def test_a_collection_of_fewer_layers_is_refused_before_the_work(llama, tmp_path, monkeypatch):
    made(llama, tmp_path / "out")
    edited(tmp_path / "out", lambda it: it["layers"].__delitem__(1))
    monkeypatch.setattr("quantcore.calibrate.walk", None)

    with pytest.raises(InputError, match=r"out: has 1 layers of 2"):
        made(llama, tmp_path / "two", merge=[open_collection(tmp_path / "out")])


def test_of_what_is_merged_no_more_is_read_than_is_wanted(llama, tmp_path, monkeypatch):
    one = made(llama, tmp_path / "one")
    monkeypatch.setattr("quantcore.statistics.layerfiles.Gram.unpacked", None)

    wanted = Collect(importance=True, samples=3)
    two = tallies(made(llama, tmp_path / "two", OTHER, wanted, merge=[one]))

    alone = tallies(made(llama, tmp_path / "alone", OTHER, wanted))
    for names, found in two.items():
        for tally, of_one, of_other in zip(found, tallies_of(one, names), alone[names], strict=True):
            assert tally.rows == of_one.rows + of_other.rows
            np.testing.assert_array_equal(tally.squares, of_other.squares + of_one.squares)
            assert len(tally.sample.keys) == 3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"blk.1.attn_q.rows"', b'"blk.1.attn_q.rowz"', r"has no tensor blk\.1\.attn_q\.rows"),
        (b'"blk.1.attn_q.largest":{"dtype":"F32"', b'"blk.1.attn_q.largest":{"dtype":"I32"', "is I32"),
    ],
)
def test_a_damaged_layer_is_named(llama, tmp_path, old, new, said):
    collection = made(llama, tmp_path / "out")
    path = layer_path(collection.path, 1)
    raw = path.read_bytes()
    assert old in raw

    path.write_bytes(raw.replace(old, new))
    with pytest.raises(UnreadableFile, match=said):
        collection.layer(1)
    path.write_bytes(raw[:-1])
    with pytest.raises(UnreadableFile, match="truncated"):
        open_collection(collection.path)
    path.unlink()
    with pytest.raises(UnreadableFile, match="layer-00001"):
        open_collection(collection.path)


def test_numbers_that_are_none_are_refused(llama, tmp_path):
    collection = made(llama, tmp_path / "out")
    path = layer_path(collection.path, 0)
    tensor = read_header(path)["blk.0.ffn_down.squares"]
    with path.open("r+b") as file:
        file.seek(tensor.begin)
        file.write(np.array([np.nan]).tobytes())

    with pytest.raises(UnreadableFile, match=r"blk\.0\.ffn_down has negative counts, or numbers"):
        collection.layer(0)


def test_a_folder_that_exists_is_refused_before_the_work_unless_it_is_empty(llama, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "empty").mkdir()

    def never(_progress):
        raise AssertionError

    with pytest.raises(InputError, match=r"full: exists already"):
        made(llama, tmp_path / "full", report=never)
    with pytest.raises(InputError, match=r"the folder .*missing does not exist"):
        made(llama, tmp_path / "missing" / "out", report=never)
    with pytest.raises(InputError, match=r"config\.json: exists already"):
        made(llama, tmp_path / "model" / "config.json", report=never)

    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert made(llama, tmp_path / "link").layers
    assert (tmp_path / "empty" / INDEX).exists()
    with pytest.raises(InputError, match="/proc: "):
        made(llama, Path("/proc"), report=never)


def test_a_stopped_run_leaves_nothing(llama, tmp_path):
    def stop(progress):
        if progress.item.startswith("layer 2"):
            assert [path.name for path in tmp_path.glob(".*/*")] == ["layer-00000.safetensors"]
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        made(llama, tmp_path / "out", report=stop)

    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_killed_run_leaves_nothing_that_looks_like_a_collection(llama, tmp_path):
    (tmp_path / "it.txt").write_text(TEXT)
    code = (
        "import sys, time, quantcore.calibrate as c\n"
        "from quantcore.cli import main\n"
        "save = c.save_layer\n"
        "def slow(*given):\n"
        "    done = save(*given); print('saved', flush=True); time.sleep(60); return done\n"
        "c.save_layer = slow\n"
        "main(sys.argv[1:])\n"
    )
    verb = [
        "calibrate",
        tmp_path / "model",
        tmp_path / "it.txt",
        tmp_path / "out",
        "--ctx",
        "32",
        "--hessians",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, verb)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    with process:
        assert process.stdout.readline() == b"saved\n"
        process.send_signal(signal.SIGKILL)

    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        "it.txt", "model",
    ]  # fmt: skip


def test_a_disk_that_will_be_full_is_told_after_one_layer(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("quantcore.calibrate._free", lambda _: 10_000)

    with pytest.raises(NotEnoughSpace, match=r"the statistics of the other layers need 0\.0 MB"):
        made(llama, tmp_path / "out")

    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_sums_beyond_what_files_can_hold_are_refused(llama, tmp_path):
    collection = made(llama, tmp_path / "out")
    inputs = collection.layer(0)
    inputs[0].tallies[0].gram._strips[0] *= 1e300

    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.hessian: sums beyond what a file can hold"):
        save_layer(tmp_path, 7, collection.origin, inputs)
    assert not layer_path(tmp_path, 7).exists()


def test_the_command_collects_and_writes_the_importance_matrix_too(llama, tmp_path, capsys):
    text = tmp_path / "it.txt"
    text.write_text(TEXT)
    common = ["calibrate", str(tmp_path / "model"), str(text)]
    options = ["--ctx", "32", "--chunks", "5", "--hessians", "--activations", "--samples", "4"]
    matrix = tmp_path / "m.gguf"

    assert main([*common, str(tmp_path / "one"), *options, "--imatrix", str(matrix), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main([*common, str(tmp_path / "two"), *options, "--merge", str(tmp_path / "one")]) == 0
    assert main(["imatrix", *common[1:], str(tmp_path / "alone.gguf"), "--ctx", "32", "--chunks", "5"]) == 0

    wanted = {"path": str(tmp_path / "one"), "layers": 2, "entries": 14, "n_ctx": 32, "chunks": 5}
    assert wanted.items() <= document.items()
    assert document["collect"] == {"importance": True, "hessians": True, "activations": True, "samples": 4}
    assert document["file_bytes"] == sum(file.stat().st_size for file in (tmp_path / "one").iterdir())
    assert matrix.read_bytes() == (tmp_path / "alone.gguf").read_bytes()
    assert open_imatrix(matrix).n_chunks == 5
    assert "14 matrices of 2 layers, 5 chunks of 32 tokens" in capsys.readouterr().out
    assert [text.chunks for text in open_collection(tmp_path / "two").origin.texts] == [5, 5]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (".", "is a folder; give the name of a file"),
        ("out", "is in the folder to make; give another name"),
        ("out/m.gguf", "is in the folder to make; give another name"),
        ("one/calibration.json", "is a file of what is merged; give another name"),
    ],
)
def test_no_importance_matrix_takes_the_place_of_something_else(
    llama, tmp_path, capsys, monkeypatch, place, said
):
    (tmp_path / "it.txt").write_text(TEXT)
    index = made(llama, tmp_path / "one").path / INDEX
    before = index.read_bytes()
    monkeypatch.setattr("quantcore.calibrate.walk", None)
    given = [tmp_path / "model", tmp_path / "it.txt", tmp_path / "out", "--ctx", "32"]
    options = ["--merge", tmp_path / "one", "--imatrix", tmp_path / place]

    assert main(["calibrate", *map(str, given), *map(str, options)]) == 1

    assert said in capsys.readouterr().err
    assert index.read_bytes() == before


@pytest.mark.parametrize("place", ["", ".", "/"])
def test_the_command_refuses_a_folder_without_a_name(llama, tmp_path, capsys, monkeypatch, place):
    (tmp_path / "it.txt").write_text(TEXT)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    assert main(["calibrate", str(tmp_path / "model"), str(tmp_path / "it.txt"), place, "--ctx", "32"]) == 1
    assert "exists already; give the name of a folder that does not" in capsys.readouterr().err


def test_the_command_names_what_is_wrong(llama, tmp_path, capsys):
    text = tmp_path / "it.txt"
    text.write_text(TEXT)
    common = ["calibrate", str(tmp_path / "model"), str(text), str(tmp_path / "out")]

    assert main([*common, "--ctx", "4096"]) == 1
    assert f"{text}: the text has" in capsys.readouterr().err
    assert main([*common, "--ctx", "32", "--imatrix", str(tmp_path / "model" / "model.safetensors")]) == 1
    assert "is a file of the model; give another name" in capsys.readouterr().err
    assert main([*common, "--ctx", "32", "--merge", str(tmp_path / "none")]) == 1
    assert f"{tmp_path / 'none' / INDEX}: cannot be read" in capsys.readouterr().err
    with pytest.raises(ShortText):
        made(llama, tmp_path / "out", "short")
    assert not (tmp_path / "out").exists()
