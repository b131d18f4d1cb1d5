"""A job's whole journey with the real engine, in this process."""

import errno
import hashlib
import math
import os
import re
import resource
import subprocess
import sys

import pytest
from django.conf import settings
from django.db import OperationalError

import quantcore
from hub import blobs, engine
from hub.catalog.models import Measurement, Quant
from hub.jobs import actions, baselines, journey
from hub.jobs.models import Job, Stage, State
from quantcore.evaluate import speed as quantcore_speed

Metric = Measurement.Metric
CLOSENESS = (Metric.KLD, Metric.SAME_TOP, Metric.DELTA_P)


@pytest.fixture
def ready(alice, demo):
    """A job for the demo model that a worker has just taken."""
    return actions.claim(actions.submit(alice, demo, ["Q8_0"]).jobs.get().pk, "worker")


def benched():
    """What the engine tells of speed, as quantcore hands it on."""
    results = tuple(
        quantcore_speed.SpeedTest(test, 9.0, 1.0, 5, (), depth)
        for test in ("pp512", "tg128")
        for depth in (0, 4096)
    )
    memory = quantcore_speed.Memory(1, 2, 3)
    flags = {"n_batch": 2048, "seed": 1}
    return quantcore_speed.Speed(
        "llama.cpp", "xllamacpp 1 (llama.cpp b4711)", "CPU", 2, results, memory, 0.0, flags=flags
    )


@pytest.fixture
def no_speed(monkeypatch):
    """Speed takes long and is measured in the live tests."""

    def refuse(*_arguments):
        raise engine.NoEngine("llama.cpp is not installed: pip install xllamacpp")

    monkeypatch.setattr(engine, "speeds", refuse)


def make(job):
    journey.make(job)
    return Job.objects.get()


def test_a_quant_is_made_verified_measured_and_published(ready, no_speed, leftovers):
    job = make(ready)

    assert job.error == ""
    quant = job.quant
    file = quant.files.get()
    assert file.path == "tiny-novels-7m-Q8_0.gguf"
    assert blobs.digest(blobs.path_of(file.blob_id)) == (file.blob_id, quant.file_bytes)
    assert job.plan["file_bytes"] == quant.file_bytes
    assert leftovers() == []


def test_the_hub_makes_the_file_that_the_command_line_makes(ready, no_speed, tmp_path):
    """Name and size label come from the model, not from a working folder: anyone can make the same bytes."""
    quant = make(ready).quant

    model, out = settings.DEMO_DIR / "tiny-novels-7m", tmp_path / "out.gguf"
    subprocess.run([sys.executable, "-m", "quantcore", "quantize", model, out, "--to", "Q8_0"], check=True)

    assert quant.files.get().blob_id == hashlib.sha256(out.read_bytes()).hexdigest()


def test_every_stage_and_every_change_of_state_is_in_the_log(ready, no_speed):
    job = make(ready)

    stages = [event.stage for event in job.events.filter(kind="stage")]
    assert stages == [stage.value for stage in Stage if stage != Stage.CALIBRATE]
    assert [event.text for event in job.events.filter(kind="state")] == [
        "alice asked for it.",
        "A worker took the job.",
        "Q8_0 is published.",
    ]


