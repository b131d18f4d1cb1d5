"""The walk: what goes into every matrix, layer by layer, and into those of a model that is being replaced."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from quantcore.checkpoint import Checkpoint
from quantcore.convert import open_huggingface
from quantcore.errors import Cancelled, InputError, NotEnoughSpace, UnreadableFile
from quantcore.evaluate.forward import watch
from quantcore.evaluate.layer import MATRICES
from quantcore.formats import to_float
from quantcore.models import open_model
from quantcore.states import States
from quantcore.statistics.tally import Collect
from quantcore.tensors import Tensor
from quantcore.walk import Stage, walk
from tests.quantcore.convert.families import FAMILIES, config_of, weights_of, write_model
from tests.quantcore.evaluate import reference
from tests.quantcore.models import small_llama

TOKENS = np.random.default_rng(3).integers(0, 259, size=(3, 24)).astype(np.int32)
ALL = Collect(importance=True, hessians=True, activations=True, samples=5)
KINDS = ["llama", "olmo2", "granite", "mixtral", "qwen2moe", "phi3"]


@pytest.fixture(params=KINDS)
def family(request):
    return request.param


@pytest.fixture
def source(tmp_path, family):
    write_model(tmp_path / "model", family)
    return open_huggingface(tmp_path / "model")


def collected(source, tokens=TOKENS, collect=ALL, change=None, **options):
    """Return tallies by matrix; `change` may replace what the walk comes by."""
    found = {}

    def visit(stage: Stage):
        for shared in stage.inputs:
            found.update(dict.fromkeys(shared.names, shared.tallies))
        return change(stage) if change else None

    walk(source, tokens, collect, visit, **options)
    return found


def same(ours, theirs):
    """Say whether two walks found the same bits."""
    return ours.keys() == theirs.keys() and all(
        (one.rows, one.hessian().tobytes(), one.squares.tobytes(), one.means.tobytes())
        == (other.rows, other.hessian().tobytes(), other.squares.tobytes(), other.means.tobytes())
        and one.sample.rows.tobytes() == other.sample.rows.tobytes()
        for name in ours
        for one, other in zip(ours[name], theirs[name], strict=True)
    )


def rounded(source, only=""):
    """Return the model with its matrices rounded to halves."""
    changed = tuple(halves(t) if is_matrix(t.name, only) else t for t in source.tensors)
    return replace(source, tensors=changed)


def halves(tensor):
    info = replace(tensor.info, type="F32", nbytes=4 * tensor.info.n_elements)
    return Tensor(info, lambda a, b: round_half(to_float(tensor.info, tensor.read_rows(a, b))))


def is_matrix(name, only=""):
    return name.startswith(f"blk.{only}") and name.split(".")[2] in MATRICES and name.endswith(".weight")


def round_half(weights):
    return (np.round(weights * 2) / 2).astype(np.float32)


def round_all(stage: Stage):
    """What a quantizer would do: those matrices whose inputs it was told."""
    names = [name for shared in stage.inputs for name in shared.names]
    return {name: round_half(stage.weights[name]) for name in names}


def test_all_that_is_told_is_what_plain_loops_in_float64_find(source, family):
    seen = {}
    for row in TOKENS:
        reference.logits(config_of(family), weights_of(config_of(family)), row, seen)

    found = collected(source)

    assert {name for name, _ in seen} == found.keys()
    for (name, number), inputs in seen.items():
        x, tally = np.stack(inputs), found[name][number]
        assert tally.rows == len(x)
        hessian = x.T @ x
        assert np.abs(tally.hessian() - hessian).max() < 1e-4 * np.abs(hessian).max()
        assert np.allclose(tally.means, np.abs(x).mean(axis=0), rtol=1e-3)
        assert np.allclose(tally.largest, np.abs(x).max(axis=0), rtol=1e-3)
        assert len(tally.sample.rows) == min(5, len(x))
        for row in tally.sample.rows:
            assert np.abs(x - row).max(axis=1).min() < 1e-3


def test_the_diagonal_is_the_importance(source):
    for tallies in collected(source).values():
        for tally in tallies:
            assert np.allclose(tally.hessian().diagonal(), tally.squares, rtol=1e-5)


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_no_bit(source, threads):
    assert same(collected(source, threads=1), collected(source, threads=threads))


@pytest.mark.parametrize("options", [{}, {"true_sequential": True}])
def test_a_model_that_is_not_changed_shows_the_same_however_it_is_walked(source, options):
    assert same(collected(source), collected(source, replaces=True, **options))


def test_later_layers_see_what_comes_out_of_replaced_ones(source):
    found = collected(source, change=round_all, replaces=True)

    before, after = collected(source), collected(rounded(source, "0."))
    of = lambda them, layer: {n: t for n, t in them.items() if n.startswith(f"blk.{layer}.")}  # noqa: E731
    assert same(of(found, 0), of(before, 0))
    assert same(of(found, 1), of(after, 1))
    assert not same(of(before, 1), of(after, 1))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_in_true_sequence_every_input_is_that_of_the_replaced_model(source):
    """Of all matrices: none is left out in any family."""
    found = collected(source, change=round_all, replaces=True, true_sequential=True)

    named = {t.name for t in source.tensors if len(t.info.shape) > 1 and "_norm." not in t.name}
    matrices = {name for name in named if name.startswith("blk.") and name.endswith(".weight")}
    assert found.keys() == matrices

    assert same(found, collected(rounded(source)))
    assert not same(found, collected(source, change=round_all, replaces=True))


def test_stages_come_in_order_with_all_weights_of_their_layer(source):
    told = []

    def visit(stage):
        told.append((stage.layer, stage.last, [name.split(".")[2] for s in stage.inputs for name in s.names]))
        own = {t.name for t in source.tensors if t.name.startswith(f"blk.{stage.layer}.")}
        assert stage.weights.keys() == own

    walk(source, TOKENS, Collect(), visit, replaces=True, true_sequential=True)

    count = 5 if any("gate_inp" in tensor.name for tensor in source.tensors) else 4
    assert [(layer, last) for layer, last, _ in told] == [
        (layer, n == count - 1) for layer in range(2) for n in range(count)
    ]
    kinds = [{part.split("_")[1] for part in parts} for _, _, parts in told[:count]]
    assert kinds[0] in ({"q", "k", "v"}, {"qkv"})
    assert kinds[1] == {"output"}
    assert kinds[-2] in ({"gate", "up"}, {"up"})
    assert kinds[-1] == {"down"}


def test_hidden_states_in_a_file_change_nothing_and_leave_nothing(source, tmp_path):
    shape = (*TOKENS.shape, 32)

    spilled = collected(source, states=States(shape, memory=0, folder=tmp_path))

    assert same(spilled, collected(source))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    write_model(tmp_path, "llama")

    with pytest.raises(NotEnoughSpace, match=rf"{tmp_path}: hidden states need"):
        collected(
            open_huggingface(tmp_path),
            states=States((2**31, 2**20, 2**8), memory=0, folder=tmp_path),
        )


@pytest.mark.parametrize("true_sequential", [False, True])
def test_a_stopped_walk_is_taken_up_behind_the_last_whole_layer(source, tmp_path, true_sequential):
    options = {"replaces": True, "true_sequential": true_sequential}
    layers = []

    def stopped(stage):
        layers.append(stage.layer)
        if stage.layer == 1:
            raise Cancelled("enough")
        return round_all(stage)

    with pytest.raises(Cancelled):
        collected(source, change=stopped, checkpoint=Checkpoint(tmp_path, source, TOKENS, "r"), **options)
    rest = collected(
        source, change=round_all, checkpoint=Checkpoint(tmp_path, source, TOKENS, "r"), **options
    )

    whole = collected(source, change=round_all, **options)
    assert same(rest, {name: found for name, found in whole.items() if name.startswith("blk.1.")})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_another_walk_left_is_not_taken_up(tmp_path):
    for seed_of, name in (("llama", "one"), ("mistral", "two")):
        write_model(tmp_path / name, seed_of)
    one, two = (open_huggingface(tmp_path / name) for name in ("one", "two"))

    keys = {
        Checkpoint(tmp_path, *of).path
        for of in ((one, TOKENS, "a"), (two, TOKENS, "a"), (one, TOKENS[:2], "a"), (one, TOKENS, "b"))
    }

    assert len(keys) == 4
    assert Checkpoint(tmp_path, one, TOKENS, "a").path in keys


def test_a_damaged_checkpoint_is_named(tmp_path):
    write_model(tmp_path / "model", "llama")
    source = open_huggingface(tmp_path / "model")
    checkpoint = Checkpoint(tmp_path, source, TOKENS, "")
    with States((*TOKENS.shape, 32)) as states:
        states.write(slice(0, 3), np.zeros((3, 24, 32), np.float32))
        checkpoint.store(states, 1)
    whole = checkpoint.path.read_bytes()

    checkpoint.path.write_bytes(whole[:-4])
    with pytest.raises(UnreadableFile, match=rf"{checkpoint.path}: truncated"):
        collected(source, checkpoint=checkpoint)
    checkpoint.path.write_bytes(whole.replace(checkpoint.key.encode(), b"0" * 64))
    with pytest.raises(UnreadableFile, match="not a checkpoint of this walk"):
        collected(source, checkpoint=checkpoint)


def peak(source, chunks, tmp_path, options):
    tokens = np.random.default_rng(5).integers(0, 64, size=(chunks, 64)).astype(np.int32)
    states = States((chunks, 64, 256), memory=0, folder=tmp_path)
    tracemalloc.start()
    visit = round_all if options else lambda _stage: None
    walk(source, tokens, ALL, visit, states=states, threads=1, **options)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("options", [{}, {"replaces": True, "true_sequential": True}])
def test_memory_grows_neither_with_layers_nor_with_chunks(tmp_path, options):
    """One layer's weights are 2.6 MB here, its Hessians 2.7."""
    few, many = (open_model(small_llama(tmp_path / f"{n}.gguf", layers=n)) for n in (2, 8))

    base = peak(few, 32, tmp_path, options)
    more_layers, more_chunks = peak(many, 32, tmp_path, options), peak(few, 96, tmp_path, options)

    assert more_layers < base + 1_000_000
    assert more_chunks < base + 1_000_000


