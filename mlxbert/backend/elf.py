"""Where a loaded shared library keeps the addresses of the functions that it imports (Linux, 64-bit ELF).

A call from one shared library to another goes through a *slot*: eight bytes in the caller's data into which
the dynamic linker wrote the callee's address. `import_slots` finds the slots of a function by name, in the
library as it lies in memory, and `write_pointer` changes one. The structures are those of the System V ABI,
chapter 5, and of the processor supplements for x86-64 and AArch64; both use relocations with addends
(``Elf64_Rela``), little-endian.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Reader = Callable[[int, int], bytes]
"""``read(address, size)`` gives bytes of this process's memory (in a test: of a made-up image)."""

# Relocation types whose target is one plain address of a symbol: {GLOB_DAT, JUMP_SLOT}, by
# `platform.machine()`.
SLOT_TYPES: dict[str, frozenset[int]] = {
    "x86_64": frozenset({6, 7}),
    "aarch64": frozenset({1025, 1026}),
}

_PT_DYNAMIC = 2
_DT_NULL, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_STRSZ = 0, 2, 5, 6, 7, 8, 10
_DT_JMPREL = 23

_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")  # type, flags, offset, vaddr, paddr, filesz, memsz, align
_DYNAMIC_ENTRY = struct.Struct("<qQ")  # tag, value
_RELA = struct.Struct("<QQq")  # offset, symbol << 32 | type, addend
_SYMBOL_SIZE = 24  # its first four bytes: the name's offset in the string table


@dataclass(frozen=True)
class LoadedLibrary:
    """A shared library in this process: its file, load address, and the address of its dynamic section."""

    path: str
    base: int
    dynamic: int


class _PhdrInfo(ctypes.Structure):
    """The head of ``struct dl_phdr_info`` of <link.h>; what follows is not needed."""

    _fields_ = (
        ("addr", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("phdr", ctypes.c_uint64),
        ("phnum", ctypes.c_uint16),
    )


_PhdrCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_PhdrInfo), ctypes.c_size_t, ctypes.c_void_p)


def loaded_libraries() -> list[LoadedLibrary]:
    """List the shared libraries in this process that have a dynamic section, in load order."""
    seen: list[tuple[str, int, int, int]] = []

    def note(info: ctypes._Pointer[_PhdrInfo], _size: int, _data: int | None) -> int:
        entry = info.contents
        seen.append((os.fsdecode(entry.name or b""), entry.addr, entry.phdr, entry.phnum))
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(_PhdrCallback(note), None)

    libraries = []
    for path, base, phdr, count in seen:
        headers = ctypes.string_at(phdr, count * _PROGRAM_HEADER.size)
        for kind, _flags, _offset, vaddr, *_ in _PROGRAM_HEADER.iter_unpack(headers):
            if kind == _PT_DYNAMIC:
                libraries.append(LoadedLibrary(path, base, base + vaddr))
    return libraries


def import_slots(library: LoadedLibrary, symbol: str, machine: str, read: Reader = ctypes.string_at) -> list[int]:
    """Find the addresses of the slots through which `library` calls the function named `symbol`.

    `machine` is `platform.machine()`, a key of `SLOT_TYPES`. Usually one slot (calls through the PLT) or
    none (the library does not import the function); a library that also takes the function's address can
    have two.
    """
    tags = _dynamic_tags(library, read)
    if not {_DT_STRTAB, _DT_SYMTAB, _DT_STRSZ} <= tags.keys():
        return []

    def address(tag: int) -> int:
        # glibc has added the load address to these entries, in memory; other dynamic linkers leave them
        # alone.
        return tags[tag] if tags[tag] >= library.base else library.base + tags[tag]

    strings, symbols = address(_DT_STRTAB), address(_DT_SYMTAB)
    wanted = symbol.encode() + b"\0"

    def is_wanted(index: int) -> bool:
        (name,) = struct.unpack("<I", read(symbols + index * _SYMBOL_SIZE, 4))
        return name + len(wanted) <= tags[_DT_STRSZ] and read(strings + name, len(wanted)) == wanted

    slots: list[int] = []
    for table, size in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
        if table in tags and size in tags:
            relocations = read(address(table), tags[size])
            for offset, info, _addend in _RELA.iter_unpack(relocations):
                if info & 0xFFFFFFFF in SLOT_TYPES[machine] and is_wanted(info >> 32):
                    slots.append(library.base + offset)
    return sorted(set(slots))  # some linkers let DT_RELA's range cover DT_JMPREL's


def _dynamic_tags(library: LoadedLibrary, read: Reader) -> dict[int, int]:
    """Read the dynamic section up to its end mark (repeated tags, such as DT_NEEDED, keep the last value)."""

    def entries() -> Iterator[tuple[int, int]]:
        address = library.dynamic
        while True:
            tag, value = _DYNAMIC_ENTRY.unpack(read(address, _DYNAMIC_ENTRY.size))
            if tag == _DT_NULL:
                return
            yield tag, value
            address += _DYNAMIC_ENTRY.size

    return dict(entries())


def read_pointer(slot: int) -> int:
    """Give the address that lies in `slot`."""
    return ctypes.c_uint64.from_address(slot).value


def write_pointer(slot: int, value: int) -> None:
    """Put the address `value` into `slot`, and leave the page's protection as it was.

    The slot is eight bytes on an eight-byte boundary, so that a thread that calls through it meanwhile sees
    the old address or the new one. Raises `OSError` where the page can be neither read about nor made
    writable.
    """
    protection = page_protection(slot)
    if protection & mmap.PROT_WRITE:
        ctypes.c_uint64.from_address(slot).value = value
        return
    _mprotect(slot, protection | mmap.PROT_WRITE)
    try:
        ctypes.c_uint64.from_address(slot).value = value
    finally:
        _mprotect(slot, protection)


def page_protection(address: int, maps: Path = Path("/proc/self/maps")) -> int:
    """Give the ``mmap.PROT_*`` bits of the mapping that holds `address`, as proc(5) lists it."""
    for line in maps.read_text(errors="surrogateescape").splitlines():
        span, permissions = line.split(maxsplit=2)[:2]
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= address < end:
            bits = {"r": mmap.PROT_READ, "w": mmap.PROT_WRITE, "x": mmap.PROT_EXEC}
            return sum(bit for letter, bit in bits.items() if letter in permissions)
    raise OSError(f"{maps} lists no mapping at {address:#x}")


def _mprotect(address: int, protection: int) -> None:
    """Set the protection of the one page that holds `address`."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = ctypes.c_void_p(address & -mmap.PAGESIZE)
    if libc.mprotect(page, ctypes.c_size_t(mmap.PAGESIZE), ctypes.c_int(protection)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mprotect: {os.strerror(code)}")
