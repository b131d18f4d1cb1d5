"""Inputs rounded as llama.cpp rounds them: to blocks whose arithmetic other tests hold to its bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quantcore.cli import main
from quantcore.convert import open_huggingface
from quantcore.evaluate.activations import Rounded, rounded
from quantcore.evaluate.forward import map_logits
from quantcore.formats import formats, get_format
from quantcore.models import open_model
from quantcore.pipeline import quantize
from quantcore.plan import make_plan
from quantcore.tensorrules import why_kept
from tests.quantcore.convert.families import FAMILIES, write_model

DEMO = Path(__file__).parents[3] / "hub" / "demo"
TOKENS = np.random.default_rng(5).integers(0, 259, size=(1, 24)).astype(np.int32)
FUSED = {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_up": ("ffn_up",)}


def inputs(seed=3):
    draw = np.random.default_rng(seed)
    return (draw.standard_t(3, (5, 512)) * 4).astype(np.float32)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "IQ4_NL", "MXFP4", "Q8_0", "NVFP4"])
def test_blocks_up_to_128_meet_8_bits_in_blocks_of_32(kind):
    x, fmt = inputs(), get_format("Q8_0")

    expected = fmt.dequantize(fmt.quantize(x))

    # Halves are rounded to even here and away from zero there, which one number in thousands tells.
    assert np.mean(rounded(x, kind) != expected) < 2e-3


@pytest.mark.parametrize("kind", [name for name, fmt in formats().items() if fmt.block == 256])
def test_super_blocks_meet_8_bits_in_blocks_of_256(kind):
    x = inputs()

    found = rounded(x, kind)

    for block, made in zip(x.reshape(-1, 256), found.reshape(-1, 256), strict=True):
        largest = block[np.abs(block).argmax()]
        assert made[np.abs(block).argmax()] == pytest.approx(largest, rel=1e-6)
        step = abs(float(largest)) / 127
        assert np.abs(made - block).max() <= step * 0.5001
        assert np.abs(made / step - np.rint(made / step)).max() < 1e-3
        assert len(np.unique(made)) <= 255


def test_halves_meet_halves_and_full_floats_themselves():
    x = inputs()
    assert np.array_equal(rounded(x, "F16"), x.astype(np.float16).astype(np.float32))
    assert np.array_equal(rounded(x, "F32"), x)
    bits = rounded(x, "BF16").view(np.uint32)
    assert not (bits & 0xFFFF).any()
    assert np.abs(rounded(x, "BF16") / x - 1).max() <= 2.0**-8


@pytest.mark.parametrize("kind", ["Q4_K", "Q4_0"])
def test_zeros_stay_zeros(kind):
    assert not rounded(np.zeros((2, 256), np.float32), kind).any()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_inputs_of_every_matrix_are_rounded_by_its_type(tmp_path, family, monkeypatch):
    write_model(tmp_path, family)
    source = open_huggingface(tmp_path)
    heard = set()
    plain = Rounded.of

    def of(self, name, x):
        heard.add((name, self.kinds[name]))
        return plain(self, name, x)

    monkeypatch.setattr(Rounded, "of", of)

    def ours(activations):
        return map_logits(
            source, TOKENS, lambda _, logits: logits.copy(), threads=1, activations=activations
        )[0]

    far = np.abs(ours("llama.cpp") - ours("float32")).mean()

    assert 0 < far < 0.1
    matrices = {
        (part, tensor.info.type)
        for tensor in source.tensors
        if not why_kept(tensor.name, tensor.info.shape) and tensor.name.startswith("blk.")
        for part in FUSED.get(tensor.name.split(".")[2], (tensor.name.split(".")[2],))
    }
    assert matrices <= heard
    assert {kind for name, kind in heard if name == "output"}


def test_the_command_line_tells_whose_rounding_was_measured(tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text((DEMO / "evaluation.txt").read_text()[:2000])
    quant = quantize(*planned(open_model(DEMO / "tiny-novels-7m"), "Q4_0"), tmp_path / "m.gguf").path
    figures = {}
    for activations in ("float32", "llama.cpp"):
        given = ["perplexity", str(quant), str(text), "--ctx", "128", "--activations", activations, "--json"]
        assert main(given) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["activations"] == activations
        figures[activations] = document["ppl"]
    assert 1e-5 < abs(figures["llama.cpp"] / figures["float32"] - 1) < 0.02


def planned(source, level):
    return source, make_plan(source, level)
