"""gpt-oss: files are those of llama.cpp's tools, and packed experts keep their bits."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from quantcore.cli import main
from quantcore.convert import open_huggingface
from quantcore.errors import InputError, UnknownArchitecture, UnreadableFile
from quantcore.evaluate.tokenizer import load_tokenizer
from quantcore.formats import to_float
from quantcore.plan import make_plan
from tests.quantcore.convert.families import config_of, safetensors_bytes, weights_of, write_model
from tests.quantcore.convert.gptoss import TEMPLATE, unpacked

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "gptoss.json").read_text())
OUTTYPES = ("auto", "f32", "f16")
PLAIN = "gpt-oss, plain"
EXPERTS = "model.layers.1.mlp.experts."


@pytest.fixture
def packed(tmp_path):
    write_model(tmp_path / "model", "gpt-oss", "BF16")
    return tmp_path / "model"


@pytest.fixture
def plain(tmp_path):
    write_model(tmp_path / "model", PLAIN, "BF16")
    return tmp_path / "model"


def rewrite(directory, family, changes):
    """Store the model's weights with some others, or without those that are None."""
    weights = {**weights_of(config_of(family)), **changes}
    kept = {name: array for name, array in weights.items() if array is not None}
    (directory / "model.safetensors").write_bytes(safetensors_bytes(kept))


def converted(directory, *options):
    out = directory.parent / "converted.gguf"
    assert main(["convert", str(directory), str(out), *options]) == 0
    return out


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("family", GOLDEN)
def test_converted_files_are_those_of_llama_cpps_converter(tmp_path, family, outtype):
    write_model(tmp_path / "model", family, "BF16")

    assert sha256(converted(tmp_path / "model", "--outtype", outtype)) == GOLDEN[family][outtype]


@pytest.mark.parametrize(
    ("family", "asked"), [(it, asked) for it in GOLDEN for asked in GOLDEN[it] if asked not in OUTTYPES]
)
def test_quantized_files_are_those_of_llama_quantize(tmp_path, family, asked):
    """Of the directory itself too, in one step."""
    write_model(tmp_path / "model", family, "BF16")
    *options, level = asked.split()

    for source in (converted(tmp_path / "model"), tmp_path / "model"):
        out = str(tmp_path / "quantized.gguf")
        assert main(["quantize", str(source), out, *options, "--to", level]) == 0
        assert sha256(Path(out)) == GOLDEN[family][asked]


def test_packed_experts_are_the_numbers_that_they_were(packed):
    weights = weights_of(config_of("gpt-oss"))
    both, down = (
        unpacked(weights[f"{EXPERTS}{name}_blocks"], weights[f"{EXPERTS}{name}_scales"])
        for name in ("gate_up_proj", "down_proj")
    )
    source = open_huggingface(packed)

    for part, numbers in (("gate", both[..., ::2]), ("up", both[..., 1::2]), ("down", down)):
        tensor = source.tensor(f"blk.1.ffn_{part}_exps.weight")
        found = to_float(tensor.info, tensor.read()).reshape(tensor.info.shape)
        assert tensor.info.type == "MXFP4"
        assert np.array_equal(found, numbers.swapaxes(1, 2))
        pieces = [
            tensor.read_rows(n, min(n + 37, tensor.info.n_rows)) for n in range(0, tensor.info.n_rows, 37)
        ]
        assert np.array_equal(np.concatenate(pieces), tensor.read())
        assert tensor.read_rows(40, 40).shape == (0, tensor.read().shape[1])


def test_plain_experts_are_turned_and_taken_apart(plain):
    """In slabs that begin and end within experts too."""
    rewrite(plain, PLAIN, {})
    weights = weights_of(config_of(PLAIN))
    both = weights[f"{EXPERTS}gate_up_proj"].swapaxes(1, 2)
    source = open_huggingface(plain)

    for part, rows in (("gate", both[:, ::2]), ("up", both[:, 1::2])):
        tensor = source.tensor(f"blk.1.ffn_{part}_exps.weight")
        pieces = [tensor.read_rows(n, min(n + 37, 384)) for n in range(0, 384, 37)]
        assert np.array_equal(np.concatenate(pieces), rows.reshape(384, 32))
        assert tensor.read_rows(64, 64).shape == (0, 32)
    bias = source.tensor("blk.1.ffn_up_exps.bias").read()
    assert np.array_equal(bias, weights[f"{EXPERTS}gate_up_proj_bias"][:, 1::2])


def test_of_turned_experts_only_the_columns_asked_for_are_read(plain, monkeypatch):
    tensor = open_huggingface(plain).tensor("blk.1.ffn_down_exps.weight")
    read = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: read.append(preadv(*given)) or read[-1])

    tensor.read_rows(40, 48)

    assert sum(read) == 8 * 64 * 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"swiglu_limit": 9.0}, "swiglu_limit is 9.0, and GGUF cannot say another than 7.0"),
        ({"swiglu_alpha": 1.0}, "swiglu_alpha is 1.0"),
        ({"sliding_window": 0}, "sliding_window is not set"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types are not with a window and without by turns"),
        ({"rope_scaling": None}, "does not say how positions are scaled"),
    ],
)
def test_what_gguf_cannot_say_is_refused(packed, changes, said):
    path = packed / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    with pytest.raises(UnknownArchitecture, match=rf"config\.json: {said}"):
        open_huggingface(packed)


