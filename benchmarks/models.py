"""Models to time: Llama shapes with rows of whole super-blocks, filled with heavy-tailed numbers.

    python benchmarks/models.py FOLDER

writes `llama-300m.gguf` (four layers of a 1B model), `llama-25m.gguf` (one layer of a small one, for levels
whose peers take minutes) and an importance matrix for each. Speed does not depend on what a model says, but
on how its weights are distributed: Student's t with five degrees of freedom comes near to trained weights.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np


@dataclass(frozen=True)
class Shape:
    """What of a Llama model decides the sizes of its tensors."""

    name: str
    n_layers: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int

    def tensors(self):
        """Yield (name, rows, row length) of every matrix."""
        kv = self.n_embd * self.n_head_kv // self.n_head
        yield "token_embd.weight", self.n_vocab, self.n_embd
        for layer in range(self.n_layers):
            for part, rows, row in (
                ("attn_q", self.n_embd, self.n_embd),
                ("attn_k", kv, self.n_embd),
                ("attn_v", kv, self.n_embd),
                ("attn_output", self.n_embd, self.n_embd),
                ("ffn_gate", self.n_ff, self.n_embd),
                ("ffn_up", self.n_ff, self.n_embd),
                ("ffn_down", self.n_embd, self.n_ff),
            ):
                yield f"blk.{layer}.{part}.weight", rows, row


LARGE = Shape("llama-300m", 4, 2048, 8192, 32, 8, 32000)
SMALL = Shape("llama-25m", 1, 1024, 4096, 16, 4, 8000)


def write_model(shape, path):
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(shape.name)
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_tensor("output_norm.weight", np.ones(shape.n_embd, np.float32))
    for layer in range(shape.n_layers):
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.ones(shape.n_embd, np.float32))
    for name, rows, row in shape.tensors():
        scale = rng.uniform(0.01, 0.03, size=(rows, 1)).astype(np.float32)
        # Drawn once per tensor and turned around from row to row: drawing is slower than quantizing.
        drawn = rng.standard_t(5, size=row * 64 + rows).astype(np.float32)
        at = rng.integers(0, row * 63, size=rows)
        writer.add_tensor(
            name, np.stack([drawn[i : i + row] for i in at]).astype(np.float16) * scale.astype(np.float16)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_imatrix(shape, path):
    rng = np.random.default_rng(2)
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["synthetic"])
    writer.add_uint32("imatrix.chunk_count", 100)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, _, row in sorted(shape.tensors()):
        writer.add_tensor(f"{name}.in_sum2", (rng.gamma(0.5, size=(1, row)) * 51200).astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.full((1, 1), 51200, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prepare(shape, folder):
    """Return the paths of a model and its importance matrix, writing them unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    model, imatrix = folder / f"{shape.name}.gguf", folder / f"{shape.name}.imatrix.gguf"
    if not model.exists():
        write_model(shape, model)
    if not imatrix.exists():
        write_imatrix(shape, imatrix)
    return model, imatrix


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for shape in (LARGE, SMALL):
        print(*prepare(shape, folder))


if __name__ == "__main__":
    main()
