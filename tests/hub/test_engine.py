"""The door to quantcore: its errors, levels and plans in the hub's words."""

import pytest

from hub import engine
from quantcore import errors


@pytest.mark.parametrize(
    ("theirs", "ours", "kind"),
    [
        (errors.InputError, engine.Refused, "refused"),
        (errors.UnreadableFile, engine.Refused, "refused"),
        (errors.NeedsCalibration, engine.Refused, "refused"),
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


def test_levels_come_smallest_first_with_what_the_pages_show():
    levels = engine.levels()

    assert {"Q2_K", "Q4_K_M", "Q8_0"} <= {level.name for level in levels}
    assert [level.bits for level in levels] == sorted(level.bits for level in levels)
    assert all(level.title and level.summary and level.family for level in levels)


def test_a_fingerprint_changes_with_whatever_changes_the_bytes():
    plain = engine.fingerprint("Q4_K_M")

    assert plain == engine.fingerprint("Q4_K_M", {})
    assert len({plain, engine.fingerprint("Q8_0"), engine.fingerprint("Q4_K_M", {"pure": True})}) == 3


def test_a_preview_is_the_plan_and_needs_no_file_the_second_time(demo, monkeypatch):
    first = engine.preview(demo, "Q8_0")
    monkeypatch.setattr(engine, "open_source", lambda _path: pytest.fail("the file was opened again"))

    assert engine.preview(demo, "Q8_0") == first
    assert engine.preview(demo, "Q2_K").file_bytes < first.file_bytes < demo.file_bytes


def test_a_preview_of_an_unknown_level_is_refused(demo):
    with pytest.raises(engine.Refused, match="Q9"):
        engine.preview(demo, "Q9")


def test_headers_tell_what_the_catalog_shows(demo, settings):
    found = engine.inspect(settings.DEMO_DIR / "tiny-novels-7m")

    assert (found.architecture, found.source_format, found.tensor_type) == ("llama", "huggingface", "F16")
    assert (found.parameters, found.n_ctx_train) == (6_819_072, 512)
    assert found.metadata["tokenizer.ggml.tokens"] == "(4,096 items)"


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "notes.gguf").write_bytes(b"Dear diary")

    with pytest.raises(engine.Refused, match=r"notes\.gguf"):
        engine.inspect(tmp_path / "notes.gguf")
