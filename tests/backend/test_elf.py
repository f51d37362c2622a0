"""The slots of imported functions: found in a made-up library of either processor, and written in real pages."""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxbert.backend import openblas as elf

BASE = 0x7F00_0000_0000
JUMP_SLOT = {"x86_64": 7, "aarch64": 1026}
GLOB_DAT = {"x86_64": 6, "aarch64": 1025}
RELATIVE = {"x86_64": 8, "aarch64": 1027}


def made_up_library(machine: str, *, relocated: bool) -> tuple[elf.LoadedLibrary, Callable[[int, int], bytes]]:
    """The tables that the walk reads, loaded at BASE; `relocated`: their addresses as glibc leaves them."""
    names = ["cblas_dgemm", "cblas_sgemm_batch", "my_cblas_sgemm", "cblas_sgemm", "cblas_cgemm"]
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    offsets = [strings.index(b"\0" + name.encode() + b"\0") + 1 for name in names]
    symbols = b"".join(struct.pack("<IBBHQQ", offset, 0, 0, 0, 0, 0) for offset in (0, *offsets))

    def rela(offset: int, symbol: int, kind: int) -> bytes:
        return struct.pack("<QQq", offset, symbol << 32 | kind, 0)

    other = next(name for name in JUMP_SLOT if name != machine)
    jumps = [rela(0x5000 + 8 * i, 1 + i, JUMP_SLOT[machine]) for i in range(len(names))]
    data = [
        rela(0x6000, 4, RELATIVE[machine]),
        rela(0x6008, 4, GLOB_DAT[machine]),
        rela(0x6010, 1, GLOB_DAT[machine]),
        rela(0x6018, 4, JUMP_SLOT[other]),  # another processor's number: means something else here
    ]
    tables = {5: strings, 6: symbols, 23: b"".join(jumps), 7: b"".join(data)}
    places = {tag: 0x1000 * (1 + i) for i, tag in enumerate(tables)}
    sizes = {10: len(strings), 2: len(tables[23]), 8: len(tables[7])}
    tags = [(1, 1), (1, 9), *sizes.items()]
    tags += [(tag, place + (BASE if relocated else 0)) for tag, place in places.items()]
    image = bytearray(0x7000)
    for place, table in (
        (0, b"".join(struct.pack("<qQ", *tag) for tag in [*tags, (0, 0)])),
        *((places[tag], table) for tag, table in tables.items()),
    ):
        image[place : place + len(table)] = table

    def read(address: int, size: int) -> bytes:
        assert 0 <= address - BASE <= len(image) - size, hex(address)
        return bytes(image[address - BASE : address - BASE + size])

    return elf.LoadedLibrary("libmlx.so", BASE, BASE), read


@pytest.mark.parametrize("machine", [*elf.SLOT_TYPES])
@pytest.mark.parametrize("relocated", [True, False])
def test_walk_finds_the_slots_of_one_function(machine: str, relocated: bool) -> None:
    library, read = made_up_library(machine, relocated=relocated)
    assert elf.import_slots(library, "cblas_sgemm", machine, read) == [BASE + 0x5018, BASE + 0x6008]
    assert elf.import_slots(library, "cblas_cgemm", machine, read) == [BASE + 0x5020]
    assert elf.import_slots(library, "cblas_zgemm", machine, read) == []


def test_a_library_without_tables_has_no_slots() -> None:
    library = elf.LoadedLibrary("linux-vdso.so.1", BASE, BASE)
    assert elf.import_slots(library, "cblas_sgemm", "x86_64", lambda _, size: bytes(size)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps")
@pytest.mark.parametrize("protection", [mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE])
def test_writing_leaves_the_pages_protection_as_it_was(protection: int) -> None:
    page = mmap.mmap(-1, mmap.PAGESIZE)
    slot = ctypes.addressof(ctypes.c_char.from_buffer(page)) + 64
    elf._mprotect(slot, protection)
    elf.write_pointer(slot, 0x1234_5678_9ABC)
    assert elf.read_pointer(slot) == 0x1234_5678_9ABC
    assert elf.page_protection(slot) == protection
    elf._mprotect(slot, mmap.PROT_READ | mmap.PROT_WRITE)


def test_an_address_in_no_mapping_is_an_error(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "7f0000001000-7f0000002000 r--p 00000000 fe:00 12 /usr/lib/a file.so\n"
        "7f0000002000-7f0000003000 rw-p 00001000 fe:00 12 /usr/lib/a file.so\n"
        "7f0000003000-7f0000004000 r-xp 00000000 00:00 0 \n"
    )
    found = [elf.page_protection(at, maps) for at in (0x7F0000001000, 0x7F0000002FFF, 0x7F0000003008)]
    assert found == [mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_EXEC]
    with pytest.raises(OSError, match=r"lists no mapping at 0x7f0000004000"):
        elf.page_protection(0x7F0000004000, maps)
