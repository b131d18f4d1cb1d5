"""Freeze what llama.cpp's converter makes of a small model of each family.

    python -m tests.golden.make_conversions LLAMA_CPP [CASE]...

LLAMA_CPP is the folder of convert_hf_to_gguf.py, whose requirements must be installed. Writes into
conversions.json beside this script, for each case, of the converter's file: its SHA-256, and so that a
difference can be found, its metadata, each with its type and its value (or the SHA-256 of a long one). A case
is a family, whose weights and file are in F16, or one of `OTHER_TYPES`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.quantcore.convert.families import FAMILIES, write_model

KEPT = Path(__file__).with_name("conversions.json")
LONGEST = 100  # characters of a value that is kept as it is
# Of families whose norms are added to on the way, in the type that they are stored as.
OTHER_TYPES = {
    f"{family} in {dtype}": (family, dtype) for family in ("gemma2", "gemma3") for dtype in ("F32", "BF16")
}

# The converter knows pre-tokenizers by their hashes of a text, and does not know that of these models: it is
# given as the second word. For StableLM it drops stacked norms: it returns a generator from a generator.
CONVERT = """
import runpy, sys
root, pre = sys.argv.pop(1), sys.argv.pop(1)
sys.path[:0] = [root, root + "/gguf-py"]
from conversion.base import TextModel
from conversion.stablelm import StableLMModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
as_it_is = StableLMModel.modify_tensors
def modified(self, *given):
    returned = yield from as_it_is(self, *given)
    yield from returned or ()
StableLMModel.modify_tensors = modified
sys.argv[0] = root + "/convert_hf_to_gguf.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def short(value: object) -> str:
    """Return a value as text, or its hash where that is long."""
    text = repr(value)
    return text if len(text) <= LONGEST else hashlib.sha256(text.encode()).hexdigest()


def metadata(path: Path) -> list[list[str]]:
    """Return key, type and value of each of a file's metadata."""
    import gguf  # the llama.cpp folder's, which is on the path by now

    fields = gguf.GGUFReader(path).fields.values()
    kept = [field for field in fields if not field.name.startswith("GGUF.")]
    return [
        [field.name, " ".join(kind.name for kind in field.types), short(field.contents())] for field in kept
    ]


def family_and_type(case: str) -> tuple[str, str]:
    """Return the family of a case, and the type of its weights and of its file."""
    return OTHER_TYPES.get(case, (case, "F16"))


def conversion(case: str, llama_cpp: str, folder: Path) -> dict[str, object]:
    """Return what is frozen of a case."""
    family, dtype = family_and_type(case)
    pre = "gpt-4o" if family.startswith("gpt-oss") else "gpt-2"
    model, made = folder / "model", folder / "made.gguf"
    write_model(model, family, dtype)
    script = [sys.executable, "-c", CONVERT, llama_cpp, pre, model, "--outfile", made]
    script += ["--outtype", dtype.lower()]
    subprocess.run(script, check=True, capture_output=True)
    return {"metadata": metadata(made), "sha256": hashlib.sha256(made.read_bytes()).hexdigest()}


def main(llama_cpp: str, cases: list[str]) -> None:
    found = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    sys.path.insert(0, f"{llama_cpp}/gguf-py")
    for case in cases or sorted([*FAMILIES, *OTHER_TYPES]):
        with tempfile.TemporaryDirectory() as folder:
            found[case] = conversion(case, llama_cpp, Path(folder))
    lines = (
        f'"{name}": {{"sha256": "{kept["sha256"]}", "metadata": [\n'
        + ",\n".join(f"  {json.dumps(row)}" for row in kept["metadata"])
        + "\n]}"
        for name, kept in sorted(found.items())
    )
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
