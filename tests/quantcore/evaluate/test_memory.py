"""Memory is what the engine's log says, in bytes; what it does not say is not measured."""

from __future__ import annotations

import pytest

from quantcore.evaluate.memory import Buffer, Memory, memory_in

MIB = 1 << 20

# What llama.cpp logs, clocks left out, of a model on a processor and of one split over two cards.
PROCESSOR = """\
load_tensors:   CPU_Mapped model buffer size =    98.87 MiB
load_tensors:   CPU_REPACK model buffer size =     7.59 MiB
llama_context: n_ctx                 = 4096
llama_context: n_ctx_seq             = 4096
llama_context: n_batch               = 2048
llama_context: n_ubatch              = 512
llama_context: flash_attn            = auto
llama_context: n_outputs_max         = 1
llama_context:        CPU  output buffer size =     0.19 MiB
llama_kv_cache:        CPU KV buffer size =    90.00 MiB
llama_kv_cache: size = 90.00 MiB (4096 cells, 30 layers, 1/1 seqs), K (f16): 45.00 MiB, V (q8_0): 45.00 MiB
sched_reserve: reserving ...
resolve_fused_ops: Flash Attention enabled
sched_reserve:        CPU compute buffer size =    98.25 MiB
"""
CARDS = """\
load_tensors:   CPU_Mapped model buffer size =   500.00 MiB
load_tensors:        CUDA0 model buffer size =  2000.00 MiB
load_tensors:        CUDA1 model buffer size =  1000.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =    64.00 MiB
llama_kv_cache:      CUDA1 KV buffer size =    32.00 MiB
llama_memory_recurrent:      CUDA0 RS buffer size =    10.50 MiB
sched_reserve:      CUDA0 compute buffer size =   300.00 MiB
sched_reserve:      CUDA1 compute buffer size =   200.00 MiB
sched_reserve:  CUDA_Host compute buffer size =    16.00 MiB
"""


def test_each_part_is_told_with_what_it_depends_on():
    memory = memory_in(PROCESSOR)

    assert memory.model == round(98.87 * MIB) + round(7.59 * MIB)
    assert (memory.kv, memory.compute, memory.output) == (90 * MIB, round(98.25 * MIB), round(0.19 * MIB))
    assert (memory.n_ctx, memory.n_batch, memory.n_ubatch, memory.n_outputs) == (4096, 2048, 512, 1)
    assert (memory.type_k, memory.type_v, memory.flash_attention) == ("f16", "q8_0", True)
    assert memory.buffers[1] == Buffer("CPU_REPACK", "model", round(7.59 * MIB))


def test_parts_are_summed_over_devices_and_kept_for_each():
    memory = memory_in(CARDS)

    assert (memory.model, memory.kv, memory.compute) == (3500 * MIB, 96 * MIB, 516 * MIB)
    assert memory.state == round(10.5 * MIB)
    of_second = [(buffer.kind, buffer.nbytes // MIB) for buffer in memory.buffers if buffer.device == "CUDA1"]
    assert of_second == [("model", 1000), ("kv", 32), ("compute", 200)]


@pytest.mark.parametrize(
    ("lost", "part"), [("model buffer", "model"), ("KV buffer", "kv"), ("compute buffer", "compute")]
)
def test_a_line_that_is_not_there_is_not_measured(lost, part):
    log = "\n".join(line for line in PROCESSOR.splitlines() if lost not in line)

    assert getattr(memory_in(log), part) is None
    assert memory_in(PROCESSOR).state is None


def test_an_engine_that_says_nothing_is_not_measured_at_all():
    assert memory_in("") == Memory(None, None, None)


def test_a_graph_that_is_laid_out_again_replaces_the_first():
    """llama.cpp tells of its compute buffers each time; they are not held twice."""
    again = "sched_reserve: reserving ...\nsched_reserve:        CPU compute buffer size =    20.00 MiB\n"

    assert memory_in(PROCESSOR + again).compute == 20 * MIB


def test_a_window_has_a_cache_of_its_own():
    window = "llama_kv_cache:        CPU KV buffer size =    10.00 MiB\n"

    assert memory_in(PROCESSOR + window).kv == 100 * MIB


@pytest.mark.parametrize(
    ("line", "used"),
    [
        ("llama_context: flash_attn            = disabled", False),
        (
            "llama_context: flash_attn            = auto\nx: Flash Attention not supported, set to disabled",
            False,
        ),
        ("llama_context: flash_attn            = enabled", True),
        ("llama_context: flash_attn            = auto", None),
    ],
)
def test_flash_attention_is_what_was_decided(line, used):
    assert memory_in(line).flash_attention is used
