"""What the verbs share: the `--json` flag, a progress bar on a terminal, sizes and times in words."""

from __future__ import annotations

import argparse
import sys
from typing import TextIO

from quantcore.progress import Progress, Report, ignore


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


class ProgressBar:
    """Draw one line that overwrites itself; a report callback. Use as a context manager to end the line."""

    WIDTH = 24

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.drawn = False

    def __call__(self, progress: Progress) -> None:
        filled = int(progress.share * self.WIDTH)
        left = "" if progress.seconds_left is None else f", {human_seconds(progress.seconds_left)} left"
        place = f" {progress.index}/{progress.count}" if progress.count else ""
        line = (
            f"{progress.stage} [{'#' * filled}{'.' * (self.WIDTH - filled)}] "
            f"{progress.share:4.0%}{place} {progress.item}{left}"
        )
        self.stream.write(f"\r\x1b[K{line[:118]}")
        self.stream.flush()
        self.drawn = True

    def close(self) -> None:
        if self.drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def reporter() -> Report:
    """Return a progress bar on standard error if a person is watching, else a callback that does nothing."""
    return ProgressBar(sys.stderr) if sys.stderr.isatty() else ignore


def finish(report: Report) -> None:
    """Erase the bar, if there is one."""
    if isinstance(report, ProgressBar):
        report.close()
