"""Compile the kernels of one module: `python -m quantcore.kernels.compiler MODULE FOLDER`.

Run by `quantcore.kernels.library`, in a process of its own. Prints the module's part of the index as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from numba import njit

from quantcore.kernels.lanes import KERNEL
from quantcore.kernels.library import entry_name, reader_name, step_name
from quantcore.kernels.llvm import host_machine, open_binding


def _entries(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a module has under the names that the index gives them."""
    for name, pair in getattr(module, "KERNELS", {}).items():
        for weighted, function in zip((False, True), pair, strict=True):
            if function is not None:
                yield entry_name(name, weighted=weighted), function
    for name, function in getattr(module, "READERS", {}).items():
        yield reader_name(name), function
    for name, function in getattr(module, "STEPS", {}).items():
        yield step_name(name), function


def compile_module(name: str, target: Path) -> dict[str, dict[str, str]]:
    """Compile the kernels of one module into object files in `target` and return their part of the index."""
    binding = open_binding()
    machine = host_machine(binding)
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy"}
    index: dict[str, dict[str, str]] = {}
    done: dict[Any, dict[str, str]] = {}
    for entry, function in _entries(import_module(name)):
        if function not in done:
            compiled: Any = njit(KERNEL, **options)(function.py_func)
            file = f"{entry}.o"
            module = binding.parse_assembly(compiled.inspect_llvm(compiled.signatures[0]))
            code = machine.emit_object(module)
            (target / file).write_bytes(code)
            symbol = compiled.overloads[compiled.signatures[0]].fndesc.mangled_name
            sha256 = hashlib.sha256(code).hexdigest()
            done[function] = {"file": file, "symbol": symbol, "sha256": sha256}
        index[entry] = done[function]
    return index


if __name__ == "__main__":
    sys.stdout.write(json.dumps(compile_module(sys.argv[1], Path(sys.argv[2]))))
