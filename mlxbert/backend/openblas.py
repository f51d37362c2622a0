"""Keep memory that MLX frees on a Linux CPU: if the system gets it back, each new page costs a page fault.

MLX's CPU backend gets every array from the C library, which maps large ones anew and unmaps them when they are freed.

Find and change the addresses of functions that a loaded shared library imports (Linux, 64-bit ELF).

A call from one shared library to another goes through a *slot*: eight bytes in the caller's data into which
the dynamic linker wrote the callee's address. `import_slots` finds the slots of a function by name, in the
library as it lies in memory, and `write_pointer` changes one. The structures are those of the System V ABI,
chapter 5, and of the processor supplements for x86-64 and AArch64; both use relocations with addends
(``Elf64_Rela``), little-endian.

Load OpenBLAS from the ``scipy-openblas32`` wheel, and check its float32 products.

The wheel is one shared library (32-bit integers, every symbol prefixed with ``scipy_``, so that it meets no
other BLAS) and a package whose import only serves people who compile against it; neither that import nor
numpy is needed here.

Threads: OpenBLAS starts as many as the processor affinity of this process allows (at most 64), and no more than
the CPUs' time that its control groups allow (docker ``--cpus=4``): else the threads would wait for each other most
of the time. ``OPENBLAS_NUM_THREADS``, or else ``OMP_NUM_THREADS``, sets another number; it is read once, when
OpenBLAS is loaded, which is when mlxbert is imported: set it before. A fork is safe: OpenBLAS ends its threads
before one and starts them again when they are needed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import struct
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import product
from math import nan
from pathlib import Path

from mlxbert.backend.processor import cpu_limit, has_sme

# MLX's default cache on a CPU, and twice the memory of one layer of bert-base at 8 × 128 tokens.
_CACHE_DEFAULT, _CACHE = 32 * 2**20, 128 * 2**20
# malloc.h of glibc. Blocks below the first limit come from the heap, whose free top goes back beyond the second.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LIMIT = 2**30
# The same settings from outside, mallopt(3).
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def reuse_buffers() -> None:
    """Let MLX keep 128 MB of freed memory for its next arrays, instead of 32: 3 to 5 % of bert-base's forward pass.

    A limit that the caller has set already stays.
    """
    import mlx.core as mx

    if (before := mx.set_cache_limit(_CACHE)) != _CACHE_DEFAULT:
        mx.set_cache_limit(before)


@cache
def keep_heap() -> bool:
    """Let glibc serve arrays of up to 1 GiB from a heap that keeps up to 1 GiB free.

    To measure the saving, compare `python -m benchmarks.tweets` with and without MALLOC_TRIM_THRESHOLD_=131072. The
    setting is permanent for the process, so only training uses it. MLX's own cache of that size would keep separate
    buffers for each batch length; the heap is shared. Return False, with nothing changed, if the environment has its
    own settings or the C library is not glibc.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # Before glibc 2.35, the first limit could not exceed 32 MiB: then neither is set.
    return bool(library.mallopt(_M_MMAP_THRESHOLD, _LIMIT) and library.mallopt(_M_TRIM_THRESHOLD, _LIMIT))


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
    entries: list[tuple[str, int, int, int]] = []

    def note(info: ctypes._Pointer[_PhdrInfo], _size: int, _data: int | None) -> int:
        entry = info.contents
        entries.append((os.fsdecode(entry.name or b""), entry.addr, entry.phdr, entry.phnum))
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(_PhdrCallback(note), None)

    libraries = []
    for path, base, phdr, count in entries:
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
    """Return the address in `slot`."""
    return ctypes.c_uint64.from_address(slot).value


