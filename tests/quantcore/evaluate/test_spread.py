"""What lies between the extremes is said as llama-perplexity says it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from quantcore.cli import main
from quantcore.convert import open_huggingface
from quantcore.evaluate.divergence import divergence, open_base, save_base
from quantcore.evaluate.forward import map_logits
from quantcore.evaluate.perplexity import chunked
from quantcore.evaluate.spread import spread
from tests.quantcore.convert.families import config_of, safetensors_bytes, weights_of, write_model

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
