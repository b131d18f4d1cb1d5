"""Freeze what llama.cpp makes of a small gpt-oss: its converter's files, and those of llama-quantize.

    python -m tests.golden.make_gptoss LLAMA_CPP LLAMA_QUANTIZE

LLAMA_CPP is the source, whose converter needs torch and transformers. Writes gptoss.json beside this script:
the SHA-256 of each file. The converter knows real vocabularies by what they make of a text; it is told which
pre-tokenizer the small one stands for.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.quantcore.convert.families import FAMILIES, write_model

MODELS = tuple(name for name in FAMILIES if name.startswith("gpt-oss"))
OUTTYPES = ("auto", "f32", "f16")
# Options of llama-quantize and ours, with the level last; the source is the converter's own choice.
KEPT = ("--tensor-type", "exps=mxfp4")
LEVELS = {
    "gpt-oss": (
        *(("MXFP4_MOE",), (*KEPT, "Q4_K_M"), (*KEPT, "Q8_0")),
        *(("--allow-requantize", "Q4_K_M"), ("--allow-requantize", "IQ4_NL")),
    ),
    "gpt-oss, plain": (("MXFP4_MOE",), ("Q4_K_M",), ("Q8_0",), ("Q5_1",)),
}
CONVERT = """
import runpy, sys
root, sys.argv = sys.argv[1], ["convert", *sys.argv[2:]]
sys.path[:0] = [root, root + "/gguf-py"]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda *_: "gpt-4o"
runpy.run_path(root + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


def made(llama: str, tool: str, name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield what was asked for, and the hash of the file that it gave."""
    write_model(folder / "model", name, "BF16")
    for outtype in OUTTYPES:
        path = folder / f"{outtype}.gguf"
        run(sys.executable, "-c", CONVERT, llama, folder / "model", "--outtype", outtype, "--outfile", path)
        yield outtype, sha256(path)
    for *options, level in LEVELS[name]:
        run(tool, *options, folder / "auto.gguf", folder / "quantized.gguf", level)
        yield " ".join((*options, level)), sha256(folder / "quantized.gguf")


def main(llama: str, tool: str) -> None:
    golden = {}
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            golden[name] = dict(made(llama, tool, name, Path(folder)))
    Path(__file__).with_name("gptoss.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