def write_pointer(slot: int, value: int) -> None:
    """Write the address `value` to `slot`, and restore the page's protection.

    The slot is eight bytes on an eight-byte boundary, so that a thread that calls through it meanwhile sees
    the old address or the new one. Raises `OSError` if the page's protection cannot be read or
    changed.
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
    """Return the ``mmap.PROT_*`` bits of the mapping that holds `address`, as proc(5) lists it."""
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


_PACKAGE = "scipy_openblas32"
# The aarch64 wheel of 0.3.34 was built without kernels for SME: on a processor that has it (Apple's M4 in a Linux
# container) it calls empty stand-ins, whose products are wrong. Seen under qemu's `-cpu max`; plain Arm's are right.
_CORE_TYPE = "OPENBLAS_CORETYPE"
# The first that is set counts.
_THREAD_NUMBERS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
# Log2 of the cycles that an idle thread spins before it sleeps; 26 by default, 25 ms. A forward pass has work for
# MLX's own thread between any two products: sleeping after 0.4 ms leaves it the core.
_THREAD_TIMEOUT = "20"
_ROW_MAJOR, _NO_TRANS, _TRANS = 101, 111, 112

_int, _float, _pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
# cblas_sgemm of the BLAS Technical Forum's C interface:
# order, transA, transB, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc
Sgemm = ctypes.CFUNCTYPE(
    None, _int, _int, _int, _int, _int, _int, _float, _pointer, _int, _pointer, _int, _float, _pointer, _int
)
"""The C type of ``cblas_sgemm``: ``Sgemm(address)`` makes a Python callable of it."""


@dataclass(frozen=True)
class OpenBlas:
    """A loaded OpenBLAS: its file, the address of its ``cblas_sgemm``, its description, its threads."""

    path: str
    sgemm: int
    config: str
    threads: int


def find_library() -> Path | None:
    """Find the wheel's shared library without importing its package; None where it is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder, "lib").glob("libscipy_openblas*.so")):
            return path
    return None


def load(path: Path) -> OpenBlas:
    """Load the shared library permanently.

    Raises `OSError` if it cannot be loaded and `AttributeError` if it lacks a function, as ctypes does.
    """
    with _settings():
        library = ctypes.CDLL(str(path))  # RTLD_LOCAL: other libraries do not see its symbols
    get_config = library.scipy_openblas_get_config
    get_config.restype = ctypes.c_char_p
    sgemm = ctypes.cast(library.scipy_cblas_sgemm, ctypes.c_void_p).value
    assert sgemm is not None
    return OpenBlas(str(path), sgemm, get_config().decode().strip(), library.scipy_openblas_get_num_threads())


def set_threads(blas_path: str, count: int) -> None:
    """Let the loaded library multiply on `count` threads, at most 64."""
    ctypes.CDLL(blas_path).scipy_openblas_set_num_threads(count)


