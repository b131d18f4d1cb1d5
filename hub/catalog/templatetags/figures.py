"""How numbers, times and sizes read on every page. Spaces inside a figure never break."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from hub.catalog.models import Measurement

register = template.Library()
SPACE = "\u00a0"
TINY = 1e-6  # below it percentiles are rounding
MINUS = "\u2212"
TIMES = "\u00d7"
NOT_MEASURED = "not measured"
Metric = Measurement.Metric


def _scaled(number: float, names: tuple[str, ...]) -> tuple[float, str]:
    """Divide by 1000 until three digits are left; rounding up to 1000 counts as a step."""
    step = 0
    while step < len(names) - 1 and number >= 999.5:
        number, step = number / 1000, step + 1
    return number, names[step]


@register.filter
def size(n_bytes: int | None) -> str:
    """`13.8 MB`: three digits, decimal units as disks and networks count them."""
    if n_bytes is None:
        return "unknown"
    number, unit = _scaled(n_bytes, ("B", "kB", "MB", "GB", "TB"))
    digits = 0 if unit == "B" else max(0, 2 - int(math.log10(max(number, 1))))
    return f"{number:.{digits}f}{SPACE}{unit}"


@register.filter
def in_words(number: int | None) -> str:
    """`6.8 M`: a count of parameters as people say it."""
    if not number:
        return "unknown"
    scaled, unit = _scaled(number, ("", "k", "M", "B", "T"))
    return f"{scaled:.{1 if scaled < 99.95 and unit else 0}f}{SPACE}{unit}".rstrip(SPACE)


@register.filter
def whole(number: float | None) -> str:
    """`4 096`: thousands set apart by a space that neither English nor German readers mistake."""
    return "unknown" if number is None else _grouped(number, 0)


@register.filter
def bits(bpw: float | None) -> str:
    return "unknown" if bpw is None else f"{bpw:.2f}"


@register.filter
def percent(value: float) -> str:
    """`+0.24 %`, signed, as all increases are."""
    return f"{_signed(value, 2)}{SPACE}%"


@register.filter
def error(value: float | None) -> str:
    """An error of weights: four digits behind the point tell levels apart."""
    return "unknown" if value is None else f"{value:.4f}"


@register.filter
def three_digits(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


@register.filter
def cosine(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6f}"


@register.filter
def duration(seconds: float | None) -> str:
    """`0.4 s`, `42 s`, `3 min 05 s`, `1 h 04 min`."""
    if seconds is None:
        return ""
    if seconds < 0.05:
        return f"<{SPACE}0.1{SPACE}s"
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    if seconds < 59.5:
        return f"{seconds:.0f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min{SPACE}{rest:02d}{SPACE}s"
    return f"{minutes // 60}{SPACE}h{SPACE}{minutes % 60:02d}{SPACE}min"


@register.filter
def shape(lengths: list[int]) -> str:
    return f"{SPACE}{TIMES}{SPACE}".join(str(length) for length in lengths)


@register.simple_tag
def moment(when: datetime | None, empty: str = "not yet", exact: bool = False) -> SafeString | str:
    """A point in time, `exact` to the second: UTC at first, the visitor's own once the script has run."""
    if when is None:
        return empty
    utc = when.astimezone(UTC)
    return format_html(
        '<time datetime="{}" data-local-time="{}">{}</time>',
        utc.isoformat(timespec="seconds"),
        "exact" if exact else "",
        f"{utc:%H:%M:%S} UTC" if exact else f"{utc.day} {utc:%b %Y, %H:%M} UTC",
    )


# From levels that ruin a model to those that nobody can tell from it are five powers of ten.
DIGITS: dict[str, int] = {Metric.PPL_INCREASE: 3, Metric.BPB: 4, Metric.SAME_TOP: 1, Metric.DELTA_P: 2}
KLD_DIGITS = ((1, 3), (0.01, 4), (0.001, 5), (0, 6))


def digits_of(metric: str, value: float) -> int:
    """Return the decimals of a metric: enough to tell levels apart.

    They are the same down a column, but for KL divergence, which spans too many powers of ten.
    """
    if metric in DIGITS:
        return DIGITS[metric]
    if metric == Metric.KLD:
        return next((digits for least, digits in KLD_DIGITS if value >= least), KLD_DIGITS[-1][1])
    if metric == Metric.PPL:
        return 2 if value >= 10 else 3
    return 0 if value >= 100 else 1


def number(metric: str, value: float) -> str:
    """Write a value; an increase always carries its sign."""
    digits = digits_of(metric, value)
    return _signed(value, digits) if metric == Metric.PPL_INCREASE else _grouped(value, digits)


