"""The command line: one JSON document, one line of error, exit status 0, 1 or 2."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from quantcore.cli import main
from quantcore.cli._terminal import ProgressBar
from quantcore.ggufkv import ValueType, array, f32, string
from quantcore.progress import Progress
from tests.quantcore.kernels import HAVE_NUMBA, compiled, needs_numba
from tests.quantcore.models import llama_metadata, small_llama, tensor_infos, write_gguf


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_llama(tmp_path / "small.gguf")


def document(capsys, *arguments: object) -> dict:
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_describes_the_model(model, capsys):
    found = document(capsys, "inspect", model, "--json")

    assert {
        "format",
        "architecture",
        "name",
        "parameters",
        "file_bytes",
        "bpw",
        "metadata",
        "tensors",
    } <= set(found)
    assert found["architecture"] == "llama"
    assert found["file_bytes"] == model.stat().st_size
    assert found["tensors"][0] == {
        "name": "token_embd.weight",
        "shape": [256, 64],
        "type": "F16",
        "nbytes": 32768,
    }


def test_plan_reads_headers_only(model, capsys):
    """A file whose data part is a hole gives the same plan as the whole file."""
    whole = document(capsys, "plan", model, "--to", "Q4_K_M", "--json")
    size = model.stat().st_size
    with model.open("r+b") as file:
        file.truncate(2500)
        file.truncate(size)

    assert document(capsys, "plan", model, "--to", "Q4_K_M", "--json") == whole


def test_quantize_gives_what_plan_said(model, capsys, tmp_path):
    plan = document(capsys, "plan", model, "--to", "q4_k_m", "--json")

    made = document(
        capsys, "quantize", model, tmp_path / "out.gguf", "--to", "Q4_K_M", "--threads", 1, "--json"
    )

    assert made["tensors"] == plan["tensors"]
    assert made["file_bytes"] == (tmp_path / "out.gguf").stat().st_size == plan["file_bytes"]
    assert len(made["sha256"]) == 64
    assert made["seconds"] > 0


def test_options_reach_the_plan(model, capsys):
    changes = ["--tensor-type", "ffn_up=q8_0", "--output-tensor-type", "f16"]

    found = document(capsys, "plan", model, "--to", "Q4_K_M", *changes, "--json")

    types = {tensor["name"]: tensor["type"] for tensor in found["tensors"]}
    assert types["blk.1.ffn_up.weight"] == "Q8_0"
    assert types["output.weight"] == "F16"


@pytest.mark.parametrize("verb", ["inspect", "plan"])
def test_people_get_text(model, capsys, verb):
    arguments = [verb, str(model)] + (["--to", "Q8_0"] if verb == "plan" else [])

    assert main(arguments) == 0

    assert "blk.1.ffn_down.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere.gguf"], "nowhere.gguf: No such file"),
        (["quantize", "MODEL", "MODEL", "--to", "Q8_0"], "is a file of the source"),
        (["quantize", "MODEL", "missing/out.gguf", "--to", "Q8_0"], "the folder missing does not exist"),
    ],
)
def test_failures_are_one_line_and_status_1(model, capsys, arguments, message):
    given = [str(model) if argument == "MODEL" else argument for argument in arguments]

    assert main(given) == 1

    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_the_systems_own_errors_are_told_in_words(model, capsys):
    """The file comes first, as in ours, and no number."""
    name = model.with_name("x" * 300)

    assert main(["quantize", str(model), str(name), "--to", "Q8_0"]) == 1

    assert capsys.readouterr().err == f"quantcore quantize: {name}: File name too long\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["plan", "x.gguf"],
        ["quantize", "x", "y", "--to", "Q8_0", "--threads", "0"],
        ["plan", "x", "--to", "Q8_0", "--tensor-type", "nonsense"],
        ["plan", "x", "--to", "Q8_0", "--tensor-type", "a=Q99"],
        ["plan", "x", "--to", "Q9"],
        ["quantize", "x", "y", "--to", "Q9"],
    ],
)
def test_bad_usage_is_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as raised:
        main(arguments)

    assert raised.value.code == 2
    assert "usage: quantcore" in capsys.readouterr().err


def test_an_unknown_level_is_answered_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "x", "--to", "Q9"])

    assert "--to: no level is called 'Q9'; there are F32, F16, BF16, Q8_0" in capsys.readouterr().err


def test_the_version_is_that_of_the_distribution(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["--version"])

    assert raised.value.code == 0
    assert capsys.readouterr().out == f"quantcore {version('quanthub')}\n"


def test_a_pattern_that_matches_nothing_is_told(model, capsys):
    assert main(["plan", str(model), "--to", "Q8_0", "--tensor-type", "ffn_upp=Q4_0"]) == 0

    noted = "note: the pattern 'ffn_upp' matches no tensor and changes nothing\n"
    assert capsys.readouterr().err == noted


def test_the_installed_command_runs():
    done = subprocess.run(
        [Path(sys.executable).with_name("quantcore"), "--help"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0
    assert "quantize" in done.stdout


def test_a_closed_pipe_is_no_traceback(model):
    """`quantcore inspect MODEL | head -1` ends quietly."""
    read, write = os.pipe()
    os.close(read)

    command = [sys.executable, "-m", "quantcore", "inspect", model]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)

    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("backend", ["numpy", "auto", pytest.param("jit", marks=needs_numba)])
def test_every_backend_makes_the_same_file(model, capsys, tmp_path, backend):
    of_numpy = ["--to", "Q4_K_M", "--backend", "numpy", "--json"]
    reference = document(capsys, "quantize", model, tmp_path / "numpy.gguf", *of_numpy)
    compiled()

    found = document(
        capsys, "quantize", model, tmp_path / "out.gguf", "--to", "Q4_K_M", "--backend", backend, "--json"
    )

    expected = "numpy" if backend == "numpy" or not HAVE_NUMBA else "jit"
    assert (found["backend"], found["sha256"]) == (expected, reference["sha256"])


def test_a_backend_that_is_missing_is_refused(model, capsys, tmp_path):
    out = tmp_path / "out.gguf"

    assert main(["quantize", str(model), str(out), "--to", "Q8_0", "--backend", "cuda", "--json"]) == 1

    assert "pip install cupy-cuda12x" in capsys.readouterr().err
    assert not out.exists()


def test_numbers_that_json_lacks_are_null(tmp_path, capsys):
    metadata = {
        **llama_metadata(),
        "llama.odd": f32(float("nan")),
        "llama.list": array(ValueType.FLOAT32, [1, float("inf")]),
    }
    path = write_gguf(tmp_path / "odd.gguf", metadata, [])

    found = document(capsys, "inspect", path, "--json")

    assert (found["metadata"]["llama.odd"], found["metadata"]["llama.list"]) == (None, [1.0, None])


def test_names_cannot_steer_the_terminal(tmp_path, capsys):
    """Escape codes, line breaks and bytes that are no text are shown as one strange letter each."""
    metadata = {**llama_metadata(), "general.name": string("a\x1b[31m\udcff")}
    path = write_gguf(tmp_path / "odd.gguf", metadata, tensor_infos({"x\ny.weight": (2, 4)}))

    assert main(["inspect", str(path)]) == 0

    shown = capsys.readouterr().out
    assert shown.startswith("a\ufffd[31m\ufffd: llama")
    assert "x\ufffdy.weight" in shown


def test_the_bar_stays_within_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream = io.StringIO()

    ProgressBar(stream)(Progress("quantize", 1, 2, "weights", 1.0, 9.0, "blk.0.ffn_down.weight" * 9, 3, 9))

    assert len(stream.getvalue().removeprefix("\r\x1b[K")) == 59
    assert "50% 3/9, 9.0 s left bl" in stream.getvalue()
