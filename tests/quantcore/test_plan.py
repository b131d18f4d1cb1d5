"""Plans: llama.cpp's types for every tensor, exact sizes, and reasons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from quantcore.errors import InputError, UnknownFormat, UnreadableFile, UnsupportedTensor
from quantcore.ggufkv import Value, ValueType, f32, string
from quantcore.imatrix import Entry, ImportanceMatrix
from quantcore.plan import Options, Plan, make_plan
from quantcore.planner import Planner
from quantcore.recipes import get_recipe, recipes
from quantcore.sources.base import Source
from quantcore.sources.gguf import open_gguf
from quantcore.tensorrules import file_order
from quantcore.tensors import Tensor
from tests.golden.levels_models import MODELS, metadata, shapes
from tests.golden.make_levels import read_golden
from tests.quantcore.models import small_llama, tensor_infos

GOLDEN = read_golden()
# Importance that a plan takes for a whole matrix's; it knows no tensor of these models.
SOME_IMPORTANCE = ImportanceMatrix(Path("some.imatrix"), "some.imatrix", {"elsewhere": Entry(0, 1, (1.0,))})


def _unread(_start, _stop):
    raise AssertionError("a plan reads headers only")


def source_of(model: str, kind: str = "F16") -> Source:
    tensors = tuple(Tensor(info, _unread) for info in tensor_infos(shapes(model), kind))
    return Source(Path(model), "gguf", metadata(model), tensors)


def types_of(source: Source, level: str, options: Options) -> list[str]:
    planner = Planner(source, get_recipe(level), options)
    ordered = sorted(source.infos, key=lambda info: file_order(info.name))
    return [planner.choose(info)[0] for info in ordered]


@pytest.mark.parametrize("imatrix", [None, SOME_IMPORTANCE], ids=["plain", "weighted"])
@pytest.mark.parametrize("model", MODELS)
def test_types_are_those_of_llama_quantize(model, imatrix):
    """Every tensor of every level gets the type that llama-quantize gave it (golden/make_levels.py)."""
    source = source_of(model)

    for level in recipes():
        try:
            found = types_of(source, level, Options(imatrix=imatrix))
        except UnsupportedTensor:
            found = []

        assert " ".join(found) == GOLDEN[model][level][imatrix is not None], level


def test_every_tensor_has_a_reason():
    plan = make_plan(source_of("SmolLM2-135M"), "Q4_K_M")

    assert all(tensor.reason for tensor in plan.tensors)
    fallback = next(tensor for tensor in plan.tensors if tensor.name == "blk.3.attn_q.weight")
    assert fallback.type == "Q5_0"
    assert fallback.reason == "row of 576 is not a multiple of 256, the block of Q4_K"
    assert "do not fit" in plan.warnings[0]


def test_tensors_lie_in_llama_cpps_order():
    """Tensors outside the layers come first, then layer after layer by number, not by text."""
    names = [tensor.name for tensor in make_plan(source_of("Llama-3.1-8B"), "Q8_0").tensors]

    assert names[:3] == ["output.weight", "output_norm.weight", "token_embd.weight"]
    assert names.index("blk.2.attn_k.weight") < names.index("blk.10.attn_k.weight")


def test_bits_per_weight_of_a_known_model():
    """Llama-3.1-8B at Q4_K_M has 4.8944 bits per weight, as llama.cpp's table says."""
    source = source_of("Llama-3.1-8B")

    assert make_plan(source, "Q4_K_M").bpw == pytest.approx(4.8944, abs=5e-4)
    assert make_plan(source, "Q8_0").bpw == pytest.approx(8.5008, abs=5e-4)


def test_a_plan_survives_json():
    plan = make_plan(source_of("tiny-novels-7m"), "Q3_K_M")

    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.to_json()["tensors"][0]["shape"] == [256, 4096]


def test_options_change_what_they_name():
    """Patterns are searched, the first match wins, and the direct types skip the shape fallback."""
    options = Options(
        overrides=((r"blk\.0\.ffn", "Q8_0"), ("ffn_down", "Q6_K")), output_type="F16", embedding_type="Q8_0"
    )
    plan = make_plan(source_of("tiny-novels-7m"), "Q4_K_M", options)
    types = {tensor.name: tensor.type for tensor in plan.tensors}

    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.3.ffn_down.weight"] == "Q6_K"
    assert types["output.weight"] == "F16"
    assert types["token_embd.weight"] == "Q8_0"