def test_inputs_that_are_no_numbers_name_their_matrix(tmp_path):
    write_model(tmp_path, "llama")
    source = open_huggingface(tmp_path)
    broken = [
        Tensor(t.info, lambda a, b, t=t: t.read_rows(a, b) * np.float32(np.inf))
        if t.name == "blk.1.attn_norm.weight"
        else t
        for t in source.tensors
    ]

    with pytest.raises(InputError, match=r"blk\.1\.attn_q\.weight: its inputs are no finite numbers"):
        collected(replace(source, tensors=tuple(broken)))


@pytest.mark.parametrize(
    ("replaces", "value", "said"),
    [(False, np.zeros((32, 32)), "does not go on"), (True, np.zeros((32, 31)), r"replaced by \[32, 31\]")],
)
def test_a_visitor_that_errs_is_told(tmp_path, replaces, value, said):
    write_model(tmp_path, "llama")

    with pytest.raises(ValueError, match=said):
        collected(
            open_huggingface(tmp_path),
            change=lambda stage: {"blk.0.attn_q.weight": value},
            replaces=replaces,
        )


def test_a_visitor_has_all_threads_of_blas(tmp_path):
    write_model(tmp_path, "llama")

    def found():
        return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        had, seen = found(), []
        collected(open_huggingface(tmp_path), change=lambda _: seen.append(found()), threads=3)

    assert had
    assert seen == [had, had]


