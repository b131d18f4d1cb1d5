"""What an importance matrix looks like is said in llama-imatrix's figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from quantcore.cli import main
from quantcore.imatrix import open_imatrix
from quantcore.imatrixfiles import Sums
from quantcore.imatrixstats import entry_statistics, layer_statistics
from tests.golden.make_statistics import EXPERTS, FILES, experts

GOLDEN = Path(__file__).parents[1] / "golden"
SAID = json.loads((GOLDEN / "statistics.json").read_text())


def agrees(value: float, cell: str) -> bool:
    """Whether a value rounds to what a cell says, but for sums in 32 bits."""
    digits = len(cell.rstrip("%").partition(".")[2])
    said = float(cell.rstrip("%"))
    return abs(value - said) <= 0.5001 * 10**-digits + 1e-5 * abs(said)


def place_of(name: str, folder: Path) -> Path:
    return experts(folder / "experts.gguf") if name == EXPERTS else GOLDEN / name


@pytest.mark.parametrize("name", FILES)
def test_every_figure_is_the_one_that_llama_imatrix_prints(name, tmp_path):
    found = entry_statistics(open_imatrix(place_of(name, tmp_path)))

    said = SAID[name]["tensors"]
    assert sorted(("-" if e.layer is None else str(e.layer), e.part) for e in found) == sorted(
        (cells[0], cells[1]) for cells in said
    )
    by_place = {(cells[0], cells[1]): cells for cells in said}
    for e in found:
        cells = by_place["-" if e.layer is None else str(e.layer), e.part]
        values = [e.total, e.smallest, e.largest, e.mean, e.deviation, 100 * e.active, e.elements, e.entropy]
        values += [100 * e.entropy_share, 100 * e.z_share, e.cosine or 0]
        assert all(map(agrees, values, cells[2:])), (e, cells)


@pytest.mark.parametrize("name", FILES)
def test_tensors_stand_in_the_same_order(name, tmp_path):
    found = entry_statistics(open_imatrix(place_of(name, tmp_path)))

    assert [e.part for e in found] == [cells[1] for cells in SAID[name]["tensors"]]
    assert [f"{e.total:.2f}" for e in found] == [cells[2] for cells in SAID[name]["tensors"]]


@pytest.mark.parametrize("name", FILES)
def test_layers_have_the_means_that_llama_imatrix_prints(name, tmp_path):
    found = layer_statistics(entry_statistics(open_imatrix(place_of(name, tmp_path))))

    assert [str(layer.layer) for layer in found] == [cells[0] for cells in SAID[name]["layers"]]
    for layer, cells in zip(found, SAID[name]["layers"], strict=True):
        values = [layer.total, 100 * layer.z_share, layer.cosine or 0]
        assert all(map(agrees, values, cells[1:])), (layer, cells)


def matrix(path: Path, entries: dict[str, list[float]], count: float = 4):
    sums = Sums(4, datasets=["none"], hashes=[""])
    for name, values in entries.items():
        sums.add(name, np.array([values], dtype=np.float64), np.array([count]))
    sums.save(path)
    return path


def test_the_figures_of_a_few_columns_by_hand(tmp_path):
    path = matrix(tmp_path / "m.gguf", {"blk.7.ffn_up.weight": [4, 4, 0, 8]})

    (found,) = entry_statistics(open_imatrix(path))

    assert (found.layer, found.part, found.elements, found.cosine) == (7, "ffn_up", 4, None)
    assert (found.total, found.smallest, found.largest, found.mean) == (4, 0, 2, 1)
    assert found.deviation == pytest.approx(math.sqrt(0.5))
    assert (found.active, found.z_share) == (0.75, 0.25)
    assert (found.entropy, found.entropy_share) == (1.5, 0.75)


def test_what_cannot_be_told_is_not_made_up(tmp_path):
    """A single column has no entropy to share, zeros no direction, and other sizes no angle."""
    entries = {
        "output.weight": [4.0],
        "blk.0.ffn_up.weight": [0, 0],
        "blk.1.ffn_up.weight": [1, 1],
        "blk.2.ffn_up.weight": [1, 1, 1],
    }

    found = {e.name: e for e in entry_statistics(open_imatrix(matrix(tmp_path / "m.gguf", entries)))}

    assert found["output.weight"].entropy_share is None
    assert [found[name].cosine for name in entries] == [None] * 4
    assert (found["blk.0.ffn_up.weight"].active, found["blk.0.ffn_up.weight"].z_share) == (0, 0)
    assert layer_statistics(list(found.values()))[0].cosine is None


def test_the_verb_prints_two_tables_and_one_document(capsys):
    path = str(GOLDEN / "novels.imatrix.gguf")

    assert main(["imatrix", "--show-statistics", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["imatrix", "--show-statistics", path, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)

    assert lines[1].split()[:3] == ["5", "attn_k", "232.82"]
    assert len(lines) == 1 + 42 + 1 + 1 + 6
    assert (document["entries"], len(document["tensors"]), len(document["layers"])) == (42, 42, 6)
    assert set(document["tensors"][0]) == {
        *("name", "layer", "sum", "min", "max", "mean", "stddev", "active", "elements"),
        *("entropy", "entropy_normalized", "z_share", "cosine_previous"),
    }
    assert document["layers"][0]["cosine_previous"] is None


def test_entries_that_no_token_reached_are_left_out_with_a_note(tmp_path, capsys):
    path = matrix(tmp_path / "m.gguf", {"output.weight": [0.0, 0.0]}, count=0)

    assert main(["imatrix", "--show-statistics", str(path), "--json"]) == 0

    shown = capsys.readouterr()
    assert json.loads(shown.out)["tensors"] == []
    assert shown.err == "note: no token reached 1 of 1 entries, which are left out\n"


@pytest.mark.parametrize("arguments", [["a", "b"], [], ["a", "--show-statistics", "m.gguf"]])
def test_measuring_and_showing_are_not_mixed_up(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(["imatrix", *arguments])

    assert left.value.code == 2
    assert "imatrix: error: " in capsys.readouterr().err


def test_what_is_no_matrix_is_named(tmp_path, capsys):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")

    assert main(["imatrix", "--show-statistics", str(tmp_path / "m.gguf")]) == 1

    assert "m.gguf: " in capsys.readouterr().err