class _OneThread:
    """How many callers are inside `one_thread` now, and how to set the threads when the last one leaves."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.callers = 0
        self.restore: Callable[[], object] | None = None

    def enter(self, library: ctypes.CDLL, afterwards: int) -> None:
        """Count a caller in."""
        with self.lock:
            self.callers += 1
            self.restore = partial(library.scipy_openblas_set_num_threads, afterwards)
            library.scipy_openblas_set_num_threads(1)

    def leave(self) -> None:
        """Count a caller out; one that was inside at a fork is not counted in the child."""
        with self.lock:
            self.callers = max(self.callers - 1, 0)
            if self.callers == 0 and self.restore is not None:
                self.restore()

    def after_fork(self) -> None:
        """Begin anew in the child: whoever was inside on another thread is not there any more."""
        self.lock = threading.Lock()
        if self.callers:
            self.callers = 0
            self.leave()


_one_thread = _OneThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread.after_fork)


@contextmanager
def one_thread(blas_path: str, afterwards: int) -> Iterator[None]:
    """Compute, inside, a product on the calling thread only, for callers with their own threads.

    The number of threads is OpenBLAS's, not the calling thread's: it rises again when the last caller leaves.

    Args:
        blas_path: of the loaded library.
        afterwards: the number of threads to set at the end.
    """
    _one_thread.enter(ctypes.CDLL(blas_path), afterwards)
    try:
        yield
    finally:
        _one_thread.leave()


@contextmanager
def _settings() -> Iterator[None]:
    """Set OpenBLAS's environment variables while it loads and reads them; the user's settings stay."""
    wanted = {"OPENBLAS_THREAD_TIMEOUT": _THREAD_TIMEOUT}
    if has_sme():
        wanted[_CORE_TYPE] = "NEOVERSEN1"
    limit = cpu_limit()
    if limit is not None and limit < len(os.sched_getaffinity(0)) and not any(map(_number_set, _THREAD_NUMBERS)):
        wanted[_THREAD_NUMBERS[0]] = str(limit)
    # OpenBLAS takes no notice of a number of threads that is none, so that `wanted` has one only then.
    ours = {name: value for name, value in wanted.items() if name == _THREAD_NUMBERS[0] or name not in os.environ}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _number_set(name: str) -> bool:
    """Return whether an environment variable is a number above 0."""
    value = os.environ.get(name, "").strip()
    return value.isascii() and value.isdigit() and int(value) > 0


# M, N, K: OpenBLAS's blocked kernel; its path for small products; a single row, column and inner index,
# which other routines compute. Odd sizes leave a remainder at every block width. All lie below the size
# from which it uses threads (M·N·K > 262144): on a busy machine the first joint product can wait 20 ms for
# a thread, and an import should not.
_SHAPES = ((97, 33, 65), (17, 9, 23), (1, 65, 129), (97, 1, 129), (3, 5, 1))
_SCALES = ((1.0, 0.0), (1.0, 1.0), (0.5, 2.0))  # alpha, beta: a product; a fused bias; a general mx.addmm
_ROWS, _INNER, _COLUMNS = 5, 11, 7  # A repeats a _ROWS × _INNER block, B an _INNER × _COLUMNS block
_BIAS = 3.0


def first_wrong_product(sgemm: Callable[..., None]) -> str | None:
    """Multiply small integer matrices and name the first wrong product; None when every one is right.

    All four transpositions, as MLX asks for them: row-major and dense. With beta = 0 the output holds NaN
    beforehand, because MLX passes memory that it has not filled. Every partial sum is a small multiple of
    1/2, exact in float32 in any order of summation, so the comparison is for equality. About 2 ms in plain
    Python: the matrices repeat a small block, and so does their product.
    """
    for m, n, k in _SHAPES:
        a = {_NO_TRANS: (_tiled(_A, m, k), k), _TRANS: (_tiled(_transposed(_A), k, m), m)}
        b = {_NO_TRANS: (_tiled(_B, k, n), n), _TRANS: (_tiled(_transposed(_B), n, k), k)}
        for (alpha, beta), trans_a, trans_b in product(_SCALES, a, b):
            expected = _tiled(_scaled_product(k, alpha, beta * _BIAS), m, n)
            out = array("f", [_BIAS if beta else nan]) * (m * n)
            (a_values, lda), (b_values, ldb) = a[trans_a], b[trans_b]
            sgemm(
                *(_ROW_MAJOR, trans_a, trans_b, m, n, k),
                *(alpha, _address(a_values), lda, _address(b_values), ldb),
                *(beta, _address(out), n),
            )
            # Bytes first, because comparing float by float is slow; but bytes of 0.0 and −0.0 differ.
            if out.tobytes() != expected.tobytes() and out != expected:
                marks = ["ᵀ" if trans == _TRANS else "" for trans in (trans_a, trans_b)]
                return f"A{marks[0]}·B{marks[1]}, {m}×{k} by {k}×{n}, alpha {alpha:g}, beta {beta:g}"
    return None


Block = list[list[float]]


def _block(rows: int, columns: int) -> Block:
    """Return odd integers from −13 to 11, without symmetry: swapped or transposed matrices give another product."""
    return [[float(2 * ((3 * i + 5 * j + i * j) % 13) - 13) for j in range(columns)] for i in range(rows)]


_A, _B = _block(_ROWS, _INNER), _block(_INNER, _COLUMNS)


def _transposed(block: Block) -> Block:
    return [list(column) for column in zip(*block, strict=True)]


def _tiled(block: Block, rows: int, columns: int) -> array[float]:
    """Return a dense row-major matrix that repeats `block` in both directions."""
    period = array("f")
    for row in block:
        period.extend((array("f", row) * (columns // len(row) + 1))[:columns])
    return (period * (rows // len(block) + 1))[: rows * columns]


@lru_cache
def _scaled_product(k: int, alpha: float, added: float) -> Block:
    """Return the block that alpha·A·B + added repeats, for an inner dimension of k."""
    repeats = [len(range(first, k, _INNER)) for first in range(_INNER)]
    return [
        [
            alpha * sum(count * x * y for count, x, y in zip(repeats, row, column, strict=True)) + added
            for column in _transposed(_B)
        ]
        for row in _A
    ]


def _address(values: array[float]) -> int:
    return values.buffer_info()[0]
