"""Tiny Gemmas with seeded weights, and a tokenizer of the kind that they are published with."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

GEMMA2: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "vocab_size": 320,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_theta": 10000.0,
    "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 12.0,
    "sliding_window": 7,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GEMMA3: dict[str, Any] = {
    **GEMMA2,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 7,
    "rope_theta": 1000.0,
    "rope_local_base_freq": 30.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window": 6,
    "sliding_window_pattern": 6,
}
# What the configuration of a model that sees has outside of that of its text decoder.
OUTER = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")


def seeing(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a model that has a decoder of `config` beside parts that see."""
    outer = {name: value for name, value in config.items() if name in OUTER}
    inner = {name: value for name, value in config.items() if name not in OUTER}
    return {**outer, "architectures": ["Gemma3ForConditionalGeneration"], "text_config": inner}


def shapes_of(config: dict[str, Any], block: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the norms that a layer has beside a Llama's two."""
    width, size = config["hidden_size"], config["head_dim"]
    names = [f"{block}{name}_feedforward_layernorm.weight" for name in ("pre", "post")]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (width,))
    if config["model_type"] == "gemma3_text":
        shapes |= {f"{block}self_attn.{part}_norm.weight": (size,) for part in "qk"}
    return shapes


def draw(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return weights large enough that caps, windows and norms show; norms lack the 1 they are used with.

    What the feed-forward part adds is made small, since it is least exact in llama.cpp.
    """
    middle = -0.5 if "post_feedforward" in name else 0.0
    return (random.standard_normal(shape) * 0.3 + middle).astype(np.float32)


NORMAL, UNKNOWN, CONTROL, WHOLE, BYTE = 1, 2, 3, 4, 6  # kinds of pieces, `WHOLE` is never cut

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>")
WHOLES = ("\n", "\n\n", "\u2581\u2581", "\u2581\u2581\u2581", "<table>")
LETTERS = (
    "\u2581",
    "e",
    "t",
    "a",
    "h",
    "b",
    "\u00e9",
    "\u2581t",
    "he",
    "th",
    "\u2581th",
    "\u2581the",
    "\u2581a",
)


def pieces() -> list[tuple[str, float, int]]:
    """Return text, score and kind of each piece, fewer than the embeddings."""
    kinds = [CONTROL, CONTROL, CONTROL, UNKNOWN, *[WHOLE] * (len(SPECIAL) - 4)]
    found = [(text, 0.0, kind) for text, kind in zip(SPECIAL, kinds, strict=True)]
    found += [(text, 0.0, WHOLE) for text in WHOLES]
    found += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    return found + [(text, -float(place), NORMAL) for place, text in enumerate(reversed(LETTERS))]


def field(number: int, payload: bytes | int) -> bytes:
    """Return one field of a protocol buffer: a short run of bytes, or a small number."""
    if isinstance(payload, int):
        return bytes([number << 3, payload])
    length = len(payload)
    return (
        bytes([number << 3 | 2, *([length] if length < 128 else [length & 127 | 128, length >> 7])]) + payload
    )


def sentencepiece_model(entries: list[tuple[str, float, int]]) -> bytes:
    """Return a tokenizer.model that SentencePiece loads: BPE with bytes for what is not in the vocabulary."""
    body = b""
    for text, score, kind in entries:
        body += field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + field(3, kind))
    trainer = field(3, 2) + b"\x98\x02\x01"  # model_type BPE; byte_fallback, number 35, is on
    trainer += b"\xc0\x02\x03" + b"\xc8\x02\x02" + b"\xd0\x02\x01" + b"\xd8\x02\x00"  # unk, bos, eos, pad
    normalizer = field(1, b"identity") + field(3, 0) + field(4, 0)
    return body + field(2, trainer) + field(3, normalizer)


def write_tokenizer(directory: Path) -> None:
    """Write the tokenizer's three files: pieces, tokens that were added to them, and how they are used."""
    added = {
        str(n): {"content": text, "special": n < len(SPECIAL)} for n, text in enumerate(SPECIAL + WHOLES)
    }
    added["300"] = {"content": "<image_soft_token>", "special": True}
    added["400"] = {"content": "<beyond the embeddings>", "special": True}
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")},
        "added_tokens_decoder": added,
        "chat_template": "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    (directory / "tokenizer.model").write_bytes(sentencepiece_model(pieces()))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "added_tokens.json").write_text(json.dumps({"<image_soft_token>": 300, "<far>": 999}))
