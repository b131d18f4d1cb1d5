"""What a safetensors file may get wrong, and that it is said by name."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest

from quantcore.errors import UnreadableFile
from quantcore.sources.safetensors import open_directory, read_header
from tests.quantcore.convert.families import safetensors_bytes

TENSORS = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, dtype=np.float32)}


def file_with(tmp_path, header, payload=b"\0" * 64):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)
    return path


def entry(**changes):
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes


def test_rows_are_read_alone(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(TENSORS))

    rows = read_header(path)["a"].read_rows(1, 3)

    assert rows.dtype == np.float32
    assert np.array_equal(rows, TENSORS["a"][1:3])
    assert read_header(path)["a"].read_rows(2, 2).shape == (0, 4)


def test_bfloat16_is_read_as_bits(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(TENSORS, "BF16"))

    rows = read_header(path)["b"].read_rows(0, 1)

    assert rows.dtype == np.uint16
    assert set(rows.ravel().tolist()) == {0x3F80}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"w": entry(dtype="F12")}, "w: unknown dtype 'F12'"),
        ({"w": entry(shape=[-4])}, "w: bad shape"),
        ({"w": entry(shape="4")}, "w: bad shape"),
        ({"w": entry(data_offsets=[0])}, "w: bad data_offsets"),
        ({"w": entry(data_offsets=[16, 0])}, "w: F32"),
        ({"w": entry(data_offsets=[0, 12])}, "needs 16 bytes, its offsets 0..12 hold 12"),
        ({"w": entry(data_offsets=[56, 72])}, "truncated: tensor w ends at byte 72"),
        ({"w": entry(), "v": entry(data_offsets=[8, 24])}, "tensors w and v overlap"),
        ({"w": 3}, "tensor w: its header entry"),
        (b"[1]", "not a JSON object"),
        (b"{", "not JSON"),
    ],
)
def test_bad_headers_are_refused_by_file_and_tensor(tmp_path, header, said):
    path = file_with(tmp_path, header)

    with pytest.raises(UnreadableFile, match=r"model\.safetensors") as caught:
        read_header(path)

    assert said in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 1 << 40) + b"{}"])
def test_files_that_are_none_are_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)

    with pytest.raises(UnreadableFile, match="not a safetensors file"):
        read_header(path)


def test_a_file_that_shrinks_raises_and_does_not_kill(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(TENSORS))
    tensor = read_header(path)["b"]

    os.truncate(path, path.stat().st_size - 4)

    with pytest.raises(UnreadableFile, match="ends inside tensor b, 4 bytes short"):
        tensor.read_rows(0, 1)


def write_shards(tmp_path, weight_map):
    for name, tensor in TENSORS.items():
        (tmp_path / f"model-{name}.safetensors").write_bytes(safetensors_bytes({name: tensor}))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_one_model(tmp_path):
    write_shards(tmp_path, {"a": "model-a.safetensors", "b": "model-b.safetensors"})

    tensors, files = open_directory(tmp_path)

    assert [path.name for path in files] == ["model-a.safetensors", "model-b.safetensors"]
    assert np.array_equal(tensors["b"].read_rows(0, 1)[0], TENSORS["b"])


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": "model-a.safetensors", "b": "model-gone.safetensors"}, "model-gone.safetensors: missing"),
        ({"a": "model-a.safetensors", "x": "model-b.safetensors"}, "tensor x is missing"),
        ({"a": "../secret"}, "'../secret' is not a file name"),
        ({"a": 3}, "3 is not a file name"),
        ([], "not a safetensors index"),
    ],
)
def test_an_index_is_held_to_its_word(tmp_path, weight_map, said):
    write_shards(tmp_path, weight_map)

    with pytest.raises(UnreadableFile) as caught:
        open_directory(tmp_path)

    assert said in str(caught.value)


def test_a_directory_without_weights_says_so(tmp_path):
    with pytest.raises(UnreadableFile, match=r"no model\.safetensors"):
        open_directory(tmp_path)


@pytest.mark.parametrize("dtype", [["F32"], {"a": 1}, None, 3])
def test_a_dtype_that_is_no_text_is_refused(tmp_path, dtype):
    with pytest.raises(UnreadableFile, match="w: unknown dtype"):
        read_header(file_with(tmp_path, {"w": entry(dtype=dtype)}))


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_json_that_nests_too_deeply_is_refused(tmp_path, name):
    """Python gives up on it in another way than on JSON with a mistake."""
    deep = b"[" * 100_000
    file_with(tmp_path, {})
    (tmp_path / name).write_bytes(struct.pack("<Q", len(deep)) + deep if name.endswith("rs") else deep)

    with pytest.raises(UnreadableFile, match=rf"{name}: .*nests too deeply"):
        open_directory(tmp_path)
