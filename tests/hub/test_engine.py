"""The door to quantcore: its errors, levels and plans in the hub's words."""

import shutil

import numpy as np
import pytest

import quantcore
from hub import engine, previews
from hub.engine import sources
from hub.layout import lay_out
from quantcore import errors
from quantcore.evaluate import speed
from quantcore.recipes import recipes


@pytest.mark.parametrize(
    ("theirs", "ours", "kind"),
    [
        (errors.InputError, engine.Refused, "refused"),
        (errors.UnreadableFile, engine.Refused, "refused"),
        (errors.NeedsCalibration, engine.Refused, "refused"),
        (errors.UselessPredictions, engine.Useless, "refused"),
        (errors.NotEnoughSpace, engine.WorthRetry, "retry"),
        (errors.Cancelled, engine.WorthRetry, "retry"),
        (errors.MissingEngine, engine.NoEngine, "refused"),
        (errors.QuantcoreError, engine.EngineError, "fault"),
    ],
)
def test_an_error_says_who_can_mend_it(theirs, ours, kind):
    with pytest.raises(engine.EngineError) as caught, engine.translated():
        raise theirs("blk.0.attn_k: too short")

    assert (type(caught.value), caught.value.kind) == (ours, kind)
    assert str(caught.value) == "blk.0.attn_k: too short"


def test_a_bug_stays_a_bug():
    with pytest.raises(ZeroDivisionError), engine.translated():
        raise ZeroDivisionError


def test_levels_come_largest_first_with_what_the_pages_show():
    levels = engine.levels()

    names = [level.name for level in levels]
    assert {"Q2_K", "Q4_K_M", "Q8_0"} <= set(names)
    assert names.index("F16") < names.index("Q8_0") < names.index("Q4_K_M") < names.index("Q2_K")
    assert all(level.title and level.summary and level.family for level in levels)


def test_every_level_is_offered():
    assert [level.name for level in engine.levels()] == list(recipes())
    assert {level.name for level in engine.levels() if level.needs_importance} >= {
        "IQ1_S",
        "IQ2_XS",
        "Q2_K_S",
    }


def test_a_preview_with_an_importance_matrix_is_exact(demo, tmp_path):
    source = engine.open_source(lay_out(demo, tmp_path))
    engine.calibrate(source, tmp_path / "it.gguf", lambda _progress: None)
    matrix = engine.open_importance(demo, tmp_path / "it.gguf")

    for level in ("IQ2_XS", "IQ4_XS", "Q2_K_S"):
        plan = engine.make_plan(source, level, matrix)
        assert previews.preview(demo, level).file_bytes == plan.file_bytes
        assert (
            engine.quantize(source, plan, tmp_path / level, lambda _: None, matrix).file_bytes
            == plan.file_bytes
        )


def test_levels_that_need_importance_are_refused_where_it_cannot_be_measured(demo, monkeypatch, settings):
    def refuse(*_arguments):
        raise engine.Refused("no architecture is called 'mamba'")

    monkeypatch.setattr(engine, "promised_importance", refuse)
    shutil.rmtree(settings.CACHE_DIR / "previews")

    with pytest.raises(engine.Refused, match=r"noise without an importance matrix.*'mamba'"):
        previews.preview(demo, "IQ2_XS")
    assert previews.preview(demo, "IQ4_XS").file_bytes


def test_a_level_that_gives_a_model_nothing_new_is_told(demo):
    """The demo has no experts: what is left of MXFP4_MOE is Q8_0."""
    assert previews.preview(demo, "MXFP4_MOE").same_as == "Q8_0"
    assert previews.preview(demo, "Q8_0").same_as == ""


def test_a_fingerprint_changes_with_level_and_options():
    plain = engine.fingerprint("Q4_K_M")

    assert plain == engine.fingerprint("Q4_K_M", {})
    assert len({plain, engine.fingerprint("Q8_0"), engine.fingerprint("Q4_K_M", {"pure": True})}) == 3