def test_figures_come_with_how_they_were_measured(ready, no_speed, demo):
    quant = make(ready).quant

    figures = {figure.metric: figure for figure in quant.measurements.all()}
    source = demo.measurements.get(metric=Metric.PPL)
    assert set(figures) == {Metric.PPL, Metric.BPB, Metric.PPL_INCREASE, *CLOSENESS}
    assert 0 < figures[Metric.KLD].value < 0.01
    assert 90 < figures[Metric.SAME_TOP].value < 100
    assert figures[Metric.KLD].deviation < figures[Metric.KLD].value
    assert figures[Metric.KLD].method["chunks"] == 2
    rise = figures[Metric.PPL].value - source.value
    assert figures[Metric.PPL_INCREASE].value == pytest.approx(rise, abs=1e-9)
    # Paired errors are far smaller than those of either figure.
    assert figures[Metric.PPL_INCREASE].deviation < figures[Metric.PPL].deviation / 3
    method = figures[Metric.PPL].method
    assert (method["n_ctx"], method["chunks"], method["tokens"]) == (512, 2, 1024)
    assert len(method["dataset_sha256"]) == 64
    assert figures[Metric.PPL].hardware["cpu"]
    assert figures[Metric.PPL].engine["numpy"]
    assert (method["scored_tokens"], "scored_bytes" in figures[Metric.KLD].method) == (510, False)
    bits = figures[Metric.BPB]
    expected = math.log2(figures[Metric.PPL].value) * 510 / method["scored_bytes"]
    assert (bits.value, bits.unit) == (pytest.approx(expected), "bits/byte")
    assert 0 < bits.deviation < bits.value / 10
    assert demo.measurements.get(metric=Metric.BPB).value < bits.value


def test_figures_of_closeness_come_with_their_percentiles(ready, no_speed):
    figures = {figure.metric: figure for figure in make(ready).quant.measurements.all()}

    kld, delta_p = figures[Metric.KLD].statistics, figures[Metric.DELTA_P].statistics
    order = ["max", "p999", "p99", "p95", "p90", "p75", "median", "p25", "p10", "p05", "p01", "p001", "min"]
    assert list(kld) == order
    assert list(delta_p) == ["mean", "stderr", *order]
    assert sorted(kld.values(), reverse=True) == list(kld.values())
    assert kld["min"] < figures[Metric.KLD].value < kld["max"]
    assert delta_p["min"] < delta_p["mean"] < delta_p["max"]
    assert 0 < figures[Metric.DELTA_P].value < max(delta_p["max"], -delta_p["min"])
    assert figures[Metric.DELTA_P].unit == "%"
    assert figures[Metric.PPL].statistics == {}


def test_every_figure_says_whole_how_it_was_got(ready, monkeypatch, demo):
    """The text and its hash, tokens, context, chunks, build, flags, machine and date."""
    monkeypatch.setattr(engine, "wait_for_kernels", lambda: None)
    monkeypatch.setattr(quantcore, "bench", lambda *_arguments, **_options: benched())

    quant = make(ready).quant

    by_metric = {figure.metric: figure for figure in quant.measurements.all()}
    assert set(by_metric) == {*Metric}
    quality = {"protocol", "dataset", "dataset_sha256", "dataset_bytes", "n_ctx", "chunks", "chunks_wanted"}
    quality |= {"tokens", "scored_tokens", "first_token", "arithmetic", "threads"}
    wanted = {
        Metric.PPL: quality | {"scored_bytes"},
        Metric.BPB: quality | {"scored_bytes"},
        Metric.PPL_INCREASE: quality | {"baseline", "baseline_commit"},
        **dict.fromkeys(CLOSENESS, quality | {"base", "baseline", "baseline_commit"}),
    }
    speed = {"protocol", "test", "depth", "runs", "threads", "backend", "memory", "flags"}
    for figure in (*quant.measurements.all(), quant.tensor_errors):
        if isinstance(figure, Measurement):
            assert wanted.get(figure.metric, speed) <= set(figure.method), figure.metric
        assert {"cpu", "cores", "ram", "gpus", "os"} <= set(figure.hardware)
        assert {"quanthub", "numpy", "tokenizers", "python", "build"} <= set(figure.engine)
        assert figure.created
    assert by_metric[Metric.KLD].method["scored_tokens"] == 510
    assert by_metric[Metric.KLD].method["baseline_commit"] == demo.commit


