"""What lies between the extremes is said as llama-perplexity says it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from quantcore.cli import main
from quantcore.convert import open_huggingface
from quantcore.evaluate.divergence import divergence, open_base, save_base
from quantcore.evaluate.forward import map_logits
from quantcore.evaluate.perplexity import chunked
from quantcore.evaluate.spread import spread
from quantcore.models import open_model
from tests.golden.make_divergence import CHUNKS, DEMO, models
from tests.quantcore.convert.families import config_of, safetensors_bytes, weights_of, write_model

GOLDEN = Path(__file__).parents[2] / "golden"
TEXT = "the quick brown fox jumps over the lazy dog, and then the other. " * 12


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A model whose output matrix is noisier than the one its base was made of, and that base."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "tiny", "llama")
    save_base(open_huggingface(folder / "tiny"), TEXT, folder / "base", n_ctx=32)
    weights = weights_of(config_of("llama"))
    noise = np.random.default_rng(8).normal(0, 0.05, weights["lm_head.weight"].shape)
    weights["lm_head.weight"] += noise.astype(np.float32)
    (folder / "tiny/model.safetensors").write_bytes(safetensors_bytes(weights))
    return open_huggingface(folder / "tiny"), folder / "base"


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """What was measured of the demo model without a layer beside the whole one."""
    folder = tmp_path_factory.mktemp("demo")
    whole, less = models(folder)
    text = (DEMO / "evaluation.txt").read_text()
    save_base(open_model(whole), text, folder / "base", n_chunks=CHUNKS)
    return divergence(open_model(less), text, folder / "base")


# Ours by the names of theirs: value, its error where there is one, and what is enough of an agreement:
# llama.cpp rounds what goes into matrices to 16 bits.
def statistics(found, far):
    compared, percent = far.comparison, 100
    yield "Mean PPL(Q)", found.ppl, found.ppl_stderr, 5e-3
    yield "Mean PPL(base)", far.base_ppl, far.base_ppl_stderr, 5e-3
    yield "Cor(ln(PPL(Q)), ln(PPL(base)))", percent * compared.correlation, None, 0.011
    yield "Mean ln(PPL(Q)/PPL(base))", compared.log_ratio, compared.log_ratio_stderr, 2e-4
    yield "Mean PPL(Q)/PPL(base)", compared.ratio, compared.ratio_stderr, 2e-4
    yield "Mean PPL(Q)-PPL(base)", compared.difference, compared.difference_stderr, 0.01
    yield "Mean KLD", far.kld.mean, far.kld.stderr, 2e-4
    yield "Mean Δp", percent * far.delta_p.mean, percent * far.delta_p.stderr, 0.01
    yield "RMS Δp", percent * far.rms_dp, percent * far.rms_dp_stderr, 0.01
    yield "Same top p", percent * far.same_top, percent * far.same_top_stderr, 0.2
    for kind, spread_of, factor, enough in (("KLD", far.kld, 1, 1e-3), ("Δp", far.delta_p, percent, 0.04)):
        for name, value in asdict(spread_of).items():
            if name not in {"mean", "stderr"} and (kind, name) not in {("KLD", "p25"), ("KLD", "p75")}:
                yield f"{NAMES.get(name, name)} {kind}", factor * value, None, enough


NAMES = {"min": "Minimum", "max": "Maximum", "median": "Median", "p999": "99.9%", "p001": "0.1%"}
NAMES |= {f"p{share:02}": f"{share}.0%" for share in (1, 5, 10, 25, 75, 90, 95, 99)}


def test_every_statistic_is_the_one_that_llama_perplexity_gives(cut):
    said = json.loads((GOLDEN / "divergence.json").read_text())

    ours = {name: (value, error, enough) for name, value, error, enough in statistics(*cut)}

    assert set(ours) == set(said)
    for name, (value, error, enough) in ours.items():
        assert value == pytest.approx(float(said[name][0]), abs=enough), name
        if error is not None:
            assert error == pytest.approx(float(said[name][1]), abs=enough), name


def test_percentiles_are_on_the_line_between_two_values():
    """Of n values the share f stands at place f (n - 1)."""
    values = np.random.default_rng(1).permutation(np.arange(11.0) ** 2)

    found = spread(values)

    assert (found.min, found.p10, found.p25, found.median, found.p90, found.max) == (0, 1, 6.5, 25, 81, 100)
    assert found.p05 == pytest.approx(0.5)
    assert found.p999 == pytest.approx(81 + 19 * 0.99)
    assert found.mean == 35
    assert found.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(11))


def test_all_statistics_are_those_of_the_probabilities_themselves(changed):
    """Computed again from whole distributions in float64."""
    source, path = changed
    chunks, base = chunked(source, TEXT, 32), open_base(path)
    logits = map_logits(source, chunks, lambda _chunk, logits: logits.astype(np.float64).copy(), first=16)
    kld, delta_p, base_nll = [], [], []
    for chunk, rows in enumerate(logits):
        log_q = rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True))
        log_q -= rows.max(1, keepdims=True)
        log_p = base.read(chunk).astype(np.float64)
        kld.append((np.exp(log_p) * (log_p - log_q)).sum(1))
        came = np.arange(15), chunks[chunk, 17:]
        delta_p.append(np.exp(log_q[came]) - np.exp(log_p[came]))
        base_nll.append(-log_p[came])
    kld, delta_p, base_nll = (np.concatenate(each) for each in (kld, delta_p, base_nll))

    _, far = divergence(source, TEXT, path)

    assert list(asdict(far.kld).values()) == pytest.approx(list(asdict(spread(kld)).values()), abs=2e-6)
    assert list(asdict(far.delta_p).values()) == pytest.approx(
        list(asdict(spread(delta_p)).values()), abs=1e-6
    )
    assert far.delta_p.min < 0 < far.delta_p.max
    assert far.rms_dp == pytest.approx(math.sqrt((delta_p**2).mean()), rel=1e-4)
    spreads = (delta_p**2).std() / math.sqrt(len(delta_p) - 1) / (2 * far.rms_dp)
    assert far.rms_dp_stderr == pytest.approx(spreads, rel=1e-3)
    assert far.base_ppl == pytest.approx(math.exp(base_nll.mean()), rel=1e-5)
    assert far.base_ppl_stderr == pytest.approx(far.base_ppl * base_nll.std() / math.sqrt(len(kld) - 1))


def test_the_verb_prints_every_statistic(changed, tmp_path, capsys):
    source, path = changed
    (tmp_path / "text").write_text(TEXT)
    arguments = ["perplexity", str(source.path), str(tmp_path / "text"), "--kl-base", str(path)]

    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    table = {line[:8].strip(): line.split()[-2:] for line in lines[-13:]}
    assert list(table)[:5] == ["max", "99.9 %", "99 %", "95 %", "90 %"]
    assert list(table)[-5:] == ["10 %", "5 %", "1 %", "0.1 %", "min"]
    assert table["99 %"] == [f"{found['kld']['p99']:.6f}", f"{found['delta_p']['p99']:+.3%}"]
    assert any(line.startswith("RMS change of probability ") for line in lines)
