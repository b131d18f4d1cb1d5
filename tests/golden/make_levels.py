"""Ask llama-quantize which type each tensor of each level gets; writes levels.json.xz beside this file.

    python -m tests.golden.make_levels PATH_TO_LLAMA_QUANTIZE [MODEL ...]

The models are headers over holes, so this needs no weights and little disk. Each level is asked for without
and with an importance matrix, whose contents do not matter to a dry run. The models named are asked for anew,
all others kept.
"""

from __future__ import annotations

import json
import lzma
import re
import struct
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
GOLDEN = Path(__file__).with_name("levels.json.xz")
Types = dict[str, dict[str, list[str]]]


def read_golden() -> Types:
    """Return, by model and level, the types in file order: without an importance matrix, and with one.

    Nothing stands where llama-quantize has no type for a tensor.
    """
    types: Types = json.loads(lzma.decompress(GOLDEN.read_bytes()))
    return types


def write_hole(path: Path, model: str) -> list[TensorInfo]:
    """Write a header whose data is a hole."""
    infos = tensor_infos(shapes(model))
    header = encode_header(metadata(model), infos)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(-(-info.nbytes // 32) * 32 for info in infos))
    return infos


def write_imatrix(path: Path) -> None:
    """Write the smallest importance matrix there is, of the older kind."""
    name = b"blk.0.x"
    path.write_bytes(struct.pack("<ii7siif", 1, len(name), name, 1, 1, 1.0))


def types_of(tool: str, arguments: list[str | Path]) -> dict[str, str] | None:
    """Return the type of each tensor by llama-quantize's dry run, or None where one has no type that fits."""
    done = subprocess.run([tool, "--dry-run", *arguments], capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    if done.returncode and "no tensor type fallback" in told:
        return None
    if done.returncode:
        raise SystemExit(f"{arguments}: {told[-600:]}")
    matches = (LINE.match(line.strip()) for line in told.splitlines())
    return {match[1]: (match[3] or match[2]).upper() for match in matches if match}


def ask(tool: str, model: str, folder: Path) -> dict[str, list[str]]:
    path, imatrix = folder / "hole.gguf", folder / "imatrix.dat"
    write_imatrix(imatrix)
    names = sorted((info.name for info in write_hole(path, model)), key=file_order)
    found = {}
    for level in recipes():
        plain = types_of(tool, [path, level])
        weighted = types_of(tool, ["--imatrix", imatrix, path, level])
        found[level] = [
            " ".join(types[name] for name in names) if types else "" for types in (plain, weighted)
        ]
    return found


def main(tool: str, *models: str) -> None:
    golden = read_golden() if models else {}
    with tempfile.TemporaryDirectory() as folder:
        for model in models or MODELS:
            golden[model] = ask(tool, model, Path(folder))
    text = json.dumps({model: golden[model] for model in MODELS}, indent=1)
    GOLDEN.write_bytes(lzma.compress(text.encode(), preset=9))


if __name__ == "__main__":
    main(*sys.argv[1:])
