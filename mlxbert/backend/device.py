"""Check that MLX can run here, and give it a fast BLAS on a Linux CPU.

The Linux CPU wheel of MLX links the reference BLAS, which multiplies float32 matrices some 50 times slower
than the processor can. `use_fast_blas` points its calls of ``cblas_sgemm`` at OpenBLAS, in about
5 ms, at any time: see `mlxbert.backend.openblas`, also for its threads.

Only ``cblas_sgemm`` is bound: every float32 matmul, ``mx.addmm``, linear layer and convolution ends there,
forward and backward. libmlx also imports ``cblas_dgemm``, ``cblas_cgemm`` and LAPACK routines (float64,
complex64, ``mx.linalg``), which no encoder uses; float16, bfloat16 and quantized products are loops of
MLX's own and reach no BLAS.

`package_versions`, `device_name` and `blas_name` describe an environment, without host, user or path.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from heads.command_line import install_fix, requirement
from mlxbert.backend import openblas
from mlxbert.backend.openblas import (
    SLOT_TYPES,
    LoadedLibrary,
    import_slots,
    loaded_libraries,
    read_pointer,
    write_pointer,
)
from mlxbert.errors import MLXBertError

_SWITCH = "MLXBERT_BLAS"
_GPU = f' (with an NVIDIA GPU: "{requirement("cuda12")}" or "{requirement("cuda13")}")'
_INSTALL = install_fix("cpu") + _GPU


class BackendError(MLXBertError, ImportError):
    """MLX cannot be imported here."""


class BlasSettingError(MLXBertError, ValueError):
    """The environment variable MLXBERT_BLAS has an unknown value."""


@dataclass(frozen=True)
class BlasStatus:
    """The BLAS of MLX's float32 matrices: OpenBLAS, loaded from `library`, if `active`; the reason; its threads."""

    active: bool
    library: str | None
    reason: str
    threads: int = 1


class _OwnBlasStaysError(Exception):
    """OpenBLAS cannot be used, and the user should know; the message is the reason."""


def require_backend() -> None:
    """Import ``mlx.core``, or raise `BackendError`: one line that says what to install.

    Plain ``mlx`` on Linux comes without ``libmlx.so``; each of its backends brings one. If several are
    installed, they have overwritten each other's; then the log "mlxbert" gets a warning.
    """
    try:
        import mlx.core  # noqa: F401  (tried, not used)
    except ImportError as error:
        message = missing_backend_message(error, sys.platform, _installed_backends())
        raise BackendError(message) from (None if "libmlx.so: cannot open" in str(error) else error)
    if sys.platform == "linux" and len(backends := _installed_backends()) > 1:
        _warn(_several_backends_message(backends))


def missing_backend_message(error: ImportError, system: str, backends: list[str]) -> str:
    """Say in one line why ``mlx.core`` could not be imported and what to install.

    `system` is `sys.platform`; `backends` are the backend packages found beside ``mlx``.
    """
    absent = isinstance(error, ModuleNotFoundError) and error.name in ("mlx", "mlx.core")
    if system != "linux":
        reason = "MLX is not installed" if absent else f"MLX cannot be imported ({_one_line(error)})"
        return f"{reason}; fix: {install_fix(reinstall=not absent)}"
    if len(backends) > 1:
        return f"MLX cannot be imported ({_one_line(error)}): {_several_backends_message(backends)}"
    if absent:
        return f"MLX is not installed; fix: {_INSTALL}"
    if "libmlx.so: cannot open" in str(error):
        return f"MLX is installed without a backend; fix: {_INSTALL}"
    return f"MLX cannot be imported ({_one_line(error)}); fix: {install_fix('cpu', reinstall=True)}{_GPU}"


def _several_backends_message(backends: list[str]) -> str:
    names = " and ".join(backends)
    return (
        f"{names} overwrite each other's libmlx.so; "
        f"fix: pip uninstall -y {' '.join(backends)} mlx, then {_INSTALL}, one of them only"
    )


def _installed_backends() -> list[str]:
    """Name the backend packages that lie beside ``mlx``, by their metadata folders."""
    spec = importlib.util.find_spec("mlx")
    folders = {Path(folder).parent for folder in (spec and spec.submodule_search_locations) or ()}
    names = {info.name.split("-")[0] for folder in folders for info in folder.glob("mlx_c*-*.dist-info")}
    return sorted(name.replace("_", "-") for name in names if name == "mlx_cpu" or name.startswith("mlx_cuda"))


_lock = threading.Lock()
_status: BlasStatus | None = None


def use_fast_blas() -> BlasStatus:
    """Let MLX's float32 matrix products run in OpenBLAS, on a Linux CPU; return whether they do.

    The first call decides; later ones, from any thread, give the same answer. OpenBLAS is checked with
    small products first. If it cannot be used, MLX keeps its own BLAS, and a warning on the log "mlxbert" says
    why; without a logging configuration, this line appears on stderr, once. There is no warning if there is
    nothing to do: on macOS, with MLX for CUDA, or after
    ``MLXBERT_BLAS=off``. The variable is read here, at the first call; a word other than on or off raises
    `BlasSettingError`.

    MLX itself computes nothing here: its first computation starts a thread that does not survive a fork,
    so a product through MLX in an import would hang every forked worker that uses MLX.
    """
    global _status
    with _lock:
        if _status is None:
            _status = _decide()
        return _status


