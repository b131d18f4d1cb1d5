"""GGUF files: what is written is read back, and what is damaged is refused by name."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantcore.containers.gguf import GGUFSink
from quantcore.errors import InputError, UnreadableFile
from quantcore.formats import get_format, to_float
from quantcore.ggufkv import Value, ValueType, array, boolean, encode, f32, string, u32
from quantcore.sources.gguf import open_gguf
from quantcore.tensors import TensorInfo
from tests.quantcore.models import llama_metadata, llama_shapes, small_llama, tensor_infos


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_llama(tmp_path / "small.gguf")


def test_the_reference_reader_sees_the_same_tensors(model):
    """A file of ours is the same model to the gguf package as to us."""
    ours = open_gguf(model)

    reference = gguf.GGUFReader(model)

    assert [tensor.name for tensor in reference.tensors] == [info.name for info in ours.infos]
    for theirs in reference.tensors:
        tensor = ours.tensor(theirs.name)
        assert tensor is not None
        np.testing.assert_array_equal(tensor.read().reshape(-1), np.asarray(theirs.data).reshape(-1))


def test_every_value_type_survives_a_round_trip(tmp_path):
    """Metadata keeps its types, its order and strings that are not UTF-8."""
    metadata = {
        "general.architecture": string("llama"),
        "t.u8": Value(ValueType.UINT8, 200),
        "t.i64": Value(ValueType.INT64, -(2**60)),
        "t.f64": Value(ValueType.FLOAT64, 0.1),
        "t.f32": f32(1.5),
        "t.bool": boolean(True),
        "t.text": string("Zoë\udcff"),
        "t.strings": array(ValueType.STRING, ["a", "", "ß"]),
        "t.floats": array(ValueType.FLOAT32, [0.5, -1.0]),
        "t.nested": array(ValueType.ARRAY, [array(ValueType.INT32, [1, 2])]),
        "general.alignment": u32(64),
    }
    path = tmp_path / "values.gguf"
    with GGUFSink(path, metadata, []) as sink:
        sink.commit()

    source = open_gguf(path)

    assert dict(source.metadata) == metadata
    assert list(source.metadata) == list(metadata)


def test_an_alignment_of_the_source_is_kept(tmp_path):
    """Offsets follow general.alignment, not the default of 32."""
    infos = tensor_infos({"a.weight": (3, 5), "b.weight": (2, 7)}, "F32")
    metadata = {"general.architecture": string("llama"), "general.alignment": u32(128)}
    with GGUFSink(tmp_path / "a.gguf", metadata, infos) as sink:
        for info in infos:
            sink.write(info.name, bytes(info.nbytes))
        sink.commit()

    reference = gguf.GGUFReader(tmp_path / "a.gguf")

    assert [tensor.data_offset % 128 for tensor in reference.tensors] == [0, 0]


def test_a_failed_write_leaves_nothing(tmp_path):
    """Leaving the sink without commit removes every trace and keeps an older file."""
    old = tmp_path / "model.gguf"
    old.write_bytes(b"old")
    infos = tensor_infos({"a.weight": (4, 8)})

    def write_half() -> None:
        with GGUFSink(old, {}, infos) as sink:
            sink.write("a.weight", bytes(16))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()

    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("keep", [0, 3, 10, 23, 24, 100, 400])
def test_a_truncated_header_is_refused_by_name(model, keep):
    """However short the file is cut, the message names it."""
    model.write_bytes(model.read_bytes()[:keep])

    with pytest.raises(UnreadableFile, match=r"small\.gguf: "):
        open_gguf(model)


def test_truncated_data_names_tensor_and_sizes(model):
    """A file without its last byte of data is refused before any work."""
    data = model.read_bytes()
    model.write_bytes(data[: len(data) // 2])

    with pytest.raises(
        UnreadableFile, match=r"truncated: tensor blk\.\d\.\w+\.weight ends at byte \d+, the file has"
    ):
        open_gguf(model)


def test_a_file_cut_short_while_it_is_read_is_an_error(model):
    """Losing the data after opening raises; a memory map would have killed the process."""
    source = open_gguf(model)
    model.write_bytes(model.read_bytes()[:2000])

    with pytest.raises(UnreadableFile, match="cut short while being read, at tensor output"):
        source.tensors[2].read()


def _file(tmp_path: Path, body: bytes, *, tensors: int = 0, keys: int = 1, version: int = 3) -> Path:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body + bytes(64))
    return path


ARCHITECTURE = encode("general.architecture", string("llama"))


def _info(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return (
        struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape))
        + b"".join(struct.pack("<Q", n) for n in shape) + struct.pack("<IQ", kind, offset)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "tensors", "keys", "message"),
    [
        (b"", 0, 2**40, "claims 1099511627776 metadata keys"),
        (ARCHITECTURE, 2**40, 1, "claims 1099511627776 tensors"),
        (ARCHITECTURE * 2, 0, 2, "'general.architecture' stands twice"),
        (struct.pack("<Q", 2**50) + b"x", 0, 1, "a metadata key needs"),
        (struct.pack("<Q", 1) + b"k" + struct.pack("<I", 99), 0, 1, "k has value type 99"),
        (
            struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**40),
            0,
            1,
            "k claims 1099511627776 strings",
        ),
        (ARCHITECTURE + _info(b"t", (32,), 77, 0), 1, 1, "tensor t: tensor type 77 is unknown"),
        (
            ARCHITECTURE + _info(b"t", (32,), 31, 0),
            1,
            1,
            "tensor t: tensor type 31 was a repacked form of Q4_0",
        ),
        (ARCHITECTURE + _info(b"t", (64,), 41, 0), 1, 1, "tensor t: row of 64 is not a multiple of 128"),
        (ARCHITECTURE + _info(b"t", (33,), 2, 0), 1, 1, "tensor t: row of 33 is not a multiple of 32"),
        (ARCHITECTURE + _info(b"t", (2**40, 2**40), 0, 0), 1, 1, "tensor t has the impossible shape"),
        (ARCHITECTURE + _info(b"t", (8,), 0, 5), 1, 1, "tensor t starts at 5, not a multiple of 32"),
        (ARCHITECTURE + _info(b"t", (8,), 0, 0) * 2, 2, 1, "two tensors have the same name"),
        (ARCHITECTURE + _info(b"a", (8,), 0, 0) + _info(b"b", (8,), 0, 0), 2, 1, "overlaps the one before"),
        (encode("x", u32(1)), 0, 1, r"general\.architecture is missing"),
    ],
)
def test_damaged_fields_are_named(tmp_path, body, tensors, keys, message):
    """Each kind of damage is refused with the field and the number."""
    path = _file(tmp_path, body, tensors=tensors, keys=keys)

    with pytest.raises(UnreadableFile, match=message):
        open_gguf(path)


@pytest.mark.parametrize(("version", "message"), [(1, "version 1"), (1 << 24, "big-endian")])
def test_other_versions_are_refused(tmp_path, version, message):
    with pytest.raises(UnreadableFile, match=message):
        open_gguf(_file(tmp_path, ARCHITECTURE, version=version))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadableFile, match=r"nowhere\.gguf: No such file"):
        open_gguf(tmp_path / "nowhere.gguf")


def test_a_part_that_is_not_the_first_is_refused(tmp_path):
    """A split model is opened by its first part only, and the message says so."""
    path = tmp_path / "m-00002-of-00002.gguf"
    metadata = {**llama_metadata(), "split.count": Value(ValueType.UINT16, 2)}
    with GGUFSink(path, metadata, []) as sink:
        sink.commit()

    with pytest.raises(UnreadableFile, match="first part, NAME-00001-of-00002"):
        open_gguf(path)


def test_split_files_are_one_model(tmp_path):
    """Tensors of all parts appear in order under the metadata of the first."""
    infos = tensor_infos(llama_shapes(layers=1))
    for number, part in enumerate([infos[:4], infos[4:]], 1):
        metadata = {**llama_metadata(layers=1), "split.count": Value(ValueType.UINT16, 2)}
        with GGUFSink(tmp_path / f"m-0000{number}-of-00002.gguf", metadata, part) as sink:
            for info in part:
                sink.write(info.name, bytes(info.nbytes))
            sink.commit()

    source = open_gguf(tmp_path / "m-00001-of-00002.gguf")

    assert list(source.infos) == infos
    assert len(source.files) == 2


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 1400), value=st.binary(min_size=1, max_size=9))
def test_any_damage_to_a_header_is_an_error_or_harmless(model, at, value):
    """Overwritten header bytes never give another exception, and never cost more than a second."""
    whole = model.read_bytes()
    broken = model.with_name("broken.gguf")
    broken.write_bytes(whole[:at] + value + whole[at + len(value) :])
    began = time.process_time()

    try:
        open_gguf(broken)
    except UnreadableFile as exc:
        assert str(exc).startswith(str(broken))  # noqa: PT017 - both outcomes are right

    assert time.process_time() - began < 1


def test_info_of_a_scalar_is_one_row():
    assert TensorInfo("s", (), "F32", 4).n_rows == 1


def test_tensors_of_64_bits_and_of_none_are_read_as_they_are(tmp_path):
    infos = [
        TensorInfo("none", (0, 4), "F32", 0),
        TensorInfo("wide", (2, 3), "F64", 48),
        TensorInfo("last", (4, 0), "F32", 0),
    ]
    values = np.arange(6, dtype=np.float64).reshape(2, 3) / 3
    with GGUFSink(tmp_path / "a.gguf", {"general.architecture": string("llama")}, infos) as sink:
        sink.write("wide", values.tobytes())
        sink.commit()

    source = open_gguf(tmp_path / "a.gguf")

    assert np.array_equal(source.tensor("wide").read(), values)
    assert np.array_equal(to_float(infos[1], source.tensor("wide").read()), values.astype(np.float32))
    assert source.tensor("none").read().size == source.tensor("last").read().size == 0


@pytest.mark.parametrize(("name", "number"), [("Q1_0", 41), ("Q2_0", 42), ("NVFP4", 40)])
def test_the_newest_types_are_written_and_read(tmp_path, name, number):
    x = np.random.default_rng(11).normal(size=(3, 256)).astype(np.float32)
    packed = get_format(name).quantize(x)
    info = TensorInfo("w", x.shape, name, packed.nbytes)
    with GGUFSink(tmp_path / "a.gguf", {"general.architecture": string("llama")}, [info]) as sink:
        sink.write("w", packed.parts["blocks"].tobytes())
        sink.commit()

    tensor = open_gguf(tmp_path / "a.gguf").tensor("w")

    assert _info(b"w", (256, 3), number, 0) in (tmp_path / "a.gguf").read_bytes()
    assert np.array_equal(to_float(tensor.info, tensor.read()), get_format(name).dequantize(packed))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "general.alignment",
            Value(ValueType.UINT64, 2**40),
            "alignment is 1099511627776, not a power of two",
        ),
        ("split.count", string("two"), "split.count is 'two', not a number of files"),
    ],
)
def test_absurd_values_of_the_file_itself_are_refused(tmp_path, key, value, said):
    with pytest.raises(UnreadableFile, match=said):
        open_gguf(_file(tmp_path, ARCHITECTURE + encode(key, value), keys=2))


@pytest.mark.parametrize("value", [u32(-1), u32("12"), u32([1, 2]), f32(1e300), string("\ud800"), string(3)])
def test_a_value_that_is_none_of_its_type_is_refused_by_key(value):
    with pytest.raises(InputError, match=r"^the\.key cannot be "):
        encode("the.key", value)
