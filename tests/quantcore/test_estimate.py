"""What a plan says of memory and time, and that it says so at once for the largest models."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from quantcore.cores import usable_cores
from quantcore.formats import formats
from quantcore.ggmltypes import is_quantized
from quantcore.plan import Options, Plan, make_plan
from quantcore.slabs import SLAB_WEIGHTS
from quantcore.sources.gguf import open_gguf
from quantcore.speeds import SPEEDS
from tests.quantcore.models import small_llama
from tests.quantcore.test_plan import source_of

MEASURED = """
import sys
from pathlib import Path
from quantcore.plan import make_plan
from quantcore.pipeline import quantize
from quantcore.sources.gguf import open_gguf
source, level, threads = open_gguf(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
plan = make_plan(source, level, threads=threads)
quantize(source, plan, Path(sys.argv[1] + ".out"), threads=threads)
# Not getrusage: that of a child begins with the memory of who started it.
peak = next(line for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024, plan.peak_memory_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("level", ["Q8_0", "Q4_K_S", "F32"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_memory_told_is_what_a_run_takes(tmp_path, level, threads):
    """Never less than nine tenths of the measured peak, nor more than two and a half times it."""
    path = small_llama(tmp_path / "m.gguf", layers=1, width=2048, vocabulary=4096)
    arguments = [sys.executable, "-c", MEASURED, str(path), level, str(threads)]

    # Measured alone: BLAS would hold buffers for each of its own threads.
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    )

    measured, told = map(int, done.stdout.split())
    assert 0.9 * measured < told < 2.5 * measured


def test_memory_is_that_of_threads_and_not_of_the_model():
    """671 billion weights take no more than 8 billion but for the header; each thread takes its slabs."""
    names = ("DeepSeek-V3.1", "Llama-3.1-8B")
    large, small = (make_plan(source_of(name), "Q4_K_M", threads=1) for name in names)
    more = make_plan(source_of("Llama-3.1-8B"), "Q4_K_M", threads=2)

    assert abs(large.peak_memory_bytes - small.peak_memory_bytes) < 5e6
    assert more.peak_memory_bytes - small.peak_memory_bytes > SLAB_WEIGHTS * 4


def test_time_is_that_of_types_and_cores():
    source = source_of("Llama-3.1-8B")
    slow = make_plan(source, "Q4_K_M", threads=1).seconds

    assert make_plan(source, "Q8_0", threads=1).seconds < slow / 3
    assert make_plan(source, "Q4_K_M", threads=1, backend="jit").seconds < slow / 3
    assert make_plan(source, "IQ2_XS", Options(dry_run=True), threads=1).seconds > 3 * slow
    assert make_plan(source, "Q4_K_M", threads=10_000).seconds == pytest.approx(
        make_plan(source, "Q4_K_M", threads=usable_cores()).seconds
    )


def test_every_type_that_is_made_was_measured():
    """After a new type: `python benchmarks/speeds.py --types NEW`."""
    made = {name for name, fmt in formats().items() if fmt.can_quantize and is_quantized(name)}

    assert made <= SPEEDS["numpy"].keys()
    assert SPEEDS["jit"].keys() <= made


@pytest.mark.parametrize("model", ["DeepSeek-V3.1", "Llama-4-Maverick", "Qwen3-235B-A22B"])
def test_the_largest_models_are_planned_at_once(model):
    source = source_of(model)
    patterns = tuple((rf"blk\.{n}\.ffn_down", "Q8_0") for n in range(40))

    began = time.process_time()
    plan = make_plan(source, "Q4_K_M", Options(overrides=patterns))

    assert time.process_time() - began < 1
    assert plan.file_bytes > 100e9


def test_plans_kept_by_older_versions_are_read(tmp_path):
    """They know nothing of memory, time, parts and added metadata."""
    plan = make_plan(open_gguf(small_llama(tmp_path / "m.gguf")), "Q8_0")
    document = plan.to_json()
    for name in ("peak_memory_bytes", "seconds", "parts", "added"):
        del document[name]

    assert Plan.from_json(document) == replace(plan, peak_memory_bytes=0, seconds=0.0)


def test_the_demo_models_estimates_are_in_reason():
    """A few seconds and a few hundred megabytes, whatever the level."""
    plan = make_plan(source_of("tiny-novels-7m"), "Q4_K_M")

    assert 0.5 < plan.seconds < 10
    assert 50e6 < plan.peak_memory_bytes < 400e6