def test_what_cannot_be_measured_here_is_said_and_not_invented(ready, no_speed):
    job = make(ready)

    assert not job.quant.measurements.filter(metric__in=[Metric.PP, Metric.TG]).exists()
    assert job.events.filter(text__startswith="Speed was not measured here: llama.cpp is not").exists()
    assert [sentence[:27] for sentence in job.quant.not_measured] == ["Speed was not measured here"]


def test_the_source_is_measured_once(alice, demo, ready, no_speed, monkeypatch):
    calls = []
    measure = engine.baseline
    monkeypatch.setattr(engine, "baseline", lambda *args: calls.append(args) or measure(*args))
    make(ready)

    assert made(alice, demo, "Q4_0").quant

    assert len(calls) == 1
    assert demo.measurements.filter(metric=Metric.PPL).count() == 1
    assert demo.measurements.filter(metric=Metric.BPB).count() == 1


def test_a_damaged_base_is_measured_again(alice, demo, ready, no_speed):
    make(ready)
    (base,) = (settings.CACHE_DIR / "baselines").glob("*.kld")
    base.write_bytes(base.read_bytes()[:-1])

    assert made(alice, demo, "Q4_0").quant.measurements.filter(metric=Metric.KLD).exists()


def test_of_a_large_vocabulary_the_beginning_is_compared(ready, no_speed, settings):
    settings.BASE_BYTES = 3 << 20  # a chunk of the demo takes two megabytes

    quant = make(ready).quant

    methods = {figure.metric: figure.method for figure in quant.measurements.all()}
    assert [(methods[m]["chunks"], methods[m]["tokens"]) for m in (Metric.PPL, Metric.KLD)] == [
        (2, 1024),
        (1, 512),
    ]


def test_without_room_for_a_base_perplexity_is_measured_alone_and_the_source_once(
    alice, demo, ready, no_speed, monkeypatch
):
    def full(*_arguments):
        raise engine.WorthRetry(f"{settings.CACHE_DIR}/baselines/a.kld: needs 2.0 GB, has 1.0 GB free")

    passes = []
    perplexity = engine.perplexity
    monkeypatch.setattr(engine, "baseline", full)
    monkeypatch.setattr(engine, "perplexity", lambda *args: passes.append(args) or perplexity(*args))

    jobs = [make(ready), made(alice, demo, "Q4_0")]

    for job in jobs:
        metrics = {figure.metric for figure in job.quant.measurements.all()}
        assert metrics == {Metric.PPL, Metric.BPB, Metric.PPL_INCREASE}
        said = "KL divergence was not measured here: a.kld: needs 2.0 GB, has 1.0 GB free"
        assert job.events.filter(text=said).exists()
    assert len(passes) == 3  # the source once, each quant once


def test_a_base_is_a_jobs_own_while_it_works(demo, ready, no_speed, monkeypatch):
    """Another worker may make room meanwhile."""
    quality = engine.quality

    def gone(*arguments):
        for path in (settings.CACHE_DIR / "baselines").glob("*.kld"):
            path.unlink()
        return quality(*arguments)

    monkeypatch.setattr(engine, "quality", gone)

    assert make(ready).quant.measurements.filter(metric=Metric.KLD).exists()


def test_a_source_that_is_measured_again_has_its_newest_figure(alice, demo, ready, no_speed):
    make(ready)
    (base,) = (settings.CACHE_DIR / "baselines").glob("*.kld")
    base.unlink()

    assert made(alice, demo, "Q4_0").quant

    assert demo.measurements.filter(metric=Metric.PPL).count() == 2


def test_a_second_try_at_speed_that_fails_leaves_the_first(ready, monkeypatch):
    tries = iter([speed_of(0.6)])

    def speeds(*_arguments, deep=True):
        for found in tries:
            return found
        raise engine.WorthRetry("llama.cpp ended without a word")

    monkeypatch.setattr(engine, "speeds", speeds)

    assert make(ready).quant.measurements.get(metric=Metric.PP).value == pytest.approx(100.6)


