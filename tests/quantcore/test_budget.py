"""The best file of a size: under it, near it, better than a level of that size, and as the user limits it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from quantcore.backends import choose
from quantcore.budget import GRIDS, Limits, Target, plan_for
from quantcore.cli import main
from quantcore.errors import InputError
from quantcore.evaluate.divergence import divergence, save_base
from quantcore.imatrix import open_imatrix
from quantcore.models import open_model
from quantcore.pipeline import quantize, verify
from quantcore.plan import Options, make_plan
from quantcore.sensitivity import measure
from tests.quantcore.convert.families import write_model

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "hub" / "demo"
IMATRIX = ROOT / "tests" / "golden" / "novels.imatrix.gguf"


@pytest.fixture(scope="module")
def source():
    return open_model(DEMO / "tiny-novels-7m")


@pytest.fixture(scope="module")
def options():
    return Options(imatrix=open_imatrix(IMATRIX))


@pytest.fixture(scope="module")
def found(source, options):
    text = (DEMO / "calibration.txt").read_text()[:8000]
    kernels = choose("auto").kernels
    return measure(source, text, "a.txt", "f" * 64, imatrix=options.imatrix, n_ctx=256, kernels=kernels)


@pytest.mark.parametrize("size", [2_500_000, 3_100_000, 4_000_000, 4_369_152, 6_000_000, 7_500_000])
def test_the_file_is_at_most_half_a_percent_smaller_than_asked_for_and_never_larger(
    source, options, found, size
):
    made = plan_for(source, Target(nbytes=size), found, options)

    assert 0.995 * size <= made.plan.file_bytes <= size
    assert made.bound <= made.divergence <= 1.02 * made.bound
    assert made.plan.warnings == ()


@pytest.mark.parametrize("bpw", [2.6, 4.25, 6.0])
def test_bits_per_weight_are_of_all_tensors(source, options, found, bpw):
    made = plan_for(source, Target(bpw=bpw), found, options)

    assert 0.995 * bpw <= made.plan.bpw <= bpw
    assert made.plan.level == f"{made.plan.bpw:.2f}bpw"


def test_a_larger_file_is_never_expected_to_be_worse(source, options, found):
    sizes = range(2_400_000, 9_000_000, 600_000)
    expected = [plan_for(source, Target(nbytes=size), found, options).divergence for size in sizes]
    assert expected == sorted(expected, reverse=True)


def test_it_diverges_less_than_the_levels_of_its_size(source, options, found, tmp_path):
    text = (DEMO / "evaluation.txt").read_text()[:12_000]
    save_base(source, text, tmp_path / "base", n_ctx=256)

    def measured(plan):
        quantize(source, plan, tmp_path / "m.gguf", imatrix=options.imatrix)
        verify(tmp_path / "m.gguf", plan)
        return divergence(open_model(tmp_path / "m.gguf"), text, tmp_path / "base")[1].kld.mean

    for level in ("IQ3_M", "Q4_K_M"):
        plan = make_plan(source, level, options)
        made = plan_for(source, Target(nbytes=plan.file_bytes), found, options)
        assert measured(made.plan) < 0.8 * measured(plan), level


def test_a_size_under_the_smallest_is_refused_with_that(source, options, found):
    with pytest.raises(InputError, match=r"no types make a file that small: the smallest has \d+ bytes"):
        plan_for(source, Target(nbytes=500_000), found, options)


def test_a_size_beyond_the_model_gets_all_of_it_and_says_so(source, options, found):
    made = plan_for(source, Target(nbytes=10**9), found, options)

    assert made.divergence == 0
    assert "smaller than it might be" in made.plan.warnings[0]


def test_what_the_user_fixes_stays_so(source, options, found):
    fixed = replace(options, output_type="Q8_0", overrides=(("attn_v", "Q6_K"),))

    made = plan_for(source, Target(nbytes=4_200_000), found, fixed)

    types = {tensor.name: tensor.type for tensor in made.plan.tensors}
    assert types["output.weight"] == "Q8_0"
    assert {types[f"blk.{layer}.attn_v.weight"] for layer in range(6)} == {"Q6_K"}
    assert 0.995 * 4_200_000 <= made.plan.file_bytes <= 4_200_000


def test_types_may_be_limited(source, options, found):
    limits = Limits(types={"Q3_K", "Q4_K", "Q5_K", "Q6_K"}, least={"output": "Q6_K", "token_embd": "Q5_K"})

    made = plan_for(source, Target(nbytes=4_000_000), found, options, limits)

    types = {tensor.name: tensor.type for tensor in made.plan.tensors if len(tensor.shape) == 2}
    assert set(types.values()) <= {"Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] in {"Q5_K", "Q6_K"}


@pytest.mark.parametrize("least", [{"output": "Q8_0"}, {"output": "Q8_0", "token_embd": "Q4_0"}])
def test_embeddings_that_are_the_output_too_keep_its_bits(tmp_path, least):
    write_model(tmp_path, "qwen2")
    tied = open_model(tmp_path)
    text = (DEMO / "calibration.txt").read_text()[:1000]
    found = measure(tied, text, "a.txt", "f" * 64, n_ctx=16)

    def embeddings(limits):
        made = plan_for(tied, Target(bpw=8), found, limits=limits)
        return {tensor.name: tensor.type for tensor in made.plan.tensors}["token_embd.weight"]

    assert embeddings(Limits()) != "Q8_0"
    assert embeddings(Limits(least=least)) == "Q8_0"


def test_without_an_importance_matrix_nothing_is_chosen_that_needs_one(source, found):
    made = plan_for(source, Target(nbytes=3_100_000), found, Options())
    assert {tensor.type for tensor in made.plan.tensors}.isdisjoint({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})


def test_what_is_quantized_already_stays_as_it_is(source, found, tmp_path):
    quantize(source, make_plan(source, "Q4_K_M"), tmp_path / "m.gguf")
    quantized = open_model(tmp_path / "m.gguf")

    made = plan_for(quantized, Target(bpw=8), found)

    assert [tensor.type for tensor in made.plan.tensors] == [info.type for info in quantized.infos]
    with pytest.raises(InputError, match="no types make a file that small"):
        plan_for(quantized, Target(bpw=3), found)
    again = plan_for(quantized, Target(bpw=3), found, Options(allow_requantize=True))
    assert 2.98 < again.plan.bpw <= 3


def test_a_tensor_that_was_not_measured_is_named(source, options, found):
    less = replace(found, tensors=found.tensors[1:])
    with pytest.raises(InputError, match=f"{found.tensors[0].name} was not measured"):
        plan_for(source, Target(bpw=4), less, options)


def test_a_limit_that_leaves_no_type_names_the_tensor(source, options, found):
    with pytest.raises(InputError, match=r"output\.weight: none of the types allowed was measured"):
        plan_for(source, Target(bpw=4), found, options, Limits(types={"Q4_K"}, least={"output": "Q6_K"}))


def test_a_type_that_cannot_be_had_is_refused_with_the_reason(source, found, tmp_path):
    layers = replace(found, tensors=tuple(t for t in found.tensors if t.name.startswith("blk.")))
    fixed = Options(output_type="Q6_K", embedding_type="Q4_K")
    with pytest.raises(
        InputError, match=r"blk\.\d\.\w+\.weight: cannot be IQ2_XS without an importance matrix"
    ):
        plan_for(source, Target(bpw=8), layers, fixed, Limits(types={"IQ2_XS"}))

    quantize(source, make_plan(source, "Q4_K_M"), tmp_path / "m.gguf")
    with pytest.raises(InputError, match=r"is Q\d_K already, and may be no other type unless requantizing"):
        plan_for(open_model(tmp_path / "m.gguf"), Target(bpw=8), found, Options(), Limits(types={"Q8_0"}))


def test_the_command_line_makes_a_file_of_a_size(found, tmp_path, capsys):
    found.save(tmp_path / "m.json")
    model, out = str(DEMO / "tiny-novels-7m"), tmp_path / "m.gguf"
    given = ["--imatrix", str(IMATRIX), "--sensitivity", str(tmp_path / "m.json"), "--json"]

    status = main(["quantize", model, str(out), "--target-size", "4.2MB", "--types", "fast", *given])

    document = json.loads(capsys.readouterr().out)
    assert status == 0
    assert 0.995 * 4_200_000 <= document["file_bytes"] == out.stat().st_size <= 4_200_000
    assert 0 < document["expected_kld_bound"] <= document["expected_kld"]
    assert {tensor["type"] for tensor in document["tensors"]}.isdisjoint(GRIDS)


def test_the_parts_of_a_split_file_are_together_no_larger_than_asked_for(found, tmp_path, capsys):
    found.save(tmp_path / "m.json")
    given = ["--sensitivity", str(tmp_path / "m.json"), "--json", "--split-max-tensors", "1"]

    status = main(["plan", str(DEMO / "tiny-novels-7m"), "--target-size", "4.2MB", *given])

    document = json.loads(capsys.readouterr().out)
    assert (status, len(document["parts"])) == (0, 57)
    assert 0.995 * 4_200_000 <= document["file_bytes"] <= 4_200_000


def test_the_command_line_measures_a_text_where_there_is_no_file(tmp_path, capsys):
    text, out = tmp_path / "a.txt", tmp_path / "m.json"
    text.write_text((DEMO / "calibration.txt").read_text()[:3000])
    model = str(DEMO / "tiny-novels-7m")

    assert main(["sensitivity", model, str(text), str(out), "--ctx", "64", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["chunks"] == 2
    assert main(["plan", model, "--target-bpw", "5", "--sensitivity", str(out), "--json"]) == 0
    assert 4.97 < json.loads(capsys.readouterr().out)["bpw"] <= 5
    assert main(["plan", model, "--target-bpw", "5", "--json"]) == 1
    assert "--calibration TEXT" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        ["--to", "Q4_K_M", "--types", "fast"],
        ["--target-size", "nothing"],
        ["--target-bpw", "-4"],
        ["--target-bpw", "4", "--target-size", "5GB"],
        ["--target-bpw", "4", "--types", "Q4_K,Q9"],
        [],
    ],
)
def test_bad_usage_is_told_from_failure(given, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(DEMO / "tiny-novels-7m"), *given])
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err
