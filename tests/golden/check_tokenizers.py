"""Hold token ids to llama.cpp's own test vectors.

    python -m tests.golden.check_tokenizers LLAMA_CPP/models

The folder has vocabularies without weights, `ggml-vocab-*.gguf`, and beside most of them texts (`.inp`) with
the ids that they become (`.out`). Prints a line for each and fails if any text becomes other ids.
"""

from __future__ import annotations

import sys
from pathlib import Path

from quantcore.errors import InputError
from quantcore.evaluate.tokenizer import TextTokenizer, load_tokenizer
from quantcore.sources.gguf import open_gguf

BETWEEN = "\n__ggml_vocab_test__\n"


def differing(tokenizer: TextTokenizer, path: Path) -> list[str]:
    """Return the texts that become other ids."""
    texts = Path(f"{path}.inp").read_text().split(BETWEEN)
    wanted = [[int(word) for word in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    bad = []
    for text, ids in zip(texts, wanted, strict=False):  # the ids end with an empty line
        found = tokenizer.encode(text).tolist()
        if found[tokenizer.bos is not None : len(found) - (tokenizer.eos is not None)] != ids:
            bad.append(text)
    return bad


def main(folder: Path) -> int:
    failed = 0
    for path in sorted(folder.glob("ggml-vocab-*.gguf")):
        if not Path(f"{path}.inp").exists():
            continue
        try:
            bad = differing(load_tokenizer(open_gguf(path)), path)
        except InputError as exc:
            sys.stdout.write(f"{path.name}: not known: {exc}\n")
            continue
        said = f"{len(bad)} texts differ: {bad[:3]}" if bad else "all ids equal"
        sys.stdout.write(f"{path.name}: {said}\n")
        failed += len(bad)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
