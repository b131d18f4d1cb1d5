"""Levels as data: what Q4_K_M means, tensor by tensor, by llama.cpp's rules.

A level has a base type and, for some roles of tensors, picks: the first whose condition holds gives the type,
and none leaves the base type. The rules are those of llama.cpp's `llama-quant.cpp` (release 0.5.0-dev).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from quantcore.errors import UnknownFormat


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: the `index`-th of `count` of its role, in a model of such a kind.

    `gqa` is query heads per key/value head, `experts` the number of experts (0 for a dense model),
    `big` llama.cpp's "70B" shape.
    """

    index: int
    count: int
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


@dataclass(frozen=True)
class Recipe:
    """A level: its name, the number in `general.file_type`, base type, and picks by role.

    `usual` marks the one to take when nothing speaks for another.
    """

    name: str
    title: str
    summary: str
    file_type: int
    base: str
    picks: Mapping[str, tuple[Pick, ...]] = field(default_factory=dict)
    usual: bool = False


def more_bits(place: Place) -> bool:
    """First and last eighth of the layers and every third between: where errors cost most."""
    i, n = place.index, place.count
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _first(share: int) -> Condition:
    return lambda place: place.index < place.count // share


def _gqa4(place: Place) -> bool:
    return place.gqa >= 4


def _experts8(place: Place) -> bool:
    return place.experts == 8


def _falcon(place: Place) -> bool:
    return place.architecture == "falcon"


def _both(*conditions: Condition) -> Condition:
    return lambda place: all(condition(place) for condition in conditions)


def _no(condition: Condition) -> Condition:
    return lambda place: not condition(place)


_MORE = "layer where more bits pay"
_VALUE = "value projection: small and sensitive"
_DOWN = "feed-forward down: sensitive"
_EARLY = "one of the first layers"
_SHARED = "value projection shared by four or more heads"
_MIXTRAL = "eight experts share the attention"

_ATTENTION_OF_EXPERTS = Pick("Q5_K", _MIXTRAL, _both(_experts8, _no(_falcon)))
_EARLY_DOWN_WITH_IMATRIX = _both(_first(8), lambda place: place.has_imatrix)

RULES: Mapping[str, Mapping[str, tuple[Pick, ...]]] = {
    "Q4_0": {"ffn_down": (Pick("Q4_1", "early layer, importance matrix given", _EARLY_DOWN_WITH_IMATRIX),)},
    "Q5_0": {"ffn_down": (Pick("Q5_1", "early layer, importance matrix given", _EARLY_DOWN_WITH_IMATRIX),)},
    "Q2_K": {
        "attn_v": (Pick("Q4_K", _SHARED, _gqa4), Pick("Q3_K", _VALUE)),
        "ffn_down": (Pick("Q3_K", _DOWN),),
        "attn_output": (_ATTENTION_OF_EXPERTS, Pick("Q3_K", "attention output", _no(_falcon))),
    },
    "Q3_K_S": {"attn_output": (_ATTENTION_OF_EXPERTS,)},
    "Q3_K_M": {
        "attn_v": (Pick("Q5_K", _EARLY, lambda place: place.index < 2), Pick("Q4_K", _VALUE)),
        "ffn_down": (
            Pick("Q5_K", _EARLY, _first(16)),
            Pick("Q4_K", _DOWN, lambda place: not _falcon(place) or more_bits(place)),
        ),
        "attn_output": (_ATTENTION_OF_EXPERTS, Pick("Q4_K", "attention output", _no(_falcon))),
    },
    "Q3_K_L": {
        "attn_v": (Pick("Q5_K", _VALUE),),
        "ffn_down": (Pick("Q4_K", _DOWN, _falcon), Pick("Q5_K", _DOWN)),
        "attn_output": (
            Pick("Q4_K", "attention output", _falcon),
            Pick("Q5_K", "attention output", _no(_experts8)),
        ),
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

_LEVELS: tuple[tuple[str, int, str, str, str], ...] = (
    ("F32", 0, "F32", "Full precision, 32 bit", "For comparing; twice the size of what was trained."),
    (
        "F16",
        1,
        "F16",
        "Half precision, 16 bit",
        "The usual full-precision form; the reference of all others.",
    ),
    ("BF16", 32, "BF16", "Brain float, 16 bit", "Full precision with the range of F32."),
    ("Q8_0", 7, "Q8_0", "8 bit", "Practically lossless; twice as small as F16."),
    ("Q6_K", 18, "Q6_K", "6 bit", "Hard to tell from full precision."),
    ("Q5_K_M", 17, "Q5_K", "5 bit, medium", "Near full precision; when memory allows."),
    ("Q5_K_S", 16, "Q5_K", "5 bit, small", "A step up from 4 bit."),
    ("Q5_1", 9, "Q5_1", "5 bit with minimum, legacy", "Superseded by Q5_K; kept for old engines."),
    ("Q5_0", 8, "Q5_0", "5 bit, legacy", "Superseded by Q5_K; kept for old engines."),
    ("Q4_K_M", 15, "Q4_K", "4 bit, medium", "A third of the size of F16 at little loss."),
    ("Q4_K_S", 14, "Q4_K", "4 bit, small", "A little smaller and a little worse than Q4_K_M."),
    ("Q4_1", 3, "Q4_1", "4 bit with minimum, legacy", "Superseded by Q4_K; kept for old engines."),
    ("Q4_0", 2, "Q4_0", "4 bit, legacy", "Superseded by Q4_K; the fastest on some processors."),
    ("Q3_K_L", 13, "Q3_K", "3 bit, large", "For chat when memory is tight."),
    ("Q3_K_M", 12, "Q3_K", "3 bit, medium", "Simple tasks; reasoning suffers."),
    ("Q3_K_S", 11, "Q3_K", "3 bit, small", "Coherence suffers; try a smaller model first."),
    ("Q2_K", 10, "Q2_K", "2 bit", "Severe loss; only for what otherwise does not fit."),
)

# What nine in ten take: a third of F16's size at a loss that few notice.
USUAL = "Q4_K_M"

_RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        name: Recipe(name, title, summary, file_type, base, RULES.get(name, {}), usual=name == USUAL)
        for name, file_type, base, title, summary in _LEVELS
    }
)
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def recipes() -> Mapping[str, Recipe]:
    """Return every level by name, from the largest file to the smallest."""
    return _RECIPES


def get_recipe(name: str) -> Recipe:
    """Return a level by name (any case, `Q4_K` means `Q4_K_M`); raises `UnknownFormat` with what there is."""
    upper = name.upper()
    found = _RECIPES.get(_ALIASES.get(upper, upper))
    if found is None:
        raise UnknownFormat(f"no level is called {name!r}; there are {', '.join(_RECIPES)}")
    return found
