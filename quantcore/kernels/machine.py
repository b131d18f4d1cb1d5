"""What processor this is, and machine code for it in memory, without the compiler that made it.

An object file of the compiler needs little to be run: a place in memory, addresses filled in, and permission
to execute. To have LLVM do that would take fifty megabytes and a few hundredths of a second in every process
that quantizes. What is read here is ELF for x86-64 with nothing but absolute 64-bit addresses, which is what
`quantcore.kernels.compiler` asks for; all else goes through llvmlite.

1. System V Application Binary Interface, AMD64 supplement, chapter 4.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_ADDRESS = struct.Struct("<Q")
_RELOCATABLE, _X86_64 = 1, 62
_SYMBOLS, _STRINGS_OF, _RELOCATIONS, _NO_BITS = 2, 3, 4, 8
_ALLOCATED = 2
_ABSOLUTE = 1  # R_X86_64_64: symbol + addend, 8 bytes
_READ, _WRITE, _EXECUTE = 1, 2, 4


@cache
def processor() -> str:
    """Return what tells this processor from others that may lack instructions it has."""
    wanted = {"vendor_id", "cpu family", "model", "model name", "flags"}
    wanted |= {"Features", "CPU implementer", "CPU part"}  # what ARM's say
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        found = [line for line in lines if line.partition(":")[0].strip() in wanted]
    except OSError:
        found = [platform.processor()]
    return "\n".join([platform.system(), platform.machine(), *found])


class NotLoadable(Exception):
    """An object file of another kind; llvmlite may know how to load it."""


@dataclass(frozen=True)
class _Section:
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    target: int
    alignment: int


def load_object(code: bytes, symbol: str) -> tuple[int, Any]:
    """Return the address of a function, and what must be kept as long as it may be called.

    Raises `NotLoadable` for anything but the objects that are known, and where memory may not be executed.
    """
    try:
        return _Object(code).load(symbol)
    except (struct.error, IndexError, KeyError, ValueError, OSError) as exc:
        raise NotLoadable(str(exc)) from exc


class _Object:
    """A relocatable ELF file."""

    def __init__(self, code: bytes) -> None:
        self.code = code
        head = _HEADER.unpack_from(code)
        if head[0][:6] != b"\x7fELF\x02\x01" or head[1:3] != (_RELOCATABLE, _X86_64):
            raise NotLoadable("not a relocatable ELF file for x86-64")
        start, size, count = head[6], head[11], head[12]
        self.sections = [self._section(start + size * n) for n in range(count)]

    def _section(self, at: int) -> _Section:
        _, kind, flags, _, offset, size, link, info, alignment, _ = _SECTION.unpack_from(self.code, at)
        return _Section(kind, flags, offset, size, link, info, max(1, alignment))

    def load(self, symbol: str) -> tuple[int, Any]:
        places, total = {}, 0
        for number, section in enumerate(self.sections):
            if section.flags & _ALLOCATED:
                total = -(-total // section.alignment) * section.alignment
                places[number] = total
                total += section.size
        memory = mmap.mmap(-1, max(1, total))
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for number, place in places.items():
            section = self.sections[number]
            if section.kind != _NO_BITS:
                memory[place : place + section.size] = self._bytes(section)
        addresses = self._addresses({number: base + place for number, place in places.items()})
        for section in self.sections:
            if section.kind == _RELOCATIONS and section.target in places:
                self._relocate(section, memory, places[section.target], addresses)
        if _libc().mprotect(ctypes.c_void_p(base), ctypes.c_size_t(total), _READ | _EXECUTE):
            raise NotLoadable("this system executes no memory that was written")
        names = {name: address for name, address in addresses if name}
        return names[symbol], memory

    def _bytes(self, section: _Section) -> bytes:
        data = self.code[section.offset : section.offset + section.size]
        if len(data) != section.size:
            raise NotLoadable("cut short")
        return data

    def _addresses(self, bases: dict[int, int]) -> list[tuple[str, int]]:
        """Return name and address of every symbol; those of no section come from the C library."""
        table = next(section for section in self.sections if section.kind == _SYMBOLS)
        strings = self._bytes(self.sections[table.link])
        found = []
        for at in range(table.offset, table.offset + table.size, _SYMBOL.size):
            name_at, _, _, section, value, _ = _SYMBOL.unpack_from(self.code, at)
            name = strings[name_at : strings.index(b"\0", name_at)].decode()
            if section in bases:
                found.append((name, bases[section] + value))
            elif section == 0 and name:
                found.append((name, _address_in_libc(name)))
            else:
                found.append(("", 0))
        return found

    def _relocate(
        self, section: _Section, memory: mmap.mmap, place: int, addresses: list[tuple[str, int]]
    ) -> None:
        for at in range(section.offset, section.offset + section.size, _RELOCATION.size):
            offset, info, addend = _RELOCATION.unpack_from(self.code, at)
            kind, symbol = info & 0xFFFFFFFF, info >> 32
            if kind != _ABSOLUTE or not addresses[symbol][1]:
                raise NotLoadable(f"relocation {kind}")
            _ADDRESS.pack_into(memory, place + offset, addresses[symbol][1] + addend)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def _address_in_libc(name: str) -> int:
    try:
        function = getattr(_libc(), name)
    except AttributeError:
        raise NotLoadable(f"nobody has {name}") from None
    return ctypes.cast(function, ctypes.c_void_p).value or 0
