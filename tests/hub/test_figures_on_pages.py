"""How numbers read."""

from html import unescape

import pytest

from hub.catalog.models import Measurement
from hub.catalog.templatetags import figures


def plain(text):
    return str(text).replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (3_078_528, "3.08 MB"),
        (13_644_256, "13.6 MB"),
        (4_400_000_000, "4.40 GB"),
        (999_499, "999 kB"),
        (999_600, "1.00 MB"),
        (810_000_000_000, "810 GB"),
        (None, "unknown"),
    ],
)
def test_sizes_have_three_digits_and_decimal_units(n_bytes, text):
    assert plain(figures.size(n_bytes)) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (6_822_400, "6.8 M"),
        (134_515_008, "135 M"),
        (70_553_706_496, "70.6 B"),
        (7_248_023_552, "7.2 B"),
        (999, "999"),
        (0, "unknown"),
    ],
)
def test_parameters_are_said_in_words(number, text):
    assert plain(figures.in_words(number)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "< 0.1 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3840, "1 h 04 min"),
        (None, ""),
    ],
)
def test_durations(seconds, text):
    assert plain(figures.duration(seconds)) == text


@pytest.mark.parametrize(
    ("metric", "value", "deviation", "text"),
    [
        ("ppl", 53.3273, 1.179, "53.33 ± 1.18"),
        ("ppl", 6.1418, 0.04, "6.142 ± 0.040"),
        ("kl_divergence", 1.0955, 0.0075, "1.095 ± 0.007"),
        ("kl_divergence", 0.00327, 0.000045, "0.00327 ± 0.00005"),
        ("kl_divergence", 0.0000355, 0.0000003, "0.000036 ± <0.000001"),
        ("same_top", 95.464, 0.168, "95.5 ± 0.2"),
        ("ppl_increase", 0.0096, 0.006, "+0.010 ± 0.006"),
        ("ppl_increase", -0.0034, 0.01, "\u22120.003 ± 0.010"),
        ("tg_tps", 2568.4, 379, "2 568 ± 379"),
        ("pp_tps", 4841.2, 2382, "4 841 ± 2 382"),
        ("tg_tps", 14.26, None, "14.3"),
    ],
)
def test_a_figure_has_the_digits_of_its_metric_and_its_error(metric, value, deviation, text):
    html = plain(figures.figure(Measurement(metric=metric, value=value, deviation=deviation)))

    assert unescape("".join(part.partition(">")[2] for part in html.split("<"))) == text


def test_nested_facts_are_flattened_and_labelled():
    facts = {"dataset": {"name": "Emma", "sha256": "ab"}, "n_ctx": 512, "ram": 8_000_000_000, "gpus": []}

    lines = [(label, plain(text)) for label, text in figures.entries(facts)]

    assert lines == [
        ("Dataset name", "Emma"),
        ("Dataset SHA-256", "ab"),
        ("Context length", "512"),
        ("RAM", "8.00 GB"),
    ]
