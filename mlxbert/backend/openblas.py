"""OpenBLAS from the ``scipy-openblas32`` wheel: where it lies, and whether its float32 product is right.

The wheel is one shared library (32-bit integers, every symbol prefixed with ``scipy_``, so that it meets no
other BLAS) and a package whose import only serves people who compile against it; neither that import nor
numpy is needed here.

Threads: OpenBLAS starts as many as the processor affinity of this process allows (at most 64). It reads
``OPENBLAS_NUM_THREADS``, or else ``OMP_NUM_THREADS``, once, when it is loaded, which is when mlxbert is
imported: set it before. It does not know of cgroup CPU quotas: in a container that may use 4 CPUs' time on
a machine of 64 (docker ``--cpus=4``), set ``OPENBLAS_NUM_THREADS=4``, or its threads wait for each other
most of the time. A fork is safe: OpenBLAS ends its threads before one and starts them again when they are
needed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import nan
from pathlib import Path

_PACKAGE = "scipy_openblas32"
# The aarch64 wheel of 0.3.34 was built without kernels for SME: on a processor that has it (Apple's M4 in a Linux
# container) it calls empty stand-ins, whose products are wrong. Seen under qemu's `-cpu max`; plain Arm's are right.
_CORE_TYPE = "OPENBLAS_CORETYPE"
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
    """Load the shared library, for good.

    Raises `OSError` where it cannot be loaded and `AttributeError` where it lacks a function, as ctypes does.
    """
    with _settings():
        library = ctypes.CDLL(str(path))  # RTLD_LOCAL: its symbols are nobody else's
    get_config = library.scipy_openblas_get_config
    get_config.restype = ctypes.c_char_p
    sgemm = ctypes.cast(library.scipy_cblas_sgemm, ctypes.c_void_p).value
    assert sgemm is not None
    return OpenBlas(str(path), sgemm, get_config().decode().strip(), library.scipy_openblas_get_num_threads())


@contextmanager
def one_thread(blas_path: str, afterwards: int) -> Iterator[None]:
    """Inside, a product is computed on the thread that asks for it: for a caller who has threads of his own.

    Args:
        blas_path: of the loaded library.
        afterwards: its threads then; not those of before, which another caller may just have lowered.
    """
    library = ctypes.CDLL(blas_path)
    library.scipy_openblas_set_num_threads(1)
    try:
        yield
    finally:
        library.scipy_openblas_set_num_threads(afterwards)


@contextmanager
def _settings() -> Iterator[None]:
    """OpenBLAS's environment variables while it loads, which is when it reads them; the user's own are left alone."""
    wanted = {"OPENBLAS_THREAD_TIMEOUT": _THREAD_TIMEOUT}
    if _has_sme():
        wanted[_CORE_TYPE] = "NEOVERSEN1"
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _has_sme() -> bool:
    """Whether the kernel reports Arm's Scalable Matrix Extension (HWCAP2_SME of <asm/hwcap.h>)."""
    if platform.machine() != "aarch64":
        return False
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes, getauxval.restype = (ctypes.c_ulong,), ctypes.c_ulong
    return bool(getauxval(26) & 1 << 23)  # AT_HWCAP2


# M, N, K: OpenBLAS's blocked kernel; its path for small products; a single row, column and inner index,
# which it hands to other routines. Odd sizes leave a remainder at every block width. All lie below the size
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
            # Bytes first, because comparing float by float is slow; they alone would tell 0.0 from −0.0.
            if out.tobytes() != expected.tobytes() and out != expected:
                marks = ["ᵀ" if trans == _TRANS else "" for trans in (trans_a, trans_b)]
                return f"A{marks[0]}·B{marks[1]}, {m}×{k} by {k}×{n}, alpha {alpha:g}, beta {beta:g}"
    return None


Block = list[list[float]]


def _block(rows: int, columns: int) -> Block:
    """Odd integers from −13 to 11, without symmetry: swapped or transposed matrices give another product."""
    return [[float(2 * ((3 * i + 5 * j + i * j) % 13) - 13) for j in range(columns)] for i in range(rows)]


_A, _B = _block(_ROWS, _INNER), _block(_INNER, _COLUMNS)


def _transposed(block: Block) -> Block:
    return [list(column) for column in zip(*block, strict=True)]


def _tiled(block: Block, rows: int, columns: int) -> array[float]:
    """A dense row-major matrix that repeats `block` in both directions."""
    period = array("f")
    for row in block:
        period.extend((array("f", row) * (columns // len(row) + 1))[:columns])
    return (period * (rows // len(block) + 1))[: rows * columns]


@lru_cache
def _scaled_product(k: int, alpha: float, added: float) -> Block:
    """The block that alpha·A·B + added repeats, for an inner dimension of k."""
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