def _grouped(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace(",", SPACE)


def _signed(value: float, digits: int) -> str:
    """Write a difference; what rounds to nothing has no sign."""
    return f"{value:+.{digits}f}".replace("-", MINUS) if round(value, digits) else f"{0:.{digits}f}"


@register.simple_tag
def figure(measurement: Measurement | None, unit: str | None = None) -> SafeString:
    """A measured value with its deviation; a blank would leave open whether it is zero or unknown."""
    if measurement is None:
        return format_html('<span class="figure figure--none">{}</span>', NOT_MEASURED)
    metric, value, deviation = measurement.metric, measurement.value, measurement.deviation
    parts = [format_html('<span class="figure__value">{}</span>', number(metric, value))]
    if deviation is not None:
        digits = digits_of(metric, value)
        # An error that is there is never written as none.
        small = 0 < deviation < 0.5 * 10**-digits
        text = f"<{_grouped(10**-digits, digits)}" if small else _grouped(deviation, digits)
        text = f"±{SPACE}{text}"
        parts.append(format_html('<span class="figure__deviation">{}</span>', text))
    shown = measurement.unit if unit is None else unit
    if shown:
        parts.append(format_html('<span class="figure__unit">{}</span>', shown))
    return format_html('<span class="figure">{}</span>', SafeString(SPACE.join(parts)))


@register.filter
def share(part: float | None, whole_: float | None) -> float:
    """Return `part` of `whole` in percent, between 0 and 100, for the length of a bar."""
    if not part or not whole_:
        return 0.0
    return round(min(100.0, 100.0 * part / whole_), 2)


@register.filter
def entries(mapping: Any, names: str = "") -> list[tuple[str, str]]:
    """Return a JSON object as labelled lines; nested ones are flat: `dataset.sha256` is `Dataset SHA-256`.

    With `names` set, keys are names already, such as those of packages, and stay as they are.
    """
    if names:
        return [(str(key), str(value)) for key, value in mapping.items() if value]
    return list(_flat(mapping, ""))


@register.filter
def spread(statistics: dict[str, float]) -> list[tuple[str, str]]:
    """Return percentiles as labelled lines, in three digits; of what is next to nothing fewer."""
    return [(_capital(_label(name)), _number(value)) for name, value in statistics.items()]


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", MINUS) if abs(value) >= TINY else "0"


LABELS = {
    "n_ctx": "context length",
    "sha256": "SHA-256",
    "cpu": "CPU",
    "gpu": "GPU",
    "ram": "RAM",
    "os": "operating system",
    "pp": "prompt tokens",
    "tg": "generated tokens",
    "n_prompt": "prompt tokens",
    "n_gen": "generated tokens",
    "n_batch": "batch",
    "n_ubatch": "micro-batch",
    "n_gpu_layers": "layers on cards",
    "scored_bytes": "bytes scored",
    "dataset_bytes": "bytes of dataset",
    "p999": "99.9 %",
    "p99": "99 %",
    "p95": "95 %",
    "p90": "90 %",
    "p75": "75 %",
    "p25": "25 %",
    "p10": "10 %",
    "p05": "5 %",
    "p01": "1 %",
    "p001": "0.1 %",
    "stderr": "standard error",
    "max": "largest",
    "min": "smallest",
}


# What every model takes; where an engine does not tell of it, that is said.
MEMORY = {"model": "model", "kv": "KV", "state": "state", "compute": "compute"}
OPTIONAL = {"state"}


@register.filter
def memory(measured: dict[str, Any]) -> str:
    """`model 105 MB, KV 11.3 MB at n_ctx 4 096, compute 20.3 MB`: what an engine said it allocated."""
    told = []
    for part, name in MEMORY.items():
        n_bytes = measured.get(part)
        if n_bytes is None and part in OPTIONAL:
            continue
        text = f"{name}{SPACE}{NOT_MEASURED if n_bytes is None else size(n_bytes)}"
        n_ctx = measured.get("n_ctx") if part == "kv" else None
        told.append(f"{text} at n_ctx{SPACE}{whole(n_ctx)}" if n_ctx else text)
    return ", ".join(told)


def _memory_lines(measured: dict[str, Any]) -> list[tuple[str, str]]:
    """Return measured memory as labelled lines: its parts, what they depend on, and where they lie."""
    flash = measured.get("flash_attention")
    settings = {
        "batch": measured.get("n_batch"),
        "ubatch": measured.get("n_ubatch"),
        "K": measured.get("type_k"),
        "V": measured.get("type_v"),
        "flash attention": None if flash is None else ("on" if flash else "off"),
    }
    buffers = [f"{b['device']} {b['kind']} {size(b['nbytes'])}" for b in measured.get("buffers", [])]
    lines = [
        ("Memory", memory(measured)),
        ("Memory settings", ", ".join(f"{name} {value}" for name, value in settings.items() if value)),
        ("Buffers", ", ".join(buffers)),
    ]
    return [(label, text) for label, text in lines if text]


def _flat(value: Any, label: str) -> list[tuple[str, str]]:
    if label == "memory" and isinstance(value, dict):
        return _memory_lines(value)
    if isinstance(value, dict):
        return [line for key in value for line in _flat(value[key], f"{label} {_label(str(key))}".strip())]
    if isinstance(value, list):
        value = ", ".join(str(item) for item in value)
    if isinstance(value, int) and label.endswith(("RAM", " bytes")):
        label, value = label.removesuffix(" bytes"), size(value)
    if isinstance(value, float):
        value = f"{value:.6g}"
    return [(_capital(label), str(value))] if value not in (None, "") else []


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _label(key: str) -> str:
    return LABELS.get(key) or " ".join(LABELS.get(word, word) for word in key.split("_"))