def test_pure_is_one_type():
    plan = make_plan(source_of("tiny-novels-7m"), "Q4_K_M", Options(pure=True))

    assert {tensor.type for tensor in plan.tensors if len(tensor.shape) > 1} == {"Q4_K"}


def test_quantizing_twice_must_be_allowed():
    """A quantized source is refused with the way out, and warned about when allowed."""
    source = source_of("tiny-novels-7m", "Q8_0")

    with pytest.raises(
        InputError, match=r"is Q8_0 already.*start from the full-precision model.*--allow-requantize"
    ):
        make_plan(source, "Q4_K_M")
    assert "second time" in make_plan(source, "Q4_K_M", Options(allow_requantize=True)).warnings[0]
    assert make_plan(source, "F16").bpw == pytest.approx(16, abs=0.1)


def test_patterns_that_match_no_tensor_are_warned_about():
    """The warning has the pattern as it was given; one that matches is not mentioned."""
    options = Options(overrides=(("FFN_Upp", "Q8_0"), ("ffn_up", "Q8_0")))

    plan = make_plan(source_of("tiny-novels-7m"), "Q4_K_M", options)

    assert [text for text in plan.warnings if "pattern" in text] == [
        "the pattern 'FFN_Upp' matches no tensor and changes nothing"
    ]


@pytest.mark.parametrize(
    ("unfit", "words"),
    [
        (1, "1 of {} tensors has rows that do not fit its type and takes a larger one"),
        (2, "2 of {} tensors have rows that do not fit their type and take a larger one"),
    ],
)
def test_warnings_count_in_good_grammar(unfit, words):
    source = source_of("SmolLM2-135M")
    wide = [tensor for tensor in source.tensors if tensor.info.shape[-1] % 256 and len(tensor.info.shape) > 1]
    kept = [tensor for tensor in source.tensors if tensor not in wide[unfit:]]

    plan = make_plan(replace(source, tensors=tuple(kept)), "Q4_K_S", Options(pure=True))

    assert plan.warnings[0] == words.format(len(kept))


def test_hugging_face_sources_keep_small_tensors_in_f32():
    """What is never quantized is F32, as llama.cpp's converter writes it."""
    source = replace(source_of("Mixtral-8x7B"), format="huggingface")
    types = {tensor.name: tensor.type for tensor in make_plan(source, "F16").tensors}

    assert types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert types["blk.0.attn_q.weight"] == "F16"


def test_file_bytes_counts_the_metadata(tmp_path):
    """A longer name makes a longer file, to the alignment."""
    source = open_gguf(small_llama(tmp_path / "m.gguf"))
    longer = replace(source, metadata={**source.metadata, "general.name": string("x" * 320)})

    assert make_plan(longer, "Q8_0").file_bytes - make_plan(source, "Q8_0").file_bytes in {288, 320}


@pytest.mark.parametrize("name", ["q4_k_m", "Q4_K", "Q4_K_M"])
def test_level_names_are_forgiving(name):
    assert get_recipe(name).name == "Q4_K_M"


def test_an_unknown_level_lists_what_there_is():
    with pytest.raises(UnknownFormat, match=r"'Q9'.*Q4_K_M"):
        get_recipe("Q9")


def test_a_type_that_rows_do_not_fit_is_refused_by_file_and_tensor():
    with pytest.raises(
        UnsupportedTensor, match=r"SmolLM2-135M: token_embd\.weight: row of 576 is not .* Q4_K"
    ):
        make_plan(source_of("SmolLM2-135M"), "Q8_0", Options(embedding_type="Q4_K"))


def test_integers_are_not_quantized():
    source = source_of("tiny-novels-7m")
    odd = replace(source.tensors[0], info=replace(source.tensors[0].info, type="I32"))

    with pytest.raises(UnsupportedTensor, match=r"token_embd\.weight holds I32, which cannot become"):
        make_plan(replace(source, tensors=(odd, *source.tensors[1:])), "Q8_0")


@pytest.mark.parametrize("value", [string("many"), f32(2.5), Value(ValueType.INT32, -1)])
@pytest.mark.parametrize(
    "key", ["block_count", "attention.head_count", "attention.head_count_kv", "expert_count"]
)
def test_a_hyperparameter_of_another_kind_is_named(key, value):
    source = source_of("tiny-novels-7m")
    odd = replace(source, metadata={**source.metadata, f"llama.{key}": value})

    with pytest.raises(UnreadableFile, match=rf"tiny-novels-7m: llama\.{key} is .*, not a whole number"):
        make_plan(odd, "Q4_K_M")