def test_where_a_deep_context_takes_too_much_speed_is_measured_without(ready, monkeypatch):
    def speeds(*_arguments, deep=True):
        if deep:
            raise engine.WorthRetry(f"{settings.DATA_DIR}/work/x/y.gguf: llama.cpp ran out of memory")
        return speed_of(0.0)

    monkeypatch.setattr(engine, "speeds", speeds)

    quant = make(ready).quant

    assert quant.measurements.filter(metric=Metric.TG).exists()
    sentence = "Speed at depth 4096 was not measured here: y.gguf: llama.cpp ran out of memory"
    assert quant.not_measured == [sentence]
    assert Job.objects.get().events.filter(text=sentence).exists()


def test_what_took_too_much_deep_in_the_context_is_not_tried_there_again(ready, monkeypatch):
    asked = []

    def speeds(*_arguments, deep=True):
        asked.append(deep)
        if deep:
            raise engine.WorthRetry("llama.cpp was stopped after 1800 s")
        return speed_of(0.6)

    monkeypatch.setattr(engine, "speeds", speeds)

    assert make(ready).quant

    assert asked == [True, False, False]


def test_a_mistake_in_measuring_speed_does_not_lose_the_quant(ready, monkeypatch):
    def speeds(*_arguments, **_options):
        raise KeyError("samples")

    monkeypatch.setattr(engine, "speeds", speeds)

    quant = make(ready).quant

    assert quant.not_measured == ["Speed was not measured here: something went wrong in the hub itself"]


def test_a_quant_whose_predictions_are_useless_is_not_published(ready, no_speed, monkeypatch, leftovers):
    def quality(*_arguments):
        raise engine.Useless("the model's predictions are useless: its mean loss is nan")

    monkeypatch.setattr(engine, "quality", quality)

    job = make(ready)

    assert (job.state, job.quant) == (State.FAILED, None)
    assert "not fit to be published: the model's predictions are useless" in job.error
    assert not Quant.objects.exists()
    assert leftovers() == []


def test_what_is_not_possible_is_refused_before_a_matrix_is_measured(alice, demo, no_speed, monkeypatch):
    def never(*_arguments):
        raise AssertionError

    def impossible(_source, _level, importance=None, _lacking=""):
        raise engine.Refused(f"no {importance is not None}")

    monkeypatch.setattr(engine, "calibrate", never)
    monkeypatch.setattr(engine, "make_plan", impossible)

    job = made(alice, demo, "IQ2_XS")

    assert (job.state, job.stage, job.error) == (State.FAILED, Stage.CALIBRATE, "no True")


def test_old_bases_make_room_for_new_ones(settings):
    settings.BASES_BYTES, settings.BASE_BYTES = 100, 25
    folder = settings.CACHE_DIR / "baselines"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.kld").write_bytes(bytes(20))
        os.utime(folder / f"{number}.kld", (number, number))

    baselines.make_room()

    assert sorted(path.name for path in folder.iterdir()) == ["2.kld", "3.kld", "4.kld"]


def test_progress_is_stored_with_its_start_and_at_most_once_a_second(ready):
    recorder = journey.Recorder(ready)
    for done in range(1, 1000):
        recorder.tell(done, 1000, "bytes", "a file")

    kept = Job.objects.get().progress
    assert (kept["done"], kept["total"], kept["unit"], kept["item"]) == (1, 1000, "bytes", "a file")
    assert kept["started_at"]


def test_progress_that_cannot_be_stored_now_does_not_stop_the_work(ready, monkeypatch):
    def locked(*_arguments):
        raise OperationalError("database is locked")

    monkeypatch.setattr(actions, "record", locked)

    journey.Recorder(ready).tell(1, 1, "bytes", "")


def test_a_job_that_fails_after_it_was_taken_away_keeps_quiet(ready, monkeypatch):
    def be_overtaken_and_fail(*_arguments):
        actions.release(Job.objects.get(), "lost")
        raise engine.WorthRetry("the disk is full")

    monkeypatch.setattr(engine, "quantize", be_overtaken_and_fail)

    job = make(ready)

    assert (job.state, job.error) == (State.QUEUED, "")


