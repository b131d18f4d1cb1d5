"""Small vocabularies of the kinds that no model here has."""

from __future__ import annotations

from quantcore.ggufkv import Value, ValueType, array, boolean, string, u32
from quantcore.sources.base import Source
from tests.quantcore.evaluate.test_tokenizer import TEXT

MARK = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def tokenizer(model: str, tokens: list[str], types: dict[str, int], **more: Value) -> dict[str, Value]:
    return {
        "tokenizer.ggml.model": string(model),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.token_type": array(ValueType.INT32, [types.get(token, 1) for token in tokens]),
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def bert(**more: Value) -> dict[str, Value]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({*TEXT.lower(), *TEXT, *"abcdefghijklmnopqrstuvwxyzåö$~[]5i"} - set(" \n\t\r"))
    whole = [MARK + word for word in ("the", "it", "naive", "snake", "htmlparser", "html", "ab", "istanbul")]
    tokens = [*special, *whole, "parser", "bul", *(MARK + it for it in letters), *letters[::2]]
    ids = {"unknown_token_id": u32(1), "bos_token_id": u32(2), "seperator_token_id": u32(3)}
    return tokenizer("bert", tokens, dict.fromkeys(special, 3), **ids, **more)


def gemma4(*named: str) -> dict[str, Value]:
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    merges = ["t h", "th e", f"{MARK} the", f"{MARK} {MARK}", "\n \n", f"{MARK} a", "a b", "1 2", "\n\n \n"]
    made = [merge.replace(" ", "") for merge in merges]
    letters = sorted({MARK, *TEXT[:160]} - {" "})
    tokens = [*special, *BYTES, *letters, *made, "\n" * 4, "<|user|>", *named]
    types = dict.fromkeys(special, 3) | dict.fromkeys(BYTES, 6) | {"<|user|>": 4} | dict.fromkeys(named, 4)
    more = {"bos_token_id": u32(2), "eos_token_id": u32(1), "add_bos_token": boolean(False)}
    return tokenizer("gemma4", tokens, types, merges=array(ValueType.STRING, merges), **more)


def gaps() -> dict[str, Value]:
    """Return a byte-level vocabulary without most bytes, of which some are merged all the same."""
    merges = array(ValueType.STRING, ["a c", "h e", "he y", "\u0120 t"])
    tokens = ["<s>", *"acdeklmnorstuvwxyz0123456789.;'", "ac", "he", "\u0120t"]
    return tokenizer("gpt2", tokens, {"<s>": 3}, pre=string("gpt-2"), merges=merges, bos_token_id=u32(0))


def phi3() -> dict[str, Value]:
    special = ["<unk>", "<s>", "<|endoftext|>"]
    tokens = [*special, "</s>", "<|user|>", *BYTES, MARK, *"abcdefgh", f"{MARK}a", f"{MARK}b"]
    types = dict.fromkeys(special, 3) | dict.fromkeys(BYTES, 6) | {"</s>": 4, "<|user|>": 4}
    scores = array(ValueType.FLOAT32, [float(-place) for place in range(len(tokens))])
    made = tokenizer("llama", tokens, types, scores=scores, bos_token_id=u32(1))
    return made | {"general.name": string("Phi-3 small")}


KINDS = {
    "bert": bert(),
    "bert that keeps capitals and accents": bert(**{"normalizer.lowercase": boolean(False)}),
    "bert that keeps accents": bert(**{"normalizer.strip_accents": boolean(False)}),
    "bytes missing": gaps(),
    "gemma4": gemma4(),
    # Of these, names say more than a file.
    "gemma4 with names": gemma4("<PRE>", "<|end|>", "<|return|>", "<|call|>", "<|im_end|>", "<turn|>"),
    "gemma4 with ends": gemma4("<|end|>", "<|file_sep|>", "[PAD]", "<|fim_middle|>"),
    "phi3": phi3(),
}


def source_of(kind: str) -> Source:
    """Return a model that is nothing but a vocabulary."""
    return Source("model.gguf", "gguf", KINDS[kind], ())
