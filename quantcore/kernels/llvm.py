"""LLVM as kernels are compiled and, where `quantcore.kernels.machine` cannot do it, loaded by it."""

from __future__ import annotations

from typing import Any

from quantcore.errors import MissingEngine

MISSING = "compiled kernels need numba: pip install 'quanthub[jit]'"


def open_binding() -> Any:
    """Return `llvmlite.binding`, ready for this processor; raises `MissingEngine` without it."""
    try:
        from llvmlite import binding
    except ImportError as exc:
        raise MissingEngine(MISSING) from exc
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


def host_machine(binding: Any) -> Any:
    """Return what emits machine code for exactly this processor."""
    target = binding.Target.from_default_triple()
    features = binding.get_host_cpu_features().flatten()
    return target.create_target_machine(cpu=binding.get_host_cpu_name(), features=features, opt=3)


def has_avx512() -> bool:
    """Return whether this processor has 32 registers of sixteen float32."""
    return bool(open_binding().get_host_cpu_features().get("avx512f"))
