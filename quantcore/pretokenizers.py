"""How text is cut into words before byte-pair merging: the patterns behind GGUF's `tokenizer.ggml.pre`.

Patterns are applied one after another to the pieces that the one before left, each match being a piece of its
own. They are llama.cpp's, so that token ids agree with the engine's even where it simplified what the model
was published with; `published` then has the original, by which a tokenizer.json is recognized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantcore.errors import InputError

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# Spelled out, since ignoring case would also match the long s of old prints, which llama.cpp does not.
EITHER_CASE = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"

TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = EITHER_CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + TAIL
QWEN2 = EITHER_CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + TAIL

UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
NOT_LOWER, NOT_UPPER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
LEAD = r"[^\r\n\p{L}\p{N}]?"
SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

QWEN35 = EITHER_CASE + (
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Most letters that have a case, as DeepSeek's first model lists them: small Armenian ones are not among them.
CASED = (
    "[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102"
    "\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943]"
)
WIDE_SIGNS = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]"
HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _no_spaces(letters: str) -> str:
    """Return a class of letters without the spaces in it, which llama.cpp takes for nothing but spaces."""
    return rf"[{letters}&&[^\s]]"


def _cased(upper: str, lower: str, suffix: str, digits: str) -> str:
    """Return the pattern that cuts words where case changes."""
    return f"{LEAD}{upper}*{lower}+{suffix}|{LEAD}{upper}+{lower}*{suffix}|{digits}{SLASH_TAIL}"


@dataclass(frozen=True)
class PreTokenizer:
    """Patterns under the `names` they go by, the first being the one to write.

    `ignore_merges` takes a word that is a token whole, without merging. `adds_bos` is llama.cpp's default
    where a file does not say.
    """

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    published: tuple[str, ...] = ()
    ignore_merges: bool = False
    adds_bos: bool = False


PRE_TOKENIZERS = (
    PreTokenizer(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat"), (GPT2,)
    ),
    PreTokenizer(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        (LLAMA3,),
        ignore_merges=True,
        adds_bos=True,
    ),
    PreTokenizer(("smaug-bpe", "dbrx", "chatglm-bpe"), (LLAMA3,)),
    PreTokenizer(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "megrez"),
        (QWEN2,),
    ),
    PreTokenizer(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        (r"\p{N}", GPT2),
    ),
    PreTokenizer(
        ("tekken",),
        (_cased(NOT_LOWER, NOT_UPPER, "", r"\p{N}"),),
        published=(_cased(UPPER, LOWER, "", r"\p{N}"),),
        ignore_merges=True,
        adds_bos=True,
    ),
    PreTokenizer(
        ("gpt-4o", "llama4", "kanana2"),
        (_cased(NOT_LOWER, NOT_UPPER, EITHER_CASE + "?", r"\p{N}{1,3}"),),
        published=(_cased(UPPER, LOWER, EITHER_CASE + "?", r"\p{N}{1,3}"),),
    ),
    PreTokenizer(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    PreTokenizer(("qwen35",), (QWEN35,)),
    PreTokenizer(
        ("deepseek-llm",),
        (
            *("[\r\n]", rf"\s?{CASED}+", rf"\s?{_no_spaces(WIDE_SIGNS)}+", r"\s+$"),
            *(f"{_no_spaces(HAN)}+", r"\p{N}+"),
        ),
        published=("[\r\n]", rf"\s?{CASED}+", rf"\s?{WIDE_SIGNS}+", r"\s+$", f"{HAN}+", r"\p{N}+"),
    ),
    PreTokenizer(
        ("deepseek-coder",),
        ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"{_no_spaces(HAN)}+", r"\p{N}"),
        published=("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"{HAN}+", r"\p{N}"),
    ),
    PreTokenizer(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
        (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK3),
    ),
    PreTokenizer(
        ("default",),
        (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
        published=("none is published",),
    ),
)

_by_name = {name: entry for entry in PRE_TOKENIZERS for name in entry.names}


def pre_tokenizer(name: str) -> PreTokenizer:
    """Return the pre-tokenizer that goes by `name`; raises `InputError` with the names there are."""
    found = _by_name.get(name)
    if found is None:
        known = ", ".join(sorted(_by_name))
        raise InputError(f"tokenizer.ggml.pre is {name!r}, which is not known here; known are {known}")
    return found


def recognize(tokenizer: Mapping[str, Any]) -> PreTokenizer:
    """Return what the parsed tokenizer.json `tokenizer` cuts words by; raises `InputError` when unknown."""
    patterns = tuple(_steps(tokenizer.get("pre_tokenizer") or {}))
    whole_words = bool(tokenizer.get("model", {}).get("ignore_merges", False))
    fitting = [entry for entry in PRE_TOKENIZERS if patterns == (entry.published or entry.patterns)]
    # Two entries may share patterns and differ in whether whole words skip merging.
    fitting.sort(key=lambda entry: entry.ignore_merges != whole_words)
    if not fitting:
        raise InputError(f"no pre-tokenizer of llama.cpp cuts words by {list(patterns)}")
    return fitting[0]


def _steps(step: Mapping[str, Any]) -> list[str]:
    """Return the patterns of a pre-tokenizer of tokenizer.json, in the spelling of this module."""
    kind = step.get("type")
    if kind == "Sequence":
        return [pattern for inner in step.get("pretokenizers", []) for pattern in _steps(inner)]
    if kind == "ByteLevel":
        return [GPT2] if step.get("use_regex", True) else []
    if kind == "Digits" and step.get("individual_digits"):
        return [r"\p{N}"]
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        pattern = step.get("pattern", {}).get("Regex", "")
        return [pattern.replace(CONTRACTIONS, EITHER_CASE)]
    return [f"a step of type {kind}"]
