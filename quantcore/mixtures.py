"""The mixtures of levels as data: which tensors of a level get another type than its base, and why.

For some roles of tensors a level has picks: the first whose condition holds gives the type, and none leaves
the base type. The rules are those of llama.cpp's `llama-quant.cpp` (release 0.5.0-dev).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from quantcore.tensorrules import Role


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: in the `index`-th of `count` layers, in a model of such a kind.

    `nth` counts the tensors of its role that came before, which is the same as `index` but among experts,
    whose layer is read from the name. `stacked` says that it holds more than one matrix, `gqa` is query heads
    per key/value head, `experts` the number of experts (0 for a dense model), `big` llama.cpp's "70B" shape.
    """

    index: int = 0
    count: int = 0
    nth: int = 0
    stacked: bool = False
    gqa: int = 1
    experts: int = 0
    big: bool = False
    architecture: str = ""
    has_imatrix: bool = False


Condition = Callable[[Place], bool]


@dataclass(frozen=True)
class Pick:
    """Give `type` to the tensors for which `when` holds; `why` is shown in the plan."""

    type: str
    why: str
    when: Condition = field(default=lambda _place: True)


Picks = Mapping[Role, tuple[Pick, ...]]


def more_bits(place: Place) -> bool:
    """First and last eighth of the layers and every third between: where errors cost most."""
    i, n = place.index, place.count
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _first(share: int) -> Condition:
    return lambda place: place.index < place.count // share


def _middle(place: Place) -> bool:
    return place.count // 8 <= place.index < 7 * place.count // 8


def _gqa4(place: Place) -> bool:
    return place.gqa >= 4


def _experts8(place: Place) -> bool:
    return place.experts == 8


def _falcon(place: Place) -> bool:
    return place.architecture == "falcon"


def _imatrix(place: Place) -> bool:
    return place.has_imatrix


def _both(*conditions: Condition) -> Condition:
    return lambda place: all(condition(place) for condition in conditions)


def _either(*conditions: Condition) -> Condition:
    return lambda place: any(condition(place) for condition in conditions)


def _no(condition: Condition) -> Condition:
    return lambda place: not condition(place)


_MORE = "layer where more bits pay"
_VALUE = "value projection: small and sensitive"
_DOWN = "feed-forward down: sensitive"
_EARLY = "one of the first layers"
_SHARED = "value projection shared by four or more heads"
_MIXTRAL = "eight experts share the attention"
_OUTPUT = "attention output: sensitive"
_TABLE = "token embedding: a table, only looked up"
_COARSE = "query and key bear a coarser type"

_ATTENTION_OF_EXPERTS = Pick("Q5_K", _MIXTRAL, _both(_experts8, _no(_falcon)))
_SHARED_VALUE = Pick("Q4_K", _SHARED, _gqa4)
_EARLY_WITH_IMATRIX = "early layer, importance matrix given"
_EARLY_WITHOUT_IMATRIX = Pick("Q5_K", "early layer, no importance matrix", _both(_first(8), _no(_imatrix)))


def _attention_output(kind: str) -> tuple[Pick, ...]:
    return (_ATTENTION_OF_EXPERTS, Pick(kind, _OUTPUT, _no(_falcon)))


def _lowest(value: str, output: str | None, embedding: str) -> Picks:
    """Return the picks of a level below 3 bits, whose few bits go to attention and the first layers."""
    shared = _either(_gqa4, lambda place: place.experts >= 4)
    early = lambda place: place.nth < place.count // 8  # noqa: E731  # one of the conditions, as those above
    rest = () if output is None else (Pick(output, _OUTPUT),)
    return {
        "token_embd": (Pick(embedding, _TABLE),),
        "attn_v": (Pick("Q4_K", "value projection shared by heads or experts", shared), Pick(value, _VALUE)),
        "attn_k": (Pick("Q4_K", _MIXTRAL, _experts8),),
        "ffn_down": (Pick(value, _EARLY, early),),
        "attn_output": (Pick("Q5_K", _MIXTRAL, _experts8), *rest),
    }


_FOUR_BIT_UNEVEN: Picks = {
    "attn_v": (Pick("Q5_K", _SHARED, _gqa4),),
    "ffn_down": (_EARLY_WITHOUT_IMATRIX,),
    "attn_output": (_ATTENTION_OF_EXPERTS,),
}
_TERNARY: Picks = {"token_embd": (Pick("Q4_K", _TABLE),)}
_MIDDLE_FEED_FORWARD = (Pick("IQ3_XXS", "middle layers bear a coarser type", _middle),)


def _expert_matrices(place: Place) -> bool:
    return place.stacked and place.architecture != "bailingmoe3"


_EXPERTS_ONLY: Picks = {
    **dict.fromkeys(
        ("ffn_up", "ffn_gate", "ffn_down"),
        (Pick("MXFP4", "matrices of experts", lambda place: place.stacked), Pick("Q8_0", "not of an expert")),
    ),
    **dict.fromkeys(
        ("token_embd", "attn_q", "attn_k", "attn_v", "attn_output", "other"),
        (Pick("MXFP4", "a stack of matrices", _expert_matrices), Pick("Q8_0", "not of an expert")),
    ),
}

