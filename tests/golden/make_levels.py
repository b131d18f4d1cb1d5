"""Ask llama-quantize which type each tensor of each level gets; writes levels.json beside this file.

    python -m tests.golden.make_levels PATH_TO_LLAMA_QUANTIZE

The models are headers over holes, so this needs no weights and little disk.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from quantcore.containers.gguf import encode_header
from quantcore.recipes import recipes
from quantcore.tensorrules import file_order
from quantcore.tensors import TensorInfo
from tests.golden.levels_models import MODELS, metadata, shapes
from tests.quantcore.models import tensor_infos

LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) .*type = +(\S+), size = .*?(?:\((\w+)\))?$")


def write_hole(path: Path, model: str) -> list[TensorInfo]:
    """Write a header whose data is a hole."""
    infos = tensor_infos(shapes(model))
    header = encode_header(metadata(model), infos)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(-(-info.nbytes // 32) * 32 for info in infos))
    return infos


def types_of(tool: str, path: Path, level: str) -> dict[str, str]:
    """Return the type of each tensor by llama-quantize's dry run."""
    done = subprocess.run([tool, "--dry-run", path, level], capture_output=True, text=True, check=True)
    found = {}
    for line in (done.stdout + done.stderr).splitlines():
        match = LINE.match(line.strip())
        if match:
            found[match[1]] = (match[3] or match[2]).upper()
    return found


def main(tool: str) -> None:
    golden: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            path = Path(folder) / "hole.gguf"
            names = sorted((info.name for info in write_hole(path, model)), key=file_order)
            golden[model] = {}
            for level in recipes():
                types = types_of(tool, path, level)
                golden[model][level] = " ".join(types[name] for name in names)
            path.unlink()
    Path(__file__).with_name("levels.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
