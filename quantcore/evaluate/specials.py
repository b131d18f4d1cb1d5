"""Which tokens are looked for in text before all else: llama.cpp's rules, which go by names too.

Those a file calls user-defined are, but for tokens whose names say that they end a text or frame code to be
filled in: llama.cpp takes them for control tokens, which in text are text. (llama.cpp, `llama_vocab::impl`.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantcore.evaluate.vocabularies import n_bytes
from quantcore.sources.base import Source
from quantcore.tokentypes import TokenType

ENDS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
        *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
        *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "[e~["),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)
# By the key of `tokenizer.ggml` that names the token itself, and then its text says nothing.
FILL_IN: Mapping[str, frozenset[str]] = {
    "fim_pre_token_id": frozenset(
        {
            *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>"),
            *("\u2581<PRE>", "<|code_prefix|>", "<|prefix|>"),
        }
    ),
    "fim_suf_token_id": frozenset(
        {
            *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>"),
            *("\u2581<SUF>", "<|code_suffix|>", "<|suffix|>"),
        }
    ),
    "fim_mid_token_id": frozenset(
        {
            *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>"),
            *("\u2581<MID>", "<|code_middle|>", "<|middle|>"),
        }
    ),
    "fim_pad_token_id": frozenset({"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}),
    "fim_rep_token_id": frozenset({"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}),
    "fim_sep_token_id": frozenset({"<|file_sep|>"}),
}
# Control tokens of gpt-oss that are user-defined, whatever a file says.
SHOWN = frozenset({"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"})
# Where a vocabulary has all of one of these, a text does not end with the last.
NO_ENDS = (
    *(("<|return|>", "<|call|>", "<|end|>"), ("<|return|>", "<|calls|>", "<|end|>")),
    *(("<|flush|>", "<|call|>", "<|end|>"), ("<|flush|>", "<|calls|>", "<|end|>")),
)
# Parts of names of models whose user-defined tokens take the spaces behind them, all but these.
PHI3_NAMES, PHI3_OTHERS = ("phi-3", "phi3"), frozenset({"<unk>", "<s>", "<|endoftext|>"})


def user_defined(source: Source, tokens: Sequence[str], types: Sequence[int]) -> list[tuple[str, int]]:
    """Return the tokens that are found in text before all else, longest first, with their ids."""
    hidden = ENDS.union(
        *(texts for key, texts in FILL_IN.items() if f"tokenizer.ggml.{key}" not in source.metadata)
    )
    shown = set(SHOWN)
    present = ENDS.intersection(tokens)
    shown |= {named[-1] for named in NO_ENDS if present.issuperset(named)}
    found = [
        (token, index)
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if token in shown or (kind == TokenType.USER_DEFINED and token not in hidden)
    ]
    return sorted(found, key=lambda pair: -n_bytes(pair[0]))


def greedy(source: Source, found: Sequence[tuple[str, int]]) -> frozenset[int]:
    """Return the ids of those that take the spaces behind them."""
    name = str(source.get("general.name", "")).lower()
    if not any(part in name for part in PHI3_NAMES):
        return frozenset()
    return frozenset(index for text, index in found if text not in PHI3_OTHERS)
