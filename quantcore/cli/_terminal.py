"""What the verbs share: the `--json` flag, a progress bar on a terminal, sizes and times in words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import get_terminal_size
from typing import TYPE_CHECKING, TextIO

from quantcore.progress import Progress, Report, ignore

if TYPE_CHECKING:
    from quantcore.sources.base import Source


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document to standard output")


def human_bytes(count: float) -> str:
    """Return a size in decimal units: 4.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def human_seconds(seconds: float) -> str:
    """Return a duration in words: 1 h 05 min, 2 min 03 s, 4.2 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def visible(text: str) -> str:
    """Return text that a terminal shows as it is: names in files may hold line breaks and escape codes."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def note(text: str) -> None:
    """Tell a person something that does not stop the work, on standard error."""
    print(f"note: {visible(text)}", file=sys.stderr)


def note_context(source: Source, tokens: int) -> None:
    """Say so if `tokens` in a row are more than the model was trained on."""
    note_trained(source.count("context_length", 0), tokens)


def note_trained(trained: int, tokens: int) -> None:
    """Say so if `tokens` in a row are more than the `trained` ones that are known."""
    if 0 < trained < tokens:
        row = f"{trained} tokens in a row"
        note(f"the model was trained on at most {row}; figures for {tokens} say little about it")


class ProgressBar:
    """Draw one line that overwrites itself, at most as wide as the terminal; a report callback."""

    WIDTH = 24

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __call__(self, progress: Progress) -> None:
        filled = int(progress.share * self.WIDTH)
        left = "" if progress.seconds_left is None else f", {human_seconds(progress.seconds_left)} left"
        place = f" {progress.index}/{progress.count}" if progress.count else ""
        line = (
            f"{progress.stage} [{'#' * filled}{'.' * (self.WIDTH - filled)}] "
            f"{progress.share:4.0%}{place}{left} {visible(progress.item)}"
        )
        self.stream.write(f"\r\x1b[K{line[: get_terminal_size().columns - 1]}")
        self.stream.flush()

    def close(self) -> None:
        """Erase the line."""
        self.stream.write("\r\x1b[K")
        self.stream.flush()


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Yield a bar on standard error if a person is watching, else a callback that does nothing."""
    if not sys.stderr.isatty():
        yield ignore
        return
    bar = ProgressBar(sys.stderr)
    try:
        yield bar
    finally:
        bar.close()
