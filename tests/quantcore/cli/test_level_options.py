"""Options that change a level, as llama-quantize knows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantcore.cli import main
from quantcore.sources.gguf import open_gguf
from tests.quantcore.models import small_llama
from tests.quantcore.test_imatrix import of_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_llama(tmp_path / "small.gguf")


@pytest.fixture
def imatrix(tmp_path: Path, model: Path) -> Path:
    return of_model(tmp_path / "small.imatrix", model).path


def planned(capsys, *arguments: object) -> dict:
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    document: dict = json.loads(capsys.readouterr().out)
    document["types"] = {tensor["name"]: tensor["type"] for tensor in document["tensors"]}
    return document


def test_a_level_may_be_given_by_its_number(model, capsys):
    assert planned(capsys, model, "--to", "15")["level"] == "Q4_K_M"
    assert planned(capsys, model, "--to", "copy")["types"]["output.weight"] == "F16"


def test_types_of_tensors_may_stand_in_a_file(model, capsys, tmp_path):
    """What is given first wins, in a file or not."""
    listed = tmp_path / "types.txt"
    listed.write_text("ffn_up=q5_0 ffn_down=q8_0\nattn_v=q6_k\n")
    given = ["--tensor-type", "ffn_down=q4_0", "--tensor-type-file", listed]

    types = planned(capsys, model, "--to", "Q4_K_S", *given)["types"]

    found = [types[f"blk.1.{part}.weight"] for part in ("ffn_up", "ffn_down", "attn_v")]
    assert found == ["Q5_0", "Q4_0", "Q6_K"]


@pytest.mark.parametrize(
    ("text", "message"), [("ffn_up", "'ffn_up' is not REGEX=TYPE"), (None, "No such file"), ("a=q9", "'Q9'")]
)
def test_a_bad_file_of_types_is_bad_usage(tmp_path, capsys, text, message):
    listed = tmp_path / "types.txt"
    if text is not None:
        listed.write_text(text)

    with pytest.raises(SystemExit) as raised:
        main(["plan", "x", "--to", "Q8_0", "--tensor-type-file", str(listed)])

    assert raised.value.code == 2
    told = capsys.readouterr().err
    assert str(listed) in told
    assert message in told


def test_the_output_may_be_left_as_it_is(model, capsys):
    assert planned(capsys, model, "--to", "Q4_0", "--leave-output-tensor")["types"]["output.weight"] == "F16"


def test_a_plan_without_importance_says_what_is_lacking(model, capsys):
    """The size is told all the same; making the file is refused."""
    assert "importance matrix" in planned(capsys, model, "--to", "Q2_K_S")["warnings"][-1]

    assert main(["quantize", str(model), "out.gguf", "--to", "Q2_K_S"]) == 1

    assert "is noise without an importance matrix" in capsys.readouterr().err


def test_a_file_is_made_with_importance(model, imatrix, capsys, tmp_path):
    made = tmp_path / "out.gguf"
    arguments = ["quantize", model, made, "--to", "Q2_K_S", "--imatrix", imatrix, "--backend", "numpy"]

    assert main(list(map(str, arguments))) == 0

    assert made.stat().st_size > 0
    source = open_gguf(made)
    assert source.get("quantize.imatrix.file") == str(imatrix)
    assert source.get("quantize.imatrix.entries_count") == 14


def test_importance_may_be_used_for_some_tensors_only(model, imatrix, capsys):
    found = planned(capsys, model, "--to", "Q2_K", "--imatrix", imatrix, "--include-weights", "attn_v")

    assert found["added"]["quantize.imatrix.entries_count"] == 2


def test_tensors_are_left_out_or_taken_in_not_both(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "x", "--to", "Q2_K", "--include-weights", "a", "--exclude-weights", "b"])

    assert "not allowed with" in capsys.readouterr().err


def test_what_is_no_importance_matrix_is_named(model, capsys):
    assert main(["plan", str(model), "--to", "Q2_K", "--imatrix", str(model)]) == 1

    told = capsys.readouterr().err
    assert f"{model}: not an importance matrix: imatrix.datasets" in told
    assert len(told.splitlines()) == 1


def test_people_are_told_memory_and_time(model, capsys):
    assert main(["plan", str(model), "--to", "Q8_0"]) == 0

    assert "of memory, about " in capsys.readouterr().out.splitlines()[-1]