def test_packed_experts_stand_in_the_order_of_the_files(packed):
    """As llama.cpp's converter has them."""
    weights = weights_of(config_of("gpt-oss"))
    late = {name for name in weights if ".layers.0." in name or ".layers.2." in name}
    parts = {"model-1.safetensors": weights.keys() - late, "model-2.safetensors": late}
    for file, names in parts.items():
        part = {name: array for name, array in weights.items() if name in names}
        (packed / file).write_bytes(safetensors_bytes(part))
    weight_map = {name: file for file, names in parts.items() for name in names}
    (packed / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    names = [info.name for info in open_huggingface(packed).infos if info.type == "MXFP4"]

    assert names == [
        f"blk.{n}.ffn_{part}_exps.weight" for n in (1, 3, 0, 2) for part in ("down", "gate", "up")
    ]


BLOCKS, SCALES = f"{EXPERTS}down_proj_blocks", f"{EXPERTS}down_proj_scales"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({SCALES: None}, "down_proj_scales is missing"),
        ({BLOCKS: None}, "down_proj_blocks is missing"),
        ({BLOCKS: np.zeros((6, 32, 2, 8), np.uint8)}, r"down_proj_blocks is U8 \[6, 32, 2, 8\]; in MXFP4"),
        ({SCALES: np.zeros((6, 32, 2), np.float32)}, r"down_proj_scales is F32 \[6, 32, 2\]; in MXFP4"),
        ({SCALES: np.zeros((384,), np.uint8)}, r"down_proj_scales is U8 \[384\]; in MXFP4"),
        ({f"{EXPERTS}down_proj": np.zeros((6, 64, 32), np.float32)}, "is there twice, packed and as plain"),
        (
            {SCALES: np.zeros((6, 32, 1), np.uint8), BLOCKS: np.zeros((6, 32, 1, 16), np.uint8)},
            r"down_proj is \[6, 32, 32\], config\.json means \[6, 32, 64\]",
        ),
        ({f"{EXPERTS}gate_up_proj_bias": np.zeros((6, 127), np.float32)}, r"gate_up_proj_bias is \[6, 63\]"),
        ({f"{EXPERTS}gate_up_proj_bias": np.zeros(6, np.float32)}, r"bias is \[6\], not matrices of experts"),
        ({f"{EXPERTS}down_proj_bias": None}, r"lack blk\.1\.ffn_down_exps\.bias"),
        ({"model.layers.2.self_attn.sinks": None}, r"lack blk\.2\.attn_sinks\.weight"),
    ],
)
def test_weights_that_cannot_be_are_refused_by_name(packed, changes, said):
    rewrite(packed, "gpt-oss", changes)

    with pytest.raises(UnreadableFile, match=said):
        open_huggingface(packed)


def test_a_scale_that_is_no_number_is_refused_when_it_is_read(packed, capsys):
    """llama.cpp's tools would refuse the file that came of it."""
    scales = weights_of(config_of("gpt-oss"))[SCALES]
    scales[5, 31, 1] = 255
    rewrite(packed, "gpt-oss", {SCALES: scales})

    assert main(["convert", str(packed), str(packed.parent / "out.gguf")]) == 1
    assert "model.safetensors: tensor model.layers.1.mlp.experts.down_proj_scales" in capsys.readouterr().err
    assert not (packed.parent / "out.gguf").exists()


def test_experts_are_not_quantized_again_unasked(packed):
    with pytest.raises(InputError, match="MXFP4_MOE keeps it, as does --tensor-type exps=mxfp4"):
        make_plan(open_huggingface(packed), "Q4_K_M")


def test_channel_tokens_in_text_are_tokens_though_they_control(packed):
    """29 is what llama-perplexity makes of this text."""
    tokenizer = load_tokenizer(open_huggingface(packed))

    ids = tokenizer.encode("<|channel|>" * 9 + "<|return|>" * 2)

    assert ids.tolist() == [258] * 9 + tokenizer.encode("<|return|>" * 2).tolist()
    assert len(ids) == 29


def test_tokenizer_and_chat_template_come_along(packed):
    source = open_huggingface(packed)

    assert source.get("tokenizer.ggml.pre") == "gpt-4o"
    assert source.get("tokenizer.chat_template") == TEMPLATE


def test_other_packings_are_sent_back(packed):
    path = packed / "config.json"
    changed = {"quantization_config": {"quant_method": "fp8"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    with pytest.raises(InputError, match=r"already quantized \(fp8\)"):
        open_huggingface(packed)