RULES: Mapping[str, Picks] = MappingProxyType(
    {
        "MXFP4_MOE": _EXPERTS_ONLY,
        "Q4_0": {"ffn_down": (Pick("Q4_1", _EARLY_WITH_IMATRIX, _both(_first(8), _imatrix)),)},
        "Q5_0": {"ffn_down": (Pick("Q5_1", _EARLY_WITH_IMATRIX, _both(_first(8), _imatrix)),)},
        "Q2_0": _TERNARY,
        "TQ1_0": _TERNARY,
        "TQ2_0": _TERNARY,
        "IQ1_S": _lowest("Q2_K", "IQ2_XXS", "Q2_K"),
        "IQ1_M": _lowest("Q2_K", "IQ2_XXS", "Q2_K"),
        "IQ2_XXS": _lowest("Q2_K", None, "Q2_K"),
        "IQ2_XS": _lowest("Q2_K", None, "Q2_K"),
        "IQ2_S": _lowest("IQ3_S", "IQ3_S", "IQ3_S"),
        "IQ2_M": _lowest("IQ3_S", "IQ3_S", "IQ3_S"),
        "IQ3_XXS": {
            "token_embd": (Pick("IQ3_S", _TABLE),),
            "attn_v": (_SHARED_VALUE, Pick("IQ3_S", "value projection, no importance matrix", _no(_imatrix))),
            "attn_k": (Pick("IQ2_S", _COARSE),),
            "attn_q": (Pick("IQ2_S", _COARSE),),
            "ffn_down": (
                Pick("Q4_K", "early layer, no importance matrix", _both(_first(8), _no(_imatrix))),
                Pick("Q3_K", "feed-forward down, no importance matrix", _no(_imatrix)),
            ),
            "attn_output": _attention_output("IQ3_S"),
        },
        "IQ3_XS": {
            "attn_v": (_SHARED_VALUE,),
            "attn_k": (Pick("IQ3_XXS", _COARSE),),
            "attn_q": (Pick("IQ3_XXS", _COARSE),),
            "ffn_gate": _MIDDLE_FEED_FORWARD,
            "ffn_up": _MIDDLE_FEED_FORWARD,
            "attn_output": (_ATTENTION_OF_EXPERTS,),
        },
        "IQ3_S": {"attn_v": (_SHARED_VALUE,), "attn_output": (_ATTENTION_OF_EXPERTS,)},
        "IQ3_M": {
            "attn_v": (Pick("Q4_K", _VALUE),),
            "ffn_down": (
                Pick("Q4_K", _EARLY, _first(8)),
                Pick("Q4_K", _MORE, _both(_experts8, more_bits)),
            ),
            "attn_output": _attention_output("Q4_K"),
        },
        "IQ4_NL": _FOUR_BIT_UNEVEN,
        "IQ4_XS": _FOUR_BIT_UNEVEN,
        "Q2_K": {
            "attn_v": (_SHARED_VALUE, Pick("Q3_K", _VALUE)),
            "ffn_down": (Pick("Q3_K", _DOWN),),
            "attn_output": _attention_output("Q3_K"),
        },
        "Q2_K_S": {
            "attn_v": (_SHARED_VALUE,),
            "ffn_down": (Pick("Q4_K", _EARLY, _first(8)),),
        },
        "Q3_K_S": {"attn_output": (_ATTENTION_OF_EXPERTS,)},
        "Q3_K_M": {
            "attn_v": (Pick("Q5_K", _EARLY, lambda place: place.index < 2), Pick("Q4_K", _VALUE)),
            "ffn_down": (
                Pick("Q5_K", _EARLY, _first(16)),
                Pick("Q4_K", _DOWN, _either(_no(_falcon), more_bits)),
            ),
            "attn_output": _attention_output("Q4_K"),
        },
        "Q3_K_L": {
            "attn_v": (Pick("Q5_K", _VALUE),),
            "ffn_down": (Pick("Q4_K", _DOWN, _falcon), Pick("Q5_K", _DOWN)),
            "attn_output": (Pick("Q4_K", _OUTPUT, _falcon), Pick("Q5_K", _OUTPUT, _no(_experts8))),
        },
        "Q4_K_S": {
            "attn_v": (Pick("Q5_K", _EARLY, lambda place: place.index < 4),),
            "ffn_down": (Pick("Q5_K", _EARLY, _both(_first(8), _no(_falcon))),),
            "attn_output": (_ATTENTION_OF_EXPERTS,),
        },
        "Q4_K_M": {
            "attn_v": (Pick("Q6_K", _MORE, more_bits),),
            "ffn_down": (
                Pick("Q6_K", _MORE, _both(_falcon, _first(16))),
                Pick("Q5_K", _MORE, _both(_falcon, more_bits)),
                Pick("Q6_K", _MORE, _both(_no(_falcon), more_bits)),
            ),
            "attn_output": (_ATTENTION_OF_EXPERTS,),
        },
        "Q5_K_M": {
            "attn_v": (Pick("Q6_K", _MORE, more_bits),),
            "ffn_down": (Pick("Q6_K", _MORE, more_bits),),
        },
    }
)

# Levels below 3 bits: they know nothing of the rules that all others share.
LOWEST = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})
_SHARED_BY_ALL: Picks = {
    "attn_v": (Pick("Q8_0", _MIXTRAL, _experts8),),
    "attn_k": (Pick("Q8_0", _MIXTRAL, _experts8),),
}


def counts_by_name(level: str) -> bool:
    """Say whether the level reads an expert's layer from its name; the lowest levels count tensors."""
    return level not in LOWEST and level != "MXFP4_MOE"


def mixture(level: str, base: str, role: Role, place: Place) -> tuple[str, str]:
    """Return the type that the level gives to a tensor, and why.

    The output, and a token embedding that is also the output, have their own rule: `Recipe.output`.
    """
    common = () if level in LOWEST or level == "MXFP4_MOE" else _SHARED_BY_ALL.get(role, ())
    picks = (*common, *RULES.get(level, {}).get(role, ()))
    pick = next((pick for pick in picks if pick.when(place)), Pick(base, "base type of the level"))
    if role == "attn_v" and place.big and level not in LOWEST and pick.type in {"Q3_K", "Q4_K"}:
        return "Q5_K", "value projection shared by eight heads of a 70B model"
    return pick.type, pick.why