def test_the_last_word_of_a_stage_is_always_stored(ready):
    recorder = journey.Recorder(ready)
    recorder.tell(1, 2, "bytes", "")
    recorder.tell(2, 2, "bytes", "")

    assert Job.objects.get().progress["done"] == 2


def test_a_damaged_source_is_named_and_nothing_is_published(ready, demo, leftovers):
    file = demo.files.get(path="model.safetensors")
    place = blobs.path_of(file.blob_id)
    place.chmod(0o644)
    place.write_bytes(bytes(file.blob.size))

    job = make(ready)

    assert (job.state, job.stage) == (State.FAILED, Stage.FETCH)
    assert "is damaged" in job.error
    assert leftovers() == []


def test_a_disk_too_small_for_the_quant_says_so_and_leaves_nothing(ready, leftovers):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, hard))
    try:
        job = make(ready)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert (job.state, job.stage, job.error_kind) == (State.FAILED, Stage.QUANTIZE, "retry")
    assert re.match(r"tiny-novels-7m-Q8_0\.gguf: needs 7\.\d MB, the disk has [\d,.]+ MB free$", job.error)
    assert leftovers() == []


def test_a_quant_published_by_another_job_meanwhile_is_taken_over(ready, no_speed, alice, demo):
    quant = make(ready).quant
    late = Job.objects.create(
        request=ready.request, revision=demo, level="Q8_0", recipe_fingerprint=ready.recipe_fingerprint
    )

    journey.make(actions.claim(late.pk, "worker"))

    late.refresh_from_db()
    assert (late.state, late.quant) == (State.DONE, quant)


@pytest.mark.parametrize(
    ("raised", "kind", "sentence"),
    [
        (engine.Refused("output.weight: row of 96 does not fit"), "refused", "row of 96 does not fit"),
        (engine.WorthRetry("needs 9.0 MB, has 1.0 MB free"), "retry", "needs 9.0 MB"),
        (OSError(errno.ENOSPC, "No space left on device"), "retry", "The disk is full. Once that is mended"),
        (OperationalError("database is locked"), "retry", "database did not answer"),
        (ZeroDivisionError("division by zero"), "fault", "Something went wrong in the hub itself"),
    ],
)
def test_a_failure_says_who_can_mend_it_and_leaves_nothing(
    ready, monkeypatch, leftovers, raised, kind, sentence
):
    def break_down(_source, _plan, destination, *_):
        destination.write_bytes(b"GGUF, half of it")
        raise raised

    monkeypatch.setattr(engine, "quantize", break_down)

    job = make(ready)

    assert (job.state, job.stage, job.error_kind) == (State.FAILED, Stage.QUANTIZE, kind)
    assert sentence in job.error
    assert not Quant.objects.exists()
    assert leftovers() == []


def test_a_fault_names_its_log_and_hides_the_traceback(ready, monkeypatch):
    monkeypatch.setattr(engine, "make_plan", lambda *_: 1 / 0)

    job = make(ready)

    assert f"jobs/{job.pk}-1.log" in job.error
    assert "division" not in job.error


def test_a_straggler_gives_up_without_a_word(ready, monkeypatch, leftovers):
    def be_overtaken(*_arguments):
        current = Job.objects.get()
        actions.release(current, "lost")
        actions.claim(current.pk, "another")
        return quantize(*_arguments)

    quantize = engine.quantize
    monkeypatch.setattr(engine, "quantize", be_overtaken)

    job = make(ready)

    assert (job.state, job.attempt, job.worker) == (State.RUNNING, 2, "another")
    assert not Quant.objects.exists()
    assert leftovers() == []