def _decide() -> BlasStatus:
    setting = os.environ.get(_SWITCH, "on").strip().lower()
    if setting not in ("on", "off", ""):
        raise BlasSettingError(
            f"{_SWITCH}={os.environ[_SWITCH]!r} is not known; fix: set it to on or off, or unset it"
        )
    if sys.platform != "linux":
        return BlasStatus(False, None, "only MLX's Linux CPU build needs another BLAS")
    if setting == "off":
        return BlasStatus(False, None, f"{_SWITCH}=off")
    import mlx.core as mx

    if mx.cuda.is_available():
        return BlasStatus(False, None, "MLX is built for CUDA")
    try:
        blas = _bind_openblas()
    except _OwnBlasStaysError as reason:
        _warn(f"MLX keeps its own slow BLAS: {reason} ({_SWITCH}=off silences this line)")
        return BlasStatus(False, None, str(reason))
    return BlasStatus(True, blas.path, _described(blas.config, blas.threads), blas.threads)


def _described(config: str, threads: int) -> str:
    return f"{config}, {threads} thread{'' if threads == 1 else 's'}"


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let models compute, inside, on `count` threads; do nothing where MLX does not multiply with OpenBLAS.

    The number is the process's, not the calling thread's. It may be larger than the number of cores: the results are
    those of a machine with so many, and the threads wait for each other.
    """
    global _status
    before = use_fast_blas()
    if before.library is None or count == before.threads:
        yield
        return
    config = before.reason.rpartition(", ")[0]
    openblas.set_threads(before.library, count)
    _status = replace(before, threads=count, reason=_described(config, count))
    try:
        yield
    finally:
        _status = before
        openblas.set_threads(before.library, before.threads)


def _bind_openblas() -> openblas.OpenBlas:
    """Find the slot, load OpenBLAS, check it, bind it; raise `_OwnBlasStaysError` if a step fails."""
    machine = platform.machine()
    if machine not in SLOT_TYPES:
        raise _OwnBlasStaysError(f"no OpenBLAS is known for a processor of type {machine}")
    slots = [slot for library in _libmlx() for slot in import_slots(library, "cblas_sgemm", machine)]
    if not slots:
        raise _OwnBlasStaysError("this build of libmlx.so does not import cblas_sgemm")
    path = openblas.find_library()
    if path is None:
        raise _OwnBlasStaysError(f"scipy-openblas32 is not installed; fix: {install_fix('cpu')}")
    try:
        blas = openblas.load(path)
    except (OSError, AttributeError) as error:
        raise _OwnBlasStaysError(f"OpenBLAS does not load ({_one_line(error)})") from error
    bind_checked(slots, blas)
    return blas


def _libmlx() -> list[LoadedLibrary]:
    return [library for library in loaded_libraries() if Path(library.path).name == "libmlx.so"]


def bind_checked(slots: list[int], blas: openblas.OpenBlas) -> None:
    """Write OpenBLAS's address into the slots if its products are right; else leave them as they were.

    The check comes before the first write, so that no thread ever calls a wrong function; if one
    cannot be written, the earlier ones are restored. Raises `_OwnBlasStaysError` with the reason.
    """
    wrong = openblas.first_wrong_product(openblas.Sgemm(blas.sgemm))
    if wrong is not None:
        raise _OwnBlasStaysError(f"a wrong product ({wrong}) from {blas.config}")
    old = [read_pointer(slot) for slot in slots]
    try:
        for slot in slots:
            write_pointer(slot, blas.sgemm)
    except OSError as error:
        for slot, pointer in zip(slots, old, strict=True):
            if read_pointer(slot) != pointer:
                write_pointer(slot, pointer)
        raise _OwnBlasStaysError(f"libmlx.so cannot be bound to OpenBLAS ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _warn(message: str) -> None:
    """Log one line; a Python warning would print two and fail the import under ``-W error``."""
    import logging  # takes 10 ms, so only if needed

    logging.getLogger("mlxbert").warning("mlxbert: %s", message)


def one_blas_thread() -> AbstractContextManager[None]:
    """Let OpenBLAS, inside, multiply on the calling thread only; do nothing if MLX keeps its own BLAS."""
    status = use_fast_blas()
    return nullcontext() if status.library is None else openblas.one_thread(status.library, status.threads)


def reuse_memory(*, training: bool = False) -> None:
    """Keep freed memory for the next arrays, on a Linux CPU: see `mlxbert.backend.openblas`."""
    if use_fast_blas().active:
        openblas.reuse_buffers()
        if training:
            openblas.keep_heap()


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return package -> version, or "not installed"."""
    from importlib.metadata import PackageNotFoundError, version  # takes 15 ms

    facts = {}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "a checkout" if package == "mlxbert" else "not installed"
    return facts


def device_name() -> str:
    """Return MLX's default device: "cpu", or "gpu" with its name."""
    import mlx.core as mx

    device = mx.default_device()
    if device.type == mx.DeviceType.cpu:
        return "cpu"
    name = mx.device_info().get("device_name", "")
    return f"gpu ({name})" if name else "gpu"


def blas_name() -> str:
    """Return the BLAS of float32 matrices on a CPU, with its version and threads."""
    status = use_fast_blas()
    # The reason names OpenBLAS's version and the threads; if it is not active, the reason may name a path.
    return status.reason if status.active else "MLX's own"


def blas_threads() -> int:
    """Return the threads of the BLAS on a CPU, which change the order of sums; MLX's own has one."""
    return use_fast_blas().threads
