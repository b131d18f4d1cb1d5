"""Compiled kernels on disk: built once per processor and version, loaded in milliseconds.

Building needs numba and takes a minute or two; it is done by `quantcore kernels --build`, by `make install`,
or when the `jit` backend is asked for by name, and always announced. What it leaves is machine code, one file
per kernel, in a folder named after all that it depends on: the sources and the processor. Loading needs
neither numba nor, on Linux with x86-64, llvmlite.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantcore.cores import usable_cores
from quantcore.errors import MissingEngine
from quantcore.kernels.llvm import MISSING, host_machine, open_binding
from quantcore.kernels.machine import NotLoadable, load_object, processor
from quantcore.kernels.status import check

_FOLDER = Path(__file__).parent
# What goes into machine code beside the kernels.
_COMPILED = ("common", "compiler", "lanes", "llvm", "memory", "shuffles", "status", "tiles")
_INDEX = "index.json"
_LOCK = ".lock"  # held while kernels are compiled
UNUSED_SECONDS = 90 * 86400
_FORM = ctypes.CFUNCTYPE(
    ctypes.c_int32,  # numba's own status, always 0: kernels raise nothing
    *(ctypes.c_void_p, ctypes.c_void_p),  # where the result and an exception go
    *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
)
REPAIR = "`quantcore kernels --build` compiles them anew"

Say = Callable[[str], None]
Prove = Callable[["Library"], list[str]]


_READER = "from "
_STEP = "step "


def entry_name(format_name: str, *, weighted: bool) -> str:
    """Return the name of a kernel in the index."""
    return f"{format_name}{'+' if weighted else ''}"


def reader_name(type_name: str) -> str:
    """Return the name in the index of what reads a type of floats."""
    return f"{_READER}{type_name}"


def step_name(name: str) -> str:
    """Return the name in the index of a step of a forward pass."""
    return f"{_STEP}{name}"


def cache_root() -> Path:
    """Return the folder for what is computed once: `QUANTCORE_CACHE`, or the user's cache folder.

    Raises `MissingEngine` where there is neither.
    """
    given = os.environ.get("QUANTCORE_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "quantcore"
    except RuntimeError as exc:
        raise MissingEngine(
            "there is no home folder to keep kernels in; name one by QUANTCORE_CACHE"
        ) from exc


def folder() -> Path:
    """Return where this version's kernels for this processor are, or will be."""
    digest = hashlib.sha256()
    for source in sorted([*_FOLDER.glob("cpu/*.py"), *(_FOLDER / f"{name}.py" for name in _COMPILED)]):
        digest.update(source.relative_to(_FOLDER).as_posix().encode() + b"\0" + source.read_bytes())
    digest.update(processor().encode())
    return cache_root() / "kernels" / digest.hexdigest()[:20]


def can_build() -> bool:
    """Return whether numba, which compiles the kernels, is installed."""
    return find_spec("numba") is not None


def is_built() -> bool:
    """Return whether `load` has something to load."""
    try:
        return (folder() / _INDEX).is_file()
    except (MissingEngine, OSError):
        return False


class Compiled:
    """Machine code of one kernel; see `quantcore.kernels.Addressed`."""

    def __init__(self, native: Any) -> None:
        self._native = native

    def __call__(self, values: Any, importance: Any | None, tables: Any | None, out: Any | None) -> None:
        places = [None if part is None else part.ctypes.data for part in (importance, tables, out)]
        self.at(values.ctypes.data, *values.shape, *places)

    def at(
        self,
        values: int,
        n_rows: int,
        row_length: int,
        importance: int | None,
        tables: int | None,
        out: int | None,
    ) -> None:
        status, problem = ctypes.c_int64(), ctypes.c_void_p()
        result = ctypes.addressof(status), ctypes.addressof(problem)
        self._native(*result, values, n_rows, row_length, importance, tables, out)
        if status.value:
            check(status.value)


class Library:
    """Kernels of a built folder, each made ready when it is first asked for.

    Raises `MissingEngine` for a folder that is damaged or that others may write to, or where its machine code
    cannot be run.
    """

    name = "jit"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: list[Any] = []  # what machine code lives in
        self._found: dict[str, Compiled] = {}
        try:
            self._index, self._code = _read(path)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else exc
            raise MissingEngine(f"kernels in {path} cannot be used: {why}; {REPAIR}") from exc
        # One is made ready at once, so that a system where none can be says so before any work.
        for name in list(self._index)[:1]:
            self._entry(name)

    @property
    def names(self) -> list[str]:
        """The kernels there are: names of formats, with a plus where importance is taken into account."""
        return sorted(name for name in self._index if not name.startswith((_READER, _STEP)))

    @property
    def entries(self) -> list[str]:
        """The kernels and readers there are, by their names in the index."""
        return sorted(self._index)

    def find(self, format_name: str, *, weighted: bool) -> Compiled | None:
        """Return the kernel of a format; see `quantcore.kernels.Kernels`."""
        return self._entry(entry_name(format_name, weighted=weighted))

    def reader(self, type_name: str) -> Compiled | None:
        """Return what reads a type of floats; see `quantcore.kernels.Kernels`."""
        return self._entry(reader_name(type_name))

    def step(self, name: str) -> Compiled | None:
        """Return a step of a forward pass, or None where numpy has to do; see `quantcore.kernels.cpu`."""
        return self._entry(step_name(name))

    def _entry(self, name: str) -> Compiled | None:
        entry = self._index.get(name)
        if entry is None:
            return None
        file = entry["file"]
        if file not in self._found:
            self._found[file] = self._ready(self._code[file], entry["symbol"])
        return self._found[file]

    def _ready(self, code: bytes, symbol: str) -> Compiled:
        try:
            address, kept = load_object(code, symbol)
        except NotLoadable:
            address, kept = _load_by_llvm(code, symbol)
        self._kept.append(kept)
        return Compiled(_FORM(address))