def speed_of(others):
    def speed(value):
        return engine.Speed(engine.Figure(value, 1.0), {"test": "pp512"}, {}, others)

    return engine.Speeds({"pp": speed(100 + others), "tg": speed(10 + others)})


@pytest.mark.parametrize(
    ("shares", "taken", "noted"),
    [([0.02], 0.02, 0), ([0.6, 0.05], 0.05, 0), ([0.6, 0.9], 0.6, 1), ([0.9, 0.6], 0.6, 1)],
)
def test_speed_is_measured_again_where_other_programs_were_in_the_way(
    ready, monkeypatch, shares, taken, noted
):
    left = list(shares)
    monkeypatch.setattr(engine, "speeds", lambda *_, deep=True: speed_of(left.pop(0)))

    job = make(ready)

    assert not left
    assert job.quant.measurements.get(metric=Metric.PP).value == pytest.approx(100 + taken)
    assert job.events.filter(text__contains="of the processors").count() == noted


@pytest.fixture
def quick_calibration(settings):
    settings.CALIBRATION_CHUNKS = 2


def made(alice, revision, level):
    job = actions.claim(actions.submit(alice, revision, [level]).jobs.get().pk, "worker")
    journey.make(job)
    job.refresh_from_db()
    return job


def test_a_level_below_three_bits_is_made_with_a_measured_importance_matrix(
    alice, demo, no_speed, quick_calibration, tmp_path
):
    job = made(alice, demo, "IQ2_XS")

    assert job.error == ""
    assert [event.stage for event in job.events.filter(kind="stage")] == [stage.value for stage in Stage]
    text = settings.CALIBRATION_TEXT
    assert job.quant.made_with["imatrix"] == {
        "dataset": "calibration.txt",
        "dataset_sha256": hashlib.sha256(text.read_bytes()).hexdigest(),
        "n_ctx": 512,
        "chunks_wanted": 2,
        "chunks": 2,
    }
    source, matrix = settings.DEMO_DIR / "tiny-novels-7m", tmp_path / "tiny-novels-7m.imatrix.gguf"
    quantcore = [sys.executable, "-m", "quantcore"]
    text = (tmp_path / "calibration.txt").write_bytes(text.read_bytes()) and "calibration.txt"
    subprocess.run([*quantcore, "imatrix", source, text, matrix, "--chunks", "2"], check=True, cwd=tmp_path)
    command = [*quantcore, "quantize", source, "out.gguf", "--to", "IQ2_XS", "--imatrix", matrix.name]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert job.quant.files.get().blob_id == hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest()


def test_one_calibration_serves_all_levels(alice, demo, no_speed, quick_calibration, monkeypatch):
    calls = []
    calibrate = engine.calibrate
    monkeypatch.setattr(engine, "calibrate", lambda *args: calls.append(args) or calibrate(*args))

    for level in ("IQ2_XXS", "IQ1_M"):
        assert made(alice, demo, level).quant

    assert len(calls) == 1


def test_a_damaged_matrix_is_measured_again(alice, demo, no_speed, quick_calibration):
    assert made(alice, demo, "IQ2_XXS").quant
    (kept,) = (settings.CACHE_DIR / "imatrices").iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])

    assert made(alice, demo, "IQ1_M").quant


def test_a_model_that_cannot_be_run_gets_what_needs_no_matrix(alice, demo, no_speed, monkeypatch):
    def refuse(*_arguments):
        raise engine.Refused("no architecture is called 'mamba'")

    monkeypatch.setattr(engine, "promised_importance", refuse)

    fine, lost = made(alice, demo, "IQ4_XS"), made(alice, demo, "IQ2_XXS")

    assert fine.quant
    assert fine.events.filter(text__contains="No importance matrix can be measured").exists()
    assert (lost.state, lost.error_kind) == (State.FAILED, "refused")
    assert lost.error.startswith("The level is noise without an importance matrix")
    assert lost.error.endswith("no architecture is called 'mamba'")