def test_a_report_tells_how_far_it_is_and_may_stop_it(tmp_path):
    write_model(tmp_path, "llama")
    told = []

    collected(open_huggingface(tmp_path), replaces=True, report=told.append)
    with pytest.raises(Cancelled):
        collected(open_huggingface(tmp_path), report=lambda _: (_ for _ in ()).throw(Cancelled("enough")))

    assert [progress.stage for progress in told] == ["calibrate"] * 2
    assert told[-1].done == told[-1].total == TOKENS.size


def test_a_walk_is_told_to_a_watcher_alike(source):
    """The importance matrix is the same whether groups of chunks or layers come first."""
    sums = {}

    class Squares:
        def measure(self, _names, x):
            return np.einsum("ij,ij->j", x, x).astype(np.float64)

        def add(self, names, measured):
            for name in names:
                sums[name, 0] = sums.get((name, 0), 0) + measured

        def add_expert(self, names, expert, _experts, measured):
            for name in names:
                sums[name, expert] = sums.get((name, expert), 0) + measured

    watch(source, TOKENS, Squares())

    found = collected(source)
    for (name, number), squares in sums.items():
        assert (found[name][number].squares == squares).all()


def test_settings_of_a_model_show_in_its_hash(tmp_path):
    from quantcore.sources.digest import source_digest

    write_model(tmp_path, "llama")
    digest = source_digest(open_huggingface(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    changed = source_digest(open_huggingface(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = open_huggingface(tmp_path)

    assert source_digest(source, threads=1) == digest != changed
    assert source_digest(rounded(source, "1.")) != digest
