"""Hold our rules to the snapshots of llama.cpp's own test of type selection.

    python -m tests.golden.check_snapshots LLAMA_CPP/tests/snapshots

A snapshot names, for every level, the tensors of a model that get another type than the base. Not part of the
suite, since the snapshots are llama.cpp's; `levels.json.xz` has the same models, as llama-quantize planned
them. Tensors whose rows do not fit their type are left out: snapshots know no shapes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from quantcore.plan import Options, make_plan
from tests.quantcore.test_plan import source_of

MODELS = {
    "deepseek-v3.1": "DeepSeek-V3.1",
    "gemma-3-4b-it": "gemma-3-4b-it",
    "glm-4.6v": "GLM-4.6V",
    "gpt-oss-120b": "gpt-oss-120b",
    "meta-llama-3.1-70b-instruct": "Llama-3.1-70B",
    "nvidia-nemotron-3-nano-30b-a3b": "Nemotron-Nano-3-30B-A3B",
    "qwen3-0.6b": "Qwen3-0.6B",
    "qwen3-14b": "Qwen3-14B",
    "qwen3-coder-next": "Qwen3-Coder-Next",
    "qwen3.5-397b-a17b": "Qwen3.5-397B-A17B",
    "qwen3.6-27b": "Qwen3.6-27B",
    "step-3.5-flash": "Step-3.5-Flash",
}
LEVEL = re.compile(r"\[(\w+)\] (\w+)")
Types = dict[str, tuple[str, dict[str, str]]]


def read_snapshot(path: Path) -> Types:
    """Return for each level its base type, and the type of every tensor that has another."""
    found: Types = {}
    types: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if match := LEVEL.match(line):
            types = {}
            found[match[1]] = match[2].upper(), types
        elif line.strip() and not line.startswith("#"):
            name, kind = line.split()
            types[name] = kind.upper()
    return found


def differences(model: str, snapshot: Types) -> list[str]:
    """Return in words what differs."""
    source, found = source_of(model), []
    for level, (base, types) in snapshot.items():
        for tensor in make_plan(source, level, Options(dry_run=True)).tensors:
            kept = tensor.reason.startswith(("one-dimensional", "not a weight", "kept"))
            wanted = types.get(tensor.name, base)
            if not kept and "is not a multiple of" not in tensor.reason and tensor.type != wanted:
                found.append(f"{model} {level} {tensor.name}: {tensor.type}, llama.cpp {wanted}")
    return found


def main(folder: str) -> None:
    failed = False
    for name, model in MODELS.items():
        snapshot = read_snapshot(Path(folder) / f"{name}.schema")
        listed = sum(len(types) for _, types in snapshot.values())
        found = differences(model, snapshot)
        told = [f"{model}: {len(snapshot)} levels, {listed} tensors named, {len(found)} differ", *found[:5]]
        sys.stdout.write("\n".join(told) + "\n")
        failed = failed or bool(found)
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1])