def test_a_preview_is_the_plan_and_needs_no_file_the_second_time(demo, monkeypatch):
    first = previews.preview(demo, "Q8_0")
    monkeypatch.setattr(engine, "open_source", lambda _path: pytest.fail("the file was opened again"))

    assert previews.preview(demo, "Q8_0") == first
    assert previews.preview(demo, "Q2_K").file_bytes < first.file_bytes < demo.file_bytes


def test_a_preview_of_an_unknown_level_is_refused(demo):
    with pytest.raises(engine.Refused, match="Q9"):
        previews.preview(demo, "Q9")


def test_headers_tell_what_the_catalog_shows(demo, settings):
    found = engine.inspect(settings.DEMO_DIR / "tiny-novels-7m")

    assert (found.architecture, found.source_format, found.tensor_type) == ("llama", "huggingface", "F16")
    assert (found.parameters, found.n_ctx_train) == (6_819_072, 512)
    assert found.metadata["tokenizer.ggml.tokens"] == "(4,096 items)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.float32("nan"), "nan"),
        (float("inf"), "inf"),
        ("a\0b\ud800", "a\ufffdb?"),
        ([np.uint32(7), True, None], [7, True, None]),
    ],
)
def test_metadata_that_json_cannot_hold_is_shown_as_text(value, shown):
    assert sources._shown(value) == shown


def test_each_engine_that_measures_speed_is_named_once(monkeypatch, tmp_path):
    found = speed.Speed(
        engine="llama.cpp",
        engine_version="xllamacpp 2026.10 (llama.cpp b4711)",
        backend="CPU",
        threads=2,
        results=(speed.SpeedTest("pp512", 9.0, 1.0, 5, ()), speed.SpeedTest("tg128", 3.0, 1.0, 5, ())),
        memory=speed.Memory(1, 2, 3),
    )
    monkeypatch.setattr(quantcore, "bench", lambda *_args, **_options: found)

    speeds = engine.speeds(tmp_path, lambda _progress: None)

    assert set(speeds.of) == {"pp", "tg"}

    assert speeds.of["tg"].figure.value == 3.0
    assert speeds.of["tg"].engine == {**engine.measured_with(), "xllamacpp": "2026.10 (llama.cpp b4711)"}
    assert set(engine.versions()) == {"quanthub", "numpy", "gguf", "tokenizers"}


def test_speeds_deep_in_the_context_stand_beside_the_others(monkeypatch, tmp_path):
    """Each with its depth and the memory that was measured, and a sentence for each that is lacking."""
    asked = {}
    deep = [speed.SpeedTest("pp512 @ d4096", 5.0, 1.0, 5, (), 4096)]
    found = speed.Speed(
        *("llama.cpp", "xllamacpp 1", "CPU", 2),
        results=(speed.SpeedTest("tg128", 3.0, 1.0, 5, ()), *deep),
        memory=speed.Memory(1, 2, None, n_ctx=4864),
        not_measured=(
            speed.NotMeasured("llama.cpp", "tg128 @ d4096", "it cannot go back"),
            speed.NotMeasured("vLLM", "", "vLLM needs a CUDA card"),
        ),
    )
    monkeypatch.setattr(quantcore, "bench", lambda *_args, **options: asked.update(options) or found)

    speeds = engine.speeds(tmp_path, lambda _progress: None)

    assert (asked["depths"], asked["limit"]) == ((0, 4096), 3600)
    assert (speeds.of["tg"].method["depth"], speeds.of["pp_deep"].method["depth"]) == (0, 4096)
    assert speeds.of["pp_deep"].method["memory"]["n_ctx"] == 4864
    assert speeds.missed == (
        "Speed at tg128 @ d4096 was not measured here: it cannot go back",
        "Speed in vLLM was not measured here: vLLM needs a CUDA card",
    )
    engine.speeds(tmp_path, lambda _progress: None, deep=False)
    assert asked["depths"] == (0,)


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "notes.gguf").write_bytes(b"Dear diary")

    with pytest.raises(engine.Refused, match=r"notes\.gguf"):
        engine.inspect(tmp_path / "notes.gguf")
