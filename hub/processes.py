"""Processes that `quanthub up` starts and keeps running."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LARGEST_LOG = 10 << 20
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
# A process that has lived this long was well: its next death starts with a short pause again.
HEALTHY_SECONDS = 60.0
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to signal this process when its parent ends, however it ends."""
    if _LIBC is not None:
        pr_set_pdeathsig = 1
        _LIBC.prctl(pr_set_pdeathsig, by)


@dataclass
class Service:
    """A process with a name, a log, and a pause before each restart that doubles up to half a minute.

    Its own session keeps a Ctrl-C at the terminal from reaching it: `up` stops all in order.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    pause: float = FIRST_PAUSE
    started: float = 0.0
    restart_at: float | None = None

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LARGEST_LOG:
            self.log.replace(self.log.with_suffix(".log.1"))
        self.started = time.monotonic()
        self.restart_at = None
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - `up` has one thread only
            )

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def keep_running(self, say: Callable[[str], None]) -> None:
        """Restart the process if it has ended and its pause is over."""
        if self.is_running:
            return
        now = time.monotonic()
        if self.restart_at is None:
            if now - self.started > HEALTHY_SECONDS:
                self.pause = FIRST_PAUSE
            self.restart_at = now + self.pause
            say(f"The {self.name} {self.ending()}; it is started again in {self.pause:.0f} s. See {self.log}")
            self.pause = min(self.pause * 2, LONGEST_PAUSE)
        elif now >= self.restart_at:
            self.start()

    def ending(self) -> str:
        """Say how the process ended."""
        status = self.process.returncode if self.process else None
        if status is not None and status < 0:
            return f"was killed by signal {-status}"
        return f"ended with status {status}"

    def ask_to_stop(self) -> None:
        if self.process is not None and self.is_running:
            self.process.terminate()

    def wait_stopped(self, patience: float) -> None:
        """Wait until the process is gone, and end it and its children by force after `patience` seconds."""
        if self.process is None:
            return
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def end(self) -> None:
        """End the process and its children at once."""
        if self.process is not None and self.is_running:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
