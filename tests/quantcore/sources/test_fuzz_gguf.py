"""Files of strangers: whatever stands in them, they are read or refused by name, soon and in little memory.

A header is put together from its fields, so that each can be spoilt alone; a real one is cut and overwritten.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quantcore.cli.inspect import describe
from quantcore.errors import InputError
from quantcore.formats import to_float
from quantcore.ggufkv import Value, ValueType, array, encode, encode_string, f32, string, u32
from quantcore.plan import make_plan
from quantcore.sources.gguf import MAX_HEADER, MAX_ITEMS, open_gguf
from tests.quantcore.models import llama_metadata, small_llama

FUZZ = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SECONDS = 1.0
ROOM = 400 << 20  # of memory, beyond what is taken once everything is imported
NUMBERS = [0, 1, 2, 3, 5, 31, 33, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63, 2**64 - 1]
WHATEVER = st.sampled_from(NUMBERS) | st.integers(0, 2**64 - 1)


@dataclass(frozen=True)
class Info:
    """A tensor as the header tells of it, in the header's own terms."""

    name: bytes = b"blk.0.attn_q.weight"
    dims: tuple[int, ...] = (32, 4)
    kind: int = 0
    offset: int = 0
    n_dims: int | None = None

    def encoded(self) -> bytes:
        n_dims = len(self.dims) if self.n_dims is None else self.n_dims
        return (
            encode_string(self.name)
            + struct.pack("<I", n_dims)
            + b"".join(struct.pack("<Q", n) for n in self.dims)
            + struct.pack("<IQ", self.kind, self.offset)
        )


@dataclass(frozen=True)
class File:
    """A GGUF file that may say anything of itself."""

    keys: tuple[bytes, ...] = tuple(encode(key, value) for key, value in llama_metadata(layers=1).items())
    infos: tuple[Info, ...] = (Info(), Info(b"output.weight", offset=512))
    n_keys: int | None = None
    n_tensors: int | None = None
    version: int = 3
    magic: bytes = b"GGUF"
    data: int = field(default=1024)

    def encoded(self) -> bytes:
        n_tensors = len(self.infos) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        header = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        header += b"".join(self.keys) + b"".join(info.encoded() for info in self.infos)
        return header + bytes(-len(header) % 32 + self.data)

    def with_key(self, raw: bytes) -> File:
        return replace(self, keys=(*self.keys, raw))

    def with_first(self, **changes: object) -> File:
        return replace(self, infos=(replace(self.infos[0], **changes), *self.infos[1:]))


def use(path: Path) -> str:
    """Do with a file what the program does; return what was refused, or nothing."""
    try:
        source = open_gguf(path)
        describe(source)
        for tensor in source.tensors:
            if tensor.info.n_rows:
                try:
                    to_float(tensor.info, tensor.read_rows(0, 1))
                except InputError as exc:
                    assert tensor.name in str(exc)  # noqa: PT017 - types that are not decoded
        make_plan(source, "Q4_K_M")
    except InputError as exc:
        return str(exc)
    return ""


def check(path: Path) -> str:
    """Use a file and hold it to the rule; return what was refused."""
    began = time.process_time()
    refused = use(path)
    assert time.process_time() - began < SECONDS, refused
    assert not refused or str(path) in refused
    return refused


def raw_key(key: bytes, kind: int, payload: bytes) -> bytes:
    return encode_string(key) + struct.pack("<I", kind) + payload


