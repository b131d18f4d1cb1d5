"""What machine a figure was measured on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from quantcore.cores import usable_cores


@dataclass(frozen=True)
class Hardware:
    """A machine: processor model, cores this process may use, memory in bytes, graphics cards, system."""

    cpu: str
    cores: int
    ram: int
    gpus: tuple[str, ...]
    os: str


def hardware() -> Hardware:
    """Describe this machine."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Hardware(_cpu(), usable_cores(), _ram(), _gpus(), system)


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _ram() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpus() -> tuple[str, ...]:
    """Return names and memory of NVIDIA cards, as their own tool tells; none where there is no such tool."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in told.stdout.splitlines() if line.strip())
