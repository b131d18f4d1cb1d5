"""Which layers have a sliding window, by a family's rule and by what a file says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantcore.architectures.windows import Windows
from quantcore.errors import UnknownArchitecture, UnreadableFile
from quantcore.evaluate.windows import layer_windows
from quantcore.ggufkv import ValueType, array, string, u32
from quantcore.sources.base import Source

WINDOW = u32(7)


def source(window=None, pattern=None):
    values = {"sliding_window": window, "sliding_window_pattern": pattern}
    stated = {f"some.attention.{key}": value for key, value in values.items() if value is not None}
    return Source("model.gguf", "gguf", {"general.architecture": string("some"), **stated}, ())


def test_every_nth_layer_sees_everything():
    assert layer_windows(source(WINDOW), Windows(2), 5) == (7, None, 7, None, 7)
    assert layer_windows(source(WINDOW), Windows(6), 7) == (7, 7, 7, 7, 7, None, 7)


def test_a_family_without_windows_does_not_look_for_any():
    assert layer_windows(source(WINDOW), None, 2) == (None, None)


def test_a_file_that_states_no_window_has_the_familys():
    assert layer_windows(source(), Windows(2, length=9), 2) == (9, None)
    assert layer_windows(source(), Windows(2, length=0), 2) == (None, None)
    assert layer_windows(source(u32(0)), Windows(2, length=0), 2) == (None, None)


@pytest.mark.parametrize(
    ("pattern", "windows"),
    [
        (u32(3), (7, 7, None, 7)),
        (u32(1), (None,) * 4),
        (u32(0), (7,) * 4),
        (array(ValueType.BOOL, [True, False, False, True]), (7, None, None, 7)),
    ],
)
def test_a_file_may_have_a_pattern_of_its_own(pattern, windows):
    assert layer_windows(source(WINDOW, pattern), Windows(2), 4) == windows


@pytest.mark.parametrize(
    ("window", "pattern", "said"),
    [
        (None, None, r"model\.gguf: some\.attention\.sliding_window is None, not a number of tokens"),
        (u32(0), None, r"sliding_window is 0, not a number of tokens"),
        (string("7"), None, r"sliding_window is '7'"),
        (array(ValueType.INT32, [7, 7]), None, r"sliding_window is \[7, 7\]"),
        (WINDOW, string("every"), r"sliding_window_pattern is 'every', not a number of layers"),
        (WINDOW, array(ValueType.BOOL, [True]), r"_pattern is \[True\], not a list of 2 truth values"),
        (WINDOW, array(ValueType.STRING, ["a", "b"]), r"_pattern is \['a', 'b'\]"),
    ],
)
def test_windows_that_cannot_be_are_refused(window, pattern, said):
    with pytest.raises(UnreadableFile, match=said):
        layer_windows(source(window, pattern), Windows(2), 2)


def test_heads_of_another_size_where_there_is_a_window_are_refused():
    stated = source(WINDOW)

    def sized(own, others):
        keys = {"some.attention.key_length_swa": u32(own), "some.attention.key_length": u32(others)}
        return replace(stated, metadata={**stated.metadata, **keys})

    assert layer_windows(sized(8, 8), Windows(2), 2) == (7, None)
    with pytest.raises(UnknownArchitecture, match=r"some\.attention\.key_length_swa of its own is not known"):
        layer_windows(sized(4, 8), Windows(2), 2)
