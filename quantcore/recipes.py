"""Levels: what Q4_K_M and all others mean, by the names and numbers that llama-quantize knows them by.

The types that a level gives to single tensors stand in `quantcore.mixtures`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from quantcore.errors import UnknownFormat


@dataclass(frozen=True)
class Recipe:
    """A level: its name, the number in `general.file_type`, its base type, and the type of the output.

    `needs_imatrix` says that a usual model cannot be made without an importance matrix; `usual` marks the
    level to take when nothing speaks for another, `special` those for models whose weights were trained to be
    so, `legacy` those that better ones superseded, `weighed` those that gain most by an importance matrix;
    `copies` is the one that changes no type.
    """

    name: str
    title: str
    summary: str
    file_type: int
    base: str
    output: str = "Q6_K"
    needs_imatrix: bool = False
    usual: bool = False
    special: bool = False
    legacy: bool = False
    weighed: bool = False
    copies: bool = False


# From the largest file to the smallest: name, number, base type, title, summary.
_LEVELS: tuple[tuple[str, int, str, str, str], ...] = (
    ("F32", 0, "F32", "Full precision, 32 bit", "For comparing; twice the size of what was trained."),
    (
        *("F16", 1, "F16", "Half precision, 16 bit"),
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
    (
        *("IQ4_NL", 25, "IQ4_NL", "4 bit, uneven steps"),
        "Near Q4_K_S; takes rows that are no multiple of 256 as they are.",
    ),
    ("IQ4_XS", 30, "IQ4_XS", "4 bit, uneven steps, small", "A little smaller than Q4_K_S at like quality."),
    (
        *("MXFP4_MOE", 38, "MXFP4", "4-bit floats for experts"),
        "For models trained so, such as gpt-oss; all but the experts take 8 bit.",
    ),
    ("Q3_K_L", 13, "Q3_K", "3 bit, large", "For chat when memory is tight."),
    ("Q3_K_M", 12, "Q3_K", "3 bit, medium", "Simple tasks; reasoning suffers."),
    (
        "IQ3_M",
        27,
        "IQ3_S",
        "3 bit from a grid, medium",
        "Better than Q3_K_M with an importance matrix, worse without; slower on processors.",
    ),
    ("Q3_K_S", 11, "Q3_K", "3 bit, small", "Coherence suffers; try a smaller model first."),
    (
        *("IQ3_S", 26, "IQ3_S", "3 bit from a grid"),
        "Better than Q3_K_S with an importance matrix, worse without; slower on processors.",
    ),
    ("IQ3_XS", 22, "IQ3_S", "3 bit from a grid, small", "A little smaller than IQ3_S."),
    ("IQ3_XXS", 23, "IQ3_XXS", "3 bit from a grid, smallest", "The least that most models bear well."),
    ("Q2_K", 10, "Q2_K", "2 bit", "Severe loss; only for what otherwise does not fit."),
    ("Q2_K_S", 21, "Q2_K", "2 bit, small", "Smaller than Q2_K; IQ2_M is better at its size."),
    ("IQ2_M", 29, "IQ2_S", "2 bit from a grid, medium", "For large models; small ones lose their way."),
    ("IQ2_S", 28, "IQ2_XS", "2 bit from a grid, small", "A little smaller and a little worse than IQ2_M."),
    ("IQ2_XS", 20, "IQ2_XS", "2 bit from a grid, very small", "Severe loss; for the largest models."),
    ("Q2_0", 41, "Q2_0", "2 bit in groups of 64", "For models trained with few levels; ruins all others."),
    ("TQ2_0", 37, "TQ2_0", "Ternary, 2 bit", "For models trained with three levels; ruins all others."),
    ("IQ2_XXS", 19, "IQ2_XXS", "2 bit from a grid, smallest", "Severe loss; for the largest models."),
    ("IQ1_M", 31, "IQ1_M", "1.75 bit from a grid", "Extreme loss; to see a huge model run at all."),
    ("TQ1_0", 36, "TQ1_0", "Ternary, 1.7 bit", "For models trained with three levels; ruins all others."),
    ("IQ1_S", 24, "IQ1_S", "1.5 bit from a grid", "The smallest; to see a huge model run at all."),
    ("Q1_0", 40, "Q1_0", "1 bit", "Signs only, for models trained so; ruins all others."),
)

# What nine in ten take: a third of F16's size at a loss that few notice.
USUAL = "Q4_K_M"
_SPECIAL = frozenset({"MXFP4_MOE", "Q2_0", "Q1_0", "TQ2_0", "TQ1_0"})
_LEGACY = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1"})
# The type of the output where it is not Q6_K.
_OUTPUTS = {
    **dict.fromkeys(("Q8_0", "MXFP4_MOE"), "Q8_0"),
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS"), "Q5_K"),
}
_NEED_IMATRIX = frozenset(
    {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
)
_GAIN_BY_IMATRIX = frozenset({"IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS"})

_RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        name: Recipe(
            name, title, summary, file_type, base,
            output=_OUTPUTS.get(name, "Q6_K"), needs_imatrix=name in _NEED_IMATRIX, usual=name == USUAL,
            special=name in _SPECIAL, legacy=name in _LEGACY,
            weighed=name in _NEED_IMATRIX | _GAIN_BY_IMATRIX,
        )
        for name, file_type, base, title, summary in _LEVELS
    }
)  # fmt: skip
_BY_NUMBER = {str(recipe.file_type): recipe for recipe in _RECIPES.values()}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
# No level of its own: the file type is the source's.
COPY = Recipe(
    "COPY", "Copy", "Every tensor as it is; for merging, splitting and pruning.", 0, "F32", copies=True
)

_GUESSED = 1024  # llama.cpp's mark in a file type that was guessed from the tensors
_BY_TYPE = {recipe.base: recipe.file_type for recipe in _RECIPES.values() if recipe.base == recipe.name} | {
    "Q3_K": 12,
    "Q4_K": 15,
    "Q5_K": 17,
    "IQ2_S": 28,
    "NVFP4": 39,
}


def recipes() -> Mapping[str, Recipe]:
    """Return every level by name, from the largest file to the smallest."""
    return _RECIPES


def get_recipe(name: str) -> Recipe:
    """Return a level by name in any case, alias (`Q4_K` means `Q4_K_M`) or file-type number, or `COPY`.

    Raises `UnknownFormat` with what there is.
    """
    upper = name.upper()
    if upper == COPY.name:
        return COPY
    found = _RECIPES.get(_ALIASES.get(upper, upper)) or _BY_NUMBER.get(name)
    if found is None:
        raise UnknownFormat(f"no level is called {name!r}; there are {', '.join(_RECIPES)}")
    return found


def guessed_file_type(tensor_types: Iterable[str]) -> int:
    """Return the file type that llama.cpp guesses from the types of all tensors, given in file order."""
    seen: Counter[str] = Counter()
    commonest, most = "F32", 0
    for kind in tensor_types:
        seen[kind] += 1
        if seen[kind] > most:
            commonest, most = kind, seen[kind]
    return file_type_of(commonest) | _GUESSED


def file_type_of(kind: str) -> int:
    """Return the file type of a file most of which is of this tensor type."""
    return _BY_TYPE.get(kind, 0)
