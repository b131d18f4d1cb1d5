"""The sliding window of each layer, from a model's metadata by llama.cpp's rules."""

from __future__ import annotations

from quantcore.architectures.windows import Windows
from quantcore.errors import UnknownArchitecture
from quantcore.sources.base import Source

LENGTH, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
# Sizes of heads that layers with a window could have for themselves, and of all others.
SIZES = (
    ("attention.key_length_swa", "attention.key_length"),
    ("attention.value_length_swa", "attention.value_length"),
    ("rope.dimension_count_swa", "rope.dimension_count"),
)


def layer_windows(source: Source, windows: Windows | None, layers: int) -> tuple[int | None, ...]:
    """Return the sliding window of each of so many layers, None where all earlier tokens are seen.

    Raises `UnreadableFile` for a window that shows nothing, or a pattern that does not say it of each layer,
    and `UnknownArchitecture` for heads of other sizes in layers with a window, which no known family has.
    """
    if windows is None:
        return (None,) * layers
    length = source.hparam(LENGTH, windows.length)
    least = 0 if windows.length == 0 else 1
    if not isinstance(length, int) or length < least:
        raise source.bad_hparam(LENGTH, length, "a number of tokens")
    if length == 0:
        return (None,) * layers
    for own, others in SIZES:
        if source.hparam(own, source.hparam(others)) != source.hparam(others):
            raise UnknownArchitecture(f"{source.path}: {source.architecture}.{own} of its own is not known")
    return tuple(length if hidden else None for hidden in _pattern(source, windows, layers))


def _pattern(source: Source, windows: Windows, layers: int) -> list[bool]:
    """Return which layers have a window: files may list them, or say that every n-th has none."""
    stated = source.hparam(PATTERN, windows.every)
    if isinstance(stated, list):
        if len(stated) != layers or not all(isinstance(it, int) for it in stated):
            raise source.bad_hparam(PATTERN, stated, f"a list of {layers} truth values")
        return [bool(it) for it in stated]
    if not isinstance(stated, int) or stated < 0:
        raise source.bad_hparam(PATTERN, stated, "a number of layers")
    # 0 says that every layer has a window.
    return [stated == 0 or Windows(stated).hides(layer) for layer in range(layers)]