def raw_array(item: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", item, count) + payload


SOUND = File()
ALIGNMENTS = [u32(0), u32(3), u32(2**31), Value(ValueType.UINT64, 2**63), string("32"), f32(32.0)]
SPLITS = [u32(0), u32(2), u32(99_999), u32(2**31), Value(ValueType.INT64, -5), string("two"), f32(2.0)]

# Each is refused, with these words.
REFUSED = {
    "no magic": (replace(SOUND, magic=b"GGML"), "does not begin with GGUF"),
    "version": (replace(SOUND, version=9), "version 9"),
    "tensors: one too many": (replace(SOUND, n_tensors=3, data=0), "a tensor name|truncated"),
    "tensors: absurd": (replace(SOUND, n_tensors=2**64 - 1), "claims 18446744073709551615 tensors"),
    "keys: absurd": (replace(SOUND, n_keys=2**63), "claims 9223372036854775808 metadata keys"),
    "keys: one too many": (replace(SOUND, n_keys=len(SOUND.keys) + 1), "truncated or damaged"),
    "key twice": (SOUND.with_key(SOUND.keys[0]), "stands twice"),
    "value type 13": (SOUND.with_key(raw_key(b"k", 13, bytes(8))), "k has value type 13"),
    "string beyond the file": (SOUND.with_key(raw_key(b"k", 8, struct.pack("<Q", 2**40))), "value of k"),
    "length wraps around": (SOUND.with_key(raw_key(b"k", 8, struct.pack("<Q", 2**64 - 8))), "value of k"),
    "array of absurd length": (SOUND.with_key(raw_key(b"k", 9, raw_array(4, 2**62))), "k claims"),
    "array of absurd strings": (SOUND.with_key(raw_key(b"k", 9, raw_array(8, 2**61))), "k claims"),
    "array of absurd arrays": (SOUND.with_key(raw_key(b"k", 9, raw_array(9, 2**60))), "k claims"),
    "array of unknown items": (SOUND.with_key(raw_key(b"k", 9, raw_array(77, 1, bytes(8)))), "value type 77"),
    "arrays without end": (SOUND.with_key(raw_key(b"k", 9, raw_array(9, 1) * 5000)), "too deeply"),
    "tensor twice": (SOUND.with_first(name=b"output.weight"), "same name"),
    "tensor without a name": (SOUND.with_first(name=b""), "tensor name"),
    "5 dimensions": (SOUND.with_first(dims=(1, 1, 1, 1, 1)), "has 5 dimensions"),
    "2**32 dimensions": (SOUND.with_first(n_dims=2**32 - 1), "has 4294967295 dimensions"),
    "dimensions that overflow": (SOUND.with_first(dims=(2**32, 2**32)), "impossible shape"),
    "a dimension below zero": (SOUND.with_first(dims=(2**64 - 32, 1)), "impossible shape"),
    "zero times too much": (SOUND.with_first(dims=(2**64 - 1, 0)), "impossible shape"),
    "tensor type": (SOUND.with_first(kind=77), "tensor type 77"),
    "a type that is gone": (SOUND.with_first(kind=4), "tensor type 4"),
    "no whole blocks": (SOUND.with_first(dims=(48, 4), kind=2), "48 is not a multiple of 32"),
    "unaligned": (SOUND.with_first(offset=4), "starts at 4"),
    "overlapping": (SOUND.with_first(offset=512), "overlaps"),
    "out of the file": (SOUND.with_first(offset=1024), "ends at byte"),
    "far out of the file": (SOUND.with_first(offset=2**63), "ends at byte"),
    "too short for its tensors": (replace(SOUND, data=1023 - 512), "ends at byte"),
    "no architecture": (replace(SOUND, keys=SOUND.keys[1:]), "architecture is missing"),
    **{
        f"alignment {number}": (SOUND.with_key(encode("general.alignment", value)), "alignment is")
        for number, value in enumerate(ALIGNMENTS)
    },
    **{
        f"split {number}": (SOUND.with_key(encode("split.count", value)), r"split\.count|first part")
        for number, value in enumerate(SPLITS)
        if isinstance(value.value, str | float) or value.value > 1
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_file_and_field(tmp_path, name):
    file, words = REFUSED[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(file.encoded())

    refused = check(path)

    assert re.search(words, refused)


ODD = {
    "sound": SOUND,
    "text that is no UTF-8": SOUND.with_key(raw_key(b"\xff\xfe", 8, encode_string(b"\xc3("))),
    "a name that is no UTF-8": SOUND.with_first(name=b"blk.0.\xff\xfe.weight"),
    "line breaks in a name": SOUND.with_first(name=b"a\n\x1b[2Jb.weight"),
    "no rows": SOUND.with_first(dims=(32, 0)),
    "rows of nothing": SOUND.with_first(dims=(0, 4)),
    "a scalar": SOUND.with_first(dims=()),
    "no tensors": replace(SOUND, infos=()),
    "empty lists": SOUND.with_key(raw_key(b"k", 9, raw_array(8, 0))),
    "lists in lists": SOUND.with_key(raw_key(b"k", 9, raw_array(9, 2, raw_array(4, 1, bytes(4)) * 2))),
    "split in none": SOUND.with_key(encode("split.count", u32(0))),
    "heads by layer": replace(SOUND, keys=(*SOUND.keys[:-1], encode("x.y", array(ValueType.INT32, [1, 2])))),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_but_sound_is_read(tmp_path, name):
    path = tmp_path / "odd.gguf"
    path.write_bytes(ODD[name].encoded())

    check(path)

    assert len(open_gguf(path).tensors) == len(ODD[name].infos)


@FUZZ
@given(data=st.data())
def test_a_header_with_fields_at_will_is_read_or_refused(tmp_path, data):
    """Any count, dimension, type, offset and value in a header that is well formed otherwise."""
    draw = data.draw
    maybe = st.none() | WHATEVER
    name = st.binary(max_size=12) | st.sampled_from([b"output.weight", b"blk.0.ffn_down.weight"])
    info = st.builds(
        Info,
        name=name,
        dims=st.lists(st.sampled_from([1, 32, 256]) | WHATEVER, max_size=5).map(tuple),
        kind=st.integers(0, 45) | st.sampled_from([2**31, 2**32 - 1]),
        offset=st.sampled_from([0, 512]) | WHATEVER,
        n_dims=st.none() | st.sampled_from([0, 1, 4, 5, 2**32 - 1]),
    )
    key = st.builds(
        raw_key,
        st.sampled_from([b"general.alignment", b"split.count", b"llama.block_count", b"general.file_type"])
        | st.binary(max_size=8),
        st.integers(0, 14),
        st.binary(max_size=24) | st.builds(raw_array, st.integers(0, 13), WHATEVER, st.binary(max_size=40)),
    )
    keys = SOUND.keys[draw(st.integers(0, 2)) :]
    file = File(
        keys=(*keys, *draw(st.lists(key, max_size=3))),
        infos=tuple(draw(st.lists(info, max_size=3))),
        n_keys=draw(st.none() | maybe),
        n_tensors=draw(st.none() | maybe),
        data=draw(st.sampled_from([0, 31, 512, 1024])),
    )
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(file.encoded())

    check(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return small_llama(tmp_path_factory.mktemp("fuzz") / "small.gguf", layers=1, vocabulary=32)


def header_end(path: Path) -> int:
    return path.stat().st_size - sum(info.nbytes for info in open_gguf(path).infos)


def test_a_file_cut_at_any_byte_of_its_header_is_refused(model, tmp_path):
    """There is no byte at which a file can end and pass for a whole one."""
    whole = model.read_bytes()
    cut = tmp_path / "cut.gguf"
    for keep in [*range(header_end(model) + 2), len(whole) - 1]:
        cut.write_bytes(whole[:keep])

        assert check(cut), keep


@FUZZ
@given(
    places=st.lists(
        st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    )
)
@example(places=[(8, b"\xff" * 8)])
@example(places=[(16, b"\xff" * 8)])
def test_a_real_header_with_bytes_at_will_is_read_or_refused(model, tmp_path, places):
    whole = bytearray(model.read_bytes())
    end = header_end(model)
    for at, some in places:
        whole[at % end : at % end + len(some)] = some
    path = tmp_path / "broken.gguf"
    path.write_bytes(whole)

    check(path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"split.no": u32(1)}, r"split.no is 7, by the file's name it should be 1"),
        ({"split.count": u32(3)}, "split.count is 3, by the file's name it should be 2"),
        ({"split.tensors.count": u32(9)}, ""),  # only the first part's counts
    ],
)
def test_parts_of_something_else_are_refused(tmp_path, keys, words):
    """A second part that says it is another's, or another one of this, is named."""
    first = SOUND.with_key(encode("split.count", u32(2)))
    said = {"split.no": u32(1), "split.count": u32(2), **keys}
    if "7" in words:
        said["split.no"] = u32(7)
    second = File(
        keys=tuple(encode(key, value) for key, value in said.items()), infos=(Info(b"other.weight"),)
    )
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(first.encoded())
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(second.encoded())

    refused = use(tmp_path / "m-00001-of-00002.gguf")

    assert refused.startswith(str(tmp_path / "m-00002-of-00002.gguf")) if words else not refused
    assert words in refused


def test_a_count_of_tensors_that_the_parts_do_not_have_is_refused(tmp_path):
    keys = [encode("split.count", u32(2)), encode("split.tensors.count", u32(99))]
    first = replace(SOUND, keys=(*SOUND.keys, *keys))
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(first.encoded())
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(replace(SOUND, infos=()).encoded())

    assert "split.tensors.count is 99, the 2 parts have 2" in use(tmp_path / "m-00001-of-00002.gguf")


def holes() -> dict[str, bytes]:
    """Return beginnings of files that go on with gigabytes of zeros, which a hole makes for nothing."""
    keys = SOUND.keys
    tail = b"".join(keys)

    def file(last: bytes, tensors: int = 0) -> bytes:
        return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(keys) + 1) + tail + last

    return {
        "as many strings as there may be": file(raw_key(b"k", 9, raw_array(8, MAX_ITEMS - 50))),
        "more strings than there may be": file(raw_key(b"k", 9, raw_array(8, MAX_ITEMS + 1))),
        "a billion bytes": file(raw_key(b"k", 9, raw_array(0, 10**9))),
        "a billion 64-bit numbers": file(raw_key(b"k", 9, raw_array(10, 10**9))),
        "as many numbers as there may be": file(raw_key(b"k", 9, raw_array(12, MAX_ITEMS - 50))),
        "arrays of nothing": file(raw_key(b"k", 9, raw_array(9, MAX_ITEMS // 2))),
        "a long string": file(raw_key(b"k", 8, struct.pack("<Q", 4 << 30))),
        "a string as long as a header": file(raw_key(b"k", 8, struct.pack("<Q", MAX_HEADER - 1000))),
        "a long name": file(encode("k", u32(1)), tensors=1) + struct.pack("<Q", 3 << 30),
        "a million tensors": file(encode("k", u32(1)), tensors=1_000_000),
        "a large alignment": file(encode("general.alignment", u32(1 << 30))),
    }


CHILD = """
import json, resource, sys, time
from pathlib import Path
from tests.quantcore.sources.test_fuzz_gguf import ROOM, use

taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
for name in sys.argv[1:]:
    began = time.process_time()
    refused = use(Path(name))
    print(json.dumps([name, refused, time.process_time() - began]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited by Linux's means")
def test_files_that_are_mostly_claims_take_neither_time_nor_memory(tmp_path):
    """A hole of five gigabytes with a header of our making is used within 400 MB and a second."""
    paths = []
    for number, (name, beginning) in enumerate(holes().items()):
        path = tmp_path / f"{number} {name}.gguf"
        with path.open("wb") as file:
            file.write(beginning)
            file.truncate(5 << 30)
        paths.append(str(path))

    done = subprocess.run(
        [sys.executable, "-c", CHILD, *paths], capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in outcomes] == paths
    slow = {name: seconds for name, _, seconds in outcomes if seconds > 2 * SECONDS}
    assert not slow
    assert all(name in refused for name, refused, _ in outcomes if refused)
