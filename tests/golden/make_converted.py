"""Freeze what llama.cpp's converter makes of small models: the SHA-256 of each file.

    python -m tests.golden.make_converted FOLDER_OF_LLAMA_CPP PYTHON_THAT_RUNS_ITS_CONVERTER

Writes converted.json beside this script. Models are those of `tests.quantcore.convert`, which must not change
without the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.quantcore.convert.families import write_model, write_seeing

GOLDEN = Path(__file__).with_name("converted.json")
# Family and the type that its weights are stored as, which the file has too.
CASES = tuple(
    (family, dtype) for family in ("gemma2", "gemma3", "gemma3, seeing") for dtype in ("F32", "F16", "BF16")
)


def write_case(directory: Path, family: str, dtype: str) -> Path:
    """Write the model of a case, always under the same name, which goes into the file."""
    if family == "gemma3, seeing":
        write_seeing(directory / "model", dtype)
    else:
        write_model(directory / "model", family, dtype)
    return directory / "model"


def main(folder: Path, python: str) -> None:
    found = {}
    script = folder / "convert_hf_to_gguf.py"
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for family, dtype in CASES:
        with tempfile.TemporaryDirectory() as made:
            out = Path(made) / "model.gguf"
            directory = write_case(Path(made), family, dtype)
            options = ["--outfile", str(out), "--outtype", dtype.lower()]
            subprocess.run(
                [python, str(script), str(directory), *options], check=True, env=alone, capture_output=True
            )
            found[f"{family} {dtype}"] = hashlib.sha256(out.read_bytes()).hexdigest()
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
