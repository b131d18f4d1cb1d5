"""Importance matrices of strangers: cut short or overwritten, they are read or refused by name, and soon."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quantcore.errors import InputError
from quantcore.ggufkv import ValueType, array, encode, string, u32
from quantcore.imatrix import open_imatrix
from tests.quantcore.sources.test_fuzz_gguf import FUZZ, SECONDS, File, Info


def imatrix_of(tmp_path: Path, **changes: object) -> bytes:
    keys = {
        "general.type": string("imatrix"),
        "imatrix.datasets": array(ValueType.STRING, ["a.txt"]),
        "imatrix.chunk_count": u32(2),
        "imatrix.chunk_size": u32(512),
    }
    infos = (
        Info(b"blk.0.attn_q.weight.counts", (1, 1)),
        Info(b"blk.0.attn_q.weight.in_sum2", (32, 1), 0, 32),
    )
    file = File(tuple(encode(key, value) for key, value in keys.items()), infos, data=0, **changes)
    values = np.concatenate([[4], np.zeros(7), np.arange(32)]).astype("<f4")
    return file.encoded() + values.tobytes()


def legacy_imatrix() -> bytes:
    name = b"blk.0.attn_q.weight"
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii", 2, 32)
    values = np.arange(32).astype("<f4").tobytes()
    return struct.pack("<i", 1) + entry + values + struct.pack("<ii", 2, 5) + b"a.txt"


def check_imatrix(path: Path) -> str:
    began = time.process_time()
    try:
        found = open_imatrix(path)
        for name, entry in found.entries.items():
            found.get(name, (1, entry.n_values))
        found.metadata()
        refused = ""
    except InputError as exc:
        refused = str(exc)
        assert str(path) in refused
    assert time.process_time() - began < SECONDS
    return refused


@pytest.mark.parametrize("kind", ["gguf", "legacy"])
def test_an_importance_matrix_cut_short_is_refused(tmp_path, kind):
    whole = imatrix_of(tmp_path) if kind == "gguf" else legacy_imatrix()
    path = tmp_path / "imatrix"
    path.write_bytes(whole)
    assert not check_imatrix(path)
    # The older kind may end after its entries: the rest was added later, one number at a time.
    pardoned = {len(whole) - 9 - 4, *range(len(whole) - 13, len(whole) - 5)} if kind == "legacy" else set()

    for keep in range(len(whole)):
        path.write_bytes(whole[:keep])

        assert check_imatrix(path) or keep in pardoned, keep


@FUZZ
@given(
    kind=st.sampled_from(["gguf", "legacy"]),
    places=st.lists(
        st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3
    ),
)
@example(kind="legacy", places=[(0, b"\xff\xff\xff\x7f")])
@example(kind="legacy", places=[(4, b"\xff\xff\xff\x7f")])
@example(kind="legacy", places=[(31, b"\xff\xff\xff\x7f")])
def test_an_importance_matrix_with_bytes_at_will_is_read_or_refused(tmp_path, kind, places):
    whole = bytearray(imatrix_of(tmp_path) if kind == "gguf" else legacy_imatrix())
    for at, some in places:
        place = at % len(whole)
        whole[place : place + len(some)] = some
    path = tmp_path / "imatrix"
    path.write_bytes(whole)

    check_imatrix(path)
