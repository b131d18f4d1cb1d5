"""Compiled kernels on disk: all there, never damaged, never wrong, missing without numba in a clear way."""

import json
import platform
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest

from quantcore import backends
from quantcore.errors import MissingEngine, UnsupportedTensor
from quantcore.formats import get_format
from quantcore.kernels import library
from quantcore.kernels.machine import NotLoadable, load_object
from quantcore.proving import unfit
from tests.quantcore.kernels import compiled, needs_numba

pytestmark = needs_numba


def defined():
    """Return what the modules of kernels define, by the names of the index."""
    modules = [import_module(name) for name in library.modules()]
    pairs = [pair for module in modules for pair in getattr(module, "KERNELS", {}).items()]
    steps = [f"step {name}" for module in modules for name in getattr(module, "STEPS", {})]
    readers = [f"from {name}" for module in modules for name in getattr(module, "READERS", {})]
    kernels = [f"{name}{'+' * i}" for name, pair in pairs for i in (0, 1) if pair[i] is not None]
    return sorted([*kernels, *steps, *readers])


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of our own that holds copies of the kernel of Q8_0 and of the readers."""
    built = library.folder()
    compiled()
    monkeypatch.setenv("QUANTCORE_CACHE", str(tmp_path))
    folder = library.folder()
    folder.mkdir(parents=True)
    index = json.loads((built / "index.json").read_text())
    kept = {name: entry for name, entry in index.items() if name.startswith("from ") or name == "Q8_0"}
    for entry in kept.values():
        (folder / entry["file"]).write_bytes((built / entry["file"]).read_bytes())
    (folder / "index.json").write_text(json.dumps(kept))
    return folder


def test_every_kernel_that_is_defined_is_there():
    """None was left out because it errs here."""
    assert compiled().entries == defined()


def test_the_kernels_agree_with_numpy():
    assert unfit(compiled()) == []


def test_kernels_that_err_or_crash_are_found_and_the_others_are_tried_all_the_same(own_cache, monkeypatch):
    """The kernel of Q8_0 in the place of others errs; a symbol that is not code crashes."""
    index = json.loads((own_cache / "index.json").read_text())
    entry = index["Q8_0"]
    index |= {"Q4_0": entry, "Q5_0": {**entry, "symbol": "nowhere"}, "Q8_0+": entry}
    (own_cache / "index.json").write_text(json.dumps(index))

    assert sorted(unfit(library.Library(own_cache))) == ["Q4_0", "Q5_0"]


def test_a_kernel_that_errs_is_left_out(own_cache, monkeypatch):
    told, entry = [], json.loads((own_cache / "index.json").read_text())["Q8_0"]
    code = (own_cache / entry["file"]).read_bytes()
    (own_cache / "index.json").unlink()

    def compile_two(_name, target):
        (target / entry["file"]).write_bytes(code)
        return {"Q4_K": entry, "Q5_K": entry}

    monkeypatch.setattr(library, "modules", lambda: ["quantcore.kernels.cpu.k_line"])
    monkeypatch.setattr(library, "_compile", compile_two)

    found = library.build(told.append, lambda kernels: [kernels.names[0]])

    assert found.names == ["Q5_K"]
    assert any("Q4_K errs" in text for text in told)


def damage_code(folder):
    (folder / "Q8_0.o").write_bytes(b"nonsense")


def lose_code(folder):
    (folder / "Q8_0.o").unlink()


def empty_index(folder):
    (folder / "index.json").write_text("")


def let_others_write(folder):
    folder.chmod(0o777)


def let_others_write_code(folder):
    (folder / "Q8_0.o").chmod(0o666)


@pytest.mark.parametrize(
    "spoil", [damage_code, lose_code, empty_index, let_others_write, let_others_write_code]
)
def test_kernels_that_cannot_be_trusted_are_not_run_and_auto_does_without(own_cache, spoil):
    spoil(own_cache)

    with pytest.raises(MissingEngine, match="kernels --build"):
        library.Library(own_cache)
    found = backends.choose("auto")

    assert (found.name, found.kernels) == ("numpy", None)
    assert "cannot be used" in found.hint


def test_kernels_that_cannot_be_used_are_compiled_anew(own_cache, monkeypatch):
    entry = json.loads((own_cache / "index.json").read_text())["Q8_0"]
    code = (own_cache / entry["file"]).read_bytes()
    damage_code(own_cache)

    def compile_one(_name, target):
        (target / entry["file"]).write_bytes(code)
        return {"Q8_0": entry}

    monkeypatch.setattr(library, "modules", lambda: ["one"])
    monkeypatch.setattr(library, "_compile", compile_one)

    assert library.build().names == ["Q8_0"]


def test_auto_takes_numpy_and_says_so_where_nothing_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTCORE_CACHE", str(tmp_path))

    found = backends.choose("auto")

    assert (found.name, found.kernels) == ("numpy", None)
    assert "quantcore kernels --build" in found.hint


def test_without_numba_auto_is_numpy_and_jit_says_what_to_install(tmp_path, monkeypatch):
    """A process of its own in which numba and llvmlite cannot be imported, where nothing was compiled."""
    monkeypatch.setenv("QUANTCORE_CACHE", str(tmp_path))
    code = (
        "import sys; sys.modules['numba'] = sys.modules['llvmlite'] = None\n"
        "from quantcore import backends, errors\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "from quantcore.kernels import library\n"
        "library.find_spec = lambda name: None if name == 'numba' else real(name)\n"
        "print(backends.choose('auto').name, repr(backends.choose('auto').hint))\n"
        "try: backends.choose('jit')\n"
        "except errors.MissingEngine as exc: print(exc)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == ["numpy ''", library.MISSING]


def test_loading_kernels_imports_no_compiler():
    code = (
        "import sys\n"
        "from quantcore.kernels import library\n"
        "assert library.load().find('Q4_K', weighted=False)\n"
        "print({'numba', 'llvmlite'} & sys.modules.keys())\n"
    )
    compiled()

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    on_linux = platform.system() == "Linux" and platform.machine() == "x86_64"
    assert done.stdout.strip() == ("set()" if on_linux else "{'llvmlite'}")


@pytest.mark.parametrize("name", ["Q4_K", "IQ2_XS+", "from F16", "IQ1_M+"])
def test_machine_code_does_the_same_however_it_is_loaded(name, monkeypatch):
    """By ourselves, and by llvmlite, which is for all other systems."""
    compiled()
    x = np.random.default_rng(4).normal(size=(3, 512)).astype(np.float16)
    out = []
    for by_llvm in (False, True):
        if by_llvm:
            monkeypatch.setattr(library, "load_object", refuse)
        kernels = library.Library(library.folder())
        if name.startswith("from"):
            made = np.empty(x.shape, np.float32)
            kernels.reader("F16")(x, None, None, made)
        else:
            fmt, weights = get_format(name.removesuffix("+")), np.ones(512, np.float32)
            given = weights if name.endswith("+") else None
            made = fmt.quantize(x.astype(np.float32), given, kernels=kernels).parts["blocks"]
        out.append(made)

    assert (out[0] == out[1]).all()


def refuse(*_):
    raise NotLoadable


@pytest.mark.parametrize("cut", [0, 10, 63, 200, 1500])
def test_object_files_that_are_none_are_not_loaded(cut, own_cache):
    code = (own_cache / "Q8_0.o").read_bytes()
    with pytest.raises(NotLoadable):
        load_object(code[:cut], "anything")
    with pytest.raises(NotLoadable):
        load_object(code, "anything")


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0"])
def test_values_too_large_for_a_scale_are_refused_by_kernels_as_by_numpy(name):
    x = np.full((1, 256), 3e9, np.float32) * np.linspace(-1, 1, 256, dtype=np.float32)
    for kernels in (None, compiled()):
        with pytest.raises(UnsupportedTensor, match="too large for a 16-bit scale"):
            get_format(name).quantize(x, kernels=kernels)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_kernels_as_by_numpy(value):
    x = np.zeros((3, 256), np.float32)
    x[1, 77] = value
    for kernels in (None, compiled()):
        with pytest.raises(UnsupportedTensor, match="NaN or infinite"):
            get_format("Q4_K").quantize(x, kernels=kernels)
