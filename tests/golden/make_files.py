"""Freeze what llama.cpp's tools make of files: parts, fewer layers, other metadata, sizes of dry runs.

    python -m tests.golden.make_files FOLDER_OF_LLAMA_QUANTIZE_AND_LLAMA_GGUF_SPLIT

Writes files.json beside this script: for each case the SHA-256 of every file, in order of their names; for
dry runs the bytes of all tensors in MiB, as the tool prints them, and whether an importance matrix is needed.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.quantcore.models import small_llama

SIZES = {"layers": 6, "width": 256, "vocabulary": 96}
PARTS_OF_SOURCE = "20"  # tensors in each part of the source that comes in parts
NAMES = (
    *("--override-kv", "general.name=str:Otto", "--override-kv", "llama.rope.freq_base=float:123.5"),
    *("--override-kv", "general.file_type=int:99", "--override-kv", "new.switch=bool:true"),
    *("--override-kv", "general.name=str:Anna"),
)


@dataclass(frozen=True)
class Case:
    """What is asked for: `options` are llama-quantize's and ours, `split` is llama-gguf-split's and ours."""

    level: str
    options: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    source: str = "whole"


CASES = {
    "first layer cut": Case("Q4_K_M", ("--prune-layers", "0")),
    "middle layers cut": Case("Q4_K_M", ("--prune-layers", "4,1,2")),
    "last layer cut": Case("Q3_K_M", ("--prune-layers", "5")),
    "metadata": Case("Q8_0", NAMES),
    "metadata that levels go by": Case("Q5_K_M", ("--override-kv", "llama.block_count=int:16")),
    "layers cut, metadata": Case("Q8_0", ("--prune-layers", "3", *NAMES)),
    "parts merged": Case("Q8_0", source="parts"),
    "parts kept": Case("Q4_K_M", ("--keep-split",), source="parts"),
    "parts kept, layer cut, metadata": Case(
        "Q8_0", ("--keep-split", "--prune-layers", "2", *NAMES), source="parts"
    ),
    "parts kept of one file": Case("Q8_0", ("--keep-split",)),
    "last part cut": Case("Q8_0", ("--keep-split", "--prune-layers", "4,5"), source="parts"),
    "by number": Case("Q8_0", split=("--split-max-tensors", "9")),
    "by number, one part": Case("Q8_0", split=("--split-max-tensors", "500")),
    "by size": Case("Q8_0", split=("--split-max-size", "1M")),
    "by size, layers cut": Case("Q4_K_M", ("--prune-layers", "0,1"), split=("--split-max-size", "1M")),
}
DRY = {
    "Q4_K_M": Case("Q4_K_M"),
    "Q4_K_M, layers cut": Case("Q4_K_M", ("--prune-layers", "0,4")),
    "IQ2_XS": Case("IQ2_XS"),
    "Q2_K_S": Case("Q2_K_S"),
    "Q2_K": Case("Q2_K"),
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def files(tools: Path, case: Case, source: Path, folder: Path) -> list[str]:
    made = folder / "made.gguf"
    run(tools / "llama-quantize", *case.options, source, made, case.level)
    if case.split:
        run(tools / "llama-gguf-split", *case.split, made, folder / "parts")
        made.unlink()
    return [sha256(path) for path in sorted(folder.iterdir())]


def dry(tools: Path, case: Case, source: Path) -> dict[str, object]:
    said = run(tools / "llama-quantize", "--dry-run", *case.options, source, case.level)
    size = re.search(r"quant size += +([\d.]+) MiB", said)
    assert size is not None, said
    return {"MiB": float(size[1]), "needs imatrix": "will require an imatrix" in said}


def main(tools: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        whole = small_llama(Path(name) / "whole.gguf", **SIZES)
        run(tools / "llama-gguf-split", "--split-max-tensors", PARTS_OF_SOURCE, whole, Path(name) / "whole")
        parts = sorted(Path(name).glob("whole-*"))
        sources = {"whole": whole, "parts": parts[0]}
        golden: dict[str, object] = {"sources": [sha256(path) for path in (whole, *parts)]}
        for title, case in CASES.items():
            with tempfile.TemporaryDirectory() as made:
                golden[title] = files(tools, case, sources[case.source], Path(made))
        golden["dry"] = {title: dry(tools, case, whole) for title, case in DRY.items()}
    Path(__file__).with_name("files.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