def _read(path: Path) -> tuple[dict[str, dict[str, str]], dict[str, bytes]]:
    """Return the index of a folder and all machine code, as it was when it was compiled and nobody else's."""
    _require_ours(path)
    index: dict[str, dict[str, str]] = json.loads((path / _INDEX).read_text())
    code: dict[str, bytes] = {}
    for entry in index.values():
        file = path / entry["file"]
        _require_ours(file)
        code[entry["file"]] = file.read_bytes()
        if hashlib.sha256(code[entry["file"]]).hexdigest() != entry["sha256"]:
            # Running it would end the process, or worse.
            raise ValueError(f"{file.name} is damaged")
    return index, code


def _require_ours(path: Path) -> None:
    """Refuse what another user could have put there: it will be run."""
    found = path.stat()
    if hasattr(os, "geteuid") and (found.st_uid not in {0, os.geteuid()} or found.st_mode & 0o022):
        raise ValueError(f"other users may write {path.name}")


def _load_by_llvm(code: bytes, symbol: str) -> tuple[int, Any]:
    """Do what `load_object` does, for any system that llvmlite knows; raises `MissingEngine` without it."""
    binding = open_binding()
    # An engine owns its machine and frees it: none may be shared.
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), host_machine(binding))
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine.get_function_address(symbol), engine


_open = cache(Library)


def load() -> Library | None:
    """Return this processor's kernels, or None when they were not built.

    Raises `MissingEngine` when they cannot be used.
    """
    return _open(folder()) if is_built() else None


def modules() -> list[str]:
    """Return the names of the modules that define kernels."""
    found = pkgutil.iter_modules([str(_FOLDER / "cpu")])
    return [f"quantcore.kernels.cpu.{module.name}" for module in found if not module.name.startswith("_")]


def _compile(name: str, target: Path) -> dict[str, dict[str, str]]:
    """Compile one module in a process of its own: they run side by side and leave no numba in this one."""
    command = [sys.executable, "-m", "quantcore.kernels.compiler", name, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise MissingEngine(f"kernels of {name} could not be compiled: {last[0]}")
    part: dict[str, dict[str, str]] = json.loads(done.stdout)
    return part


def _publish(folder: Path, index: dict[str, dict[str, str]]) -> None:
    (folder / _INDEX).write_text(json.dumps(index, indent=1))


def build(say: Say = lambda _text: None, prove: Prove = lambda _kernels: []) -> Library:
    """Compile every kernel for this processor, unless that was done, and return them.

    `prove` returns the names of kernels that do not do what they should on this machine: they are left out.
    Whoever wants the same at the same time waits and finds them. Raises `MissingEngine` without numba.
    """
    path = folder()
    if not _is_sound(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with (path.parent / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_sound(path):
                    _build(path, say, prove)
        except OSError as exc:
            raise MissingEngine(f"kernels cannot be kept in {path.parent}: {exc.strerror}") from exc
    return _open(path)


def is_building() -> bool:
    """Return whether kernels are being compiled at this moment, by whatever process."""
    return not _try_lock(fcntl.LOCK_SH | fcntl.LOCK_NB)


def wait() -> None:
    """Return when no kernels are being compiled."""
    _try_lock(fcntl.LOCK_SH)


def _try_lock(how: int) -> bool:
    try:
        with (folder().parent / _LOCK).open() as lock:
            fcntl.flock(lock, how)
    except BlockingIOError:
        return False
    except (OSError, MissingEngine):
        pass  # nobody ever compiled any
    return True


def _is_sound(path: Path) -> bool:
    try:
        _open(path)
    except MissingEngine:
        return False
    return True


def _build(path: Path, say: Say, prove: Prove) -> None:
    if not can_build():
        raise MissingEngine(MISSING)
    names = modules()
    say(f"compiling kernels for this processor, once: {len(names)} families, a minute or two ...")
    for left in path.parent.glob(".building-*"):
        shutil.rmtree(left, ignore_errors=True)  # of a build that was stopped
    for old in path.parent.glob(f"*/{_INDEX}"):
        if time.time() - old.stat().st_atime > UNUSED_SECONDS:
            shutil.rmtree(old.parent, ignore_errors=True)  # of versions that nobody runs any more
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=path.parent))
    try:
        index: dict[str, dict[str, str]] = {}
        with ThreadPoolExecutor(usable_cores()) as pool:
            for part in pool.map(partial(_compile, target=work), names):
                index |= part
        _publish(work, index)
        for name in prove(Library(work)):
            say(f"the compiled kernel {name} errs on this processor and is left out; please report this")
            del index[name]
        _publish(work, index)
        work.chmod(0o755)  # one user may compile for others
        shutil.rmtree(path, ignore_errors=True)  # what someone left of an earlier one
        work.rename(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say("kernels compiled")
