"""The backend: what import says without one, and float32 products of MLX that run in OpenBLAS."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from heads.command_line import install_fix, requirement
from mlxbert.backend import device as backend
from mlxbert.backend import openblas
from mlxbert.backend.device import BackendError, BlasSettingError, BlasStatus, missing_backend_message
from mlxbert.errors import MLXBertError

ROOT = Path(__file__).resolve().parents[2]
GPU = f'(with an NVIDIA GPU: "{requirement("cuda12")}" or "{requirement("cuda13")}")'
CPU_EXTRA = f"fix: {install_fix('cpu')} {GPU}"


def has_linux_cpu_mlx() -> bool:
    if sys.platform != "linux":
        return False
    import mlx.core as mx

    return not mx.cuda.is_available()


linux_cpu = pytest.mark.skipif(not has_linux_cpu_mlx(), reason="binds MLX's Linux CPU build")
needs_openblas = pytest.mark.skipif(openblas.find_library() is None, reason="scipy-openblas32 is not installed")


def run(code: str, *options: str, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, `path` in front of the checkout on its import path."""
    environment = {name: value for name, value in os.environ.items() if name != "MLXBERT_BLAS"} | variables
    environment["PYTHONPATH"] = os.pathsep.join(str(entry) for entry in (path, ROOT) if entry)
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)


def output(code: str, *options: str, path: Path | None = None, **variables: str) -> str:
    """What the code prints, when it neither fails nor says anything on stderr."""
    done = run(code, *options, path=path, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# The message without a backend.


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


REQUIRE = "from mlxbert.backend.device import require_backend; require_backend()"


def test_without_mlx_one_line_says_what_to_install() -> None:
    done = run(REQUIRE, "-S")  # -S: no site-packages
    wanted = CPU_EXTRA if sys.platform == "linux" else f"fix: {install_fix()}"
    assert last_line(done) == f"mlxbert.backend.device.BackendError: MLX is not installed; {wanted}"


@linux_cpu
def test_plain_mlx_without_a_backend_says_which_extra_to_install(tmp_path: Path) -> None:
    import mlx.core as mx

    # What `pip install mlx` leaves on Linux: the extension module without lib/libmlx.so beside it.
    (tmp_path / "mlx").mkdir()
    shutil.copy(mx.__file__, tmp_path / "mlx")
    done = run(REQUIRE, path=tmp_path)
    assert last_line(done) == f"mlxbert.backend.device.BackendError: MLX is installed without a backend; {CPU_EXTRA}"
    assert done.stderr.count("Traceback") == 1  # one exception, not a chain


def test_another_import_error_is_told_in_one_line() -> None:
    error = ImportError("libmlx.so: undefined symbol:\n _ZN3mlx4core")
    assert missing_backend_message(error, "linux", ["mlx-cpu"]) == (
        "MLX cannot be imported (libmlx.so: undefined symbol: _ZN3mlx4core); "
        f"fix: {install_fix('cpu', reinstall=True)} {GPU}"
    )


def test_several_backends_are_named() -> None:
    error = ImportError("libcudart.so.12: cannot open shared object file: No such file or directory")
    assert missing_backend_message(error, "linux", ["mlx-cpu", "mlx-cuda-12"]) == (
        "MLX cannot be imported "
        "(libcudart.so.12: cannot open shared object file: No such file or directory): "
        "mlx-cpu and mlx-cuda-12 overwrite each other's libmlx.so; "
        "fix: pip uninstall -y mlx-cpu mlx-cuda-12 mlx, then "
        f"{install_fix('cpu')} {GPU}, "
        "one of them only"
    )


def test_on_macos_there_is_one_package_to_install() -> None:
    absent = ModuleNotFoundError("No module named 'mlx'", name="mlx")
    assert missing_backend_message(absent, "darwin", []) == f"MLX is not installed; fix: {install_fix()}"
    broken = ImportError("Library not loaded: libmlx.dylib")
    assert missing_backend_message(broken, "darwin", []) == (
        f"MLX cannot be imported (Library not loaded: libmlx.dylib); fix: {install_fix(reinstall=True)}"
    )


def test_errors_are_both_ours_and_what_python_expects() -> None:
    assert issubclass(BackendError, MLXBertError)
    assert issubclass(BackendError, ImportError)
    assert issubclass(BlasSettingError, MLXBertError)
    assert issubclass(BlasSettingError, ValueError)


@linux_cpu
def test_two_installed_backends_are_reported_though_mlx_imports(tmp_path: Path) -> None:
    (tmp_path / "mlx").mkdir()
    for name in ("mlx_cpu-0.32.4", "mlx_cuda_12-0.32.4", "mlx_clip-0.1"):
        (tmp_path / f"{name}.dist-info").mkdir()
    done = run(REQUIRE, path=tmp_path, MLXBERT_BLAS="off")
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "overwrite" in line]
    assert len(lines) == len(done.stderr.splitlines()) >= 1
    assert lines[0].startswith("mlxbert: mlx-cpu and mlx-cuda-12 overwrite each other's libmlx.so; fix: pip")


# Binding, in any import order.

MULTIPLY = """
import mlx.core as mx
a = (mx.arange(35 * 24) * 7 % 13 - 6).reshape(35, 24).astype(mx.float32)
b = (mx.arange(24 * 41) * 5 % 11 - 5).reshape(24, 41).astype(mx.float32)
products = [a @ b, mx.contiguous(a.T).T @ b, a @ mx.contiguous(b.T).T, mx.addmm(mx.ones(41), a, b, 0.5, 2.0)]
x, y = a.tolist(), list(zip(*b.tolist()))
dots = [[sum(p * q for p, q in zip(row, column)) for column in y] for row in x]
assert [p.tolist() for p in products] == [dots, dots, dots, [[0.5 * d + 2 for d in row] for row in dots]]
"""

BIND = """
import ctypes, platform
from mlxbert.backend import device as backend, openblas
status = backend.use_fast_blas()
(libmlx,) = (library for library in openblas.loaded_libraries() if library.path.endswith("/libmlx.so"))
(slot,) = openblas.import_slots(libmlx, "cblas_sgemm", platform.machine())
sgemm = ctypes.cast(ctypes.CDLL(status.library).scipy_cblas_sgemm, ctypes.c_void_p).value
assert status.active and openblas.read_pointer(slot) == sgemm, status
"""

BUSY = {
    "nothing": "",
    "numpy": "import numpy; numpy.ones((300, 300)) @ numpy.ones((300, 300))",
    "scipy": "import scipy.linalg; scipy.linalg.inv([[1.0, 2.0], [3.0, 4.0]])",
    "the wheel's package": "import scipy_openblas32",
    "torch": "import torch; torch.ones(300, 300) @ torch.ones(300, 300)",
}


@linux_cpu
@needs_openblas
@pytest.mark.parametrize("other", [*BUSY])
def test_binds_after_anything_was_imported_and_mlx_has_multiplied(other: str) -> None:
    if other in ("torch", "scipy"):
        pytest.importorskip(other)
    output("\n".join((MULTIPLY, BUSY[other], BIND, MULTIPLY)))


@linux_cpu
@needs_openblas
@pytest.mark.parametrize("other", ["numpy", "the wheel's package", "torch"])
def test_stays_bound_when_something_is_imported_later(other: str) -> None:
    if other == "torch":
        pytest.importorskip("torch")
    output("\n".join((BIND, BUSY[other], MULTIPLY, BIND, MULTIPLY)))


@linux_cpu
@needs_openblas
def test_mlx_calls_through_the_slot_one_product_at_a_time() -> None:
    code = """
real, calls = openblas.Sgemm(openblas.read_pointer(slot)), []
def count(*arguments):
    calls.append(arguments)
    real(*arguments)
counting = openblas.Sgemm(count)
openblas.write_pointer(slot, ctypes.cast(counting, ctypes.c_void_p).value)
import mlx.core as mx
mx.eval(mx.ones((3, 4, 5)) @ mx.ones((3, 5, 6)))
mx.eval(mx.addmm(mx.ones(6), mx.ones((4, 5)), mx.ones((6, 5)).T))
(*batch, linear) = [(*call[:7], call[8], call[10], call[11], call[13]) for call in calls]
assert batch == [(101, 111, 111, 4, 6, 5, 1.0, 5, 6, 0.0, 6)] * 3, batch
assert linear == (101, 111, 112, 4, 6, 5, 1.0, 5, 5, 1.0, 6), linear
openblas.write_pointer(slot, ctypes.cast(real, ctypes.c_void_p).value)
"""
    output(BIND + "from mlxbert.backend import openblas" + code)


@linux_cpu
@needs_openblas
def test_is_decided_once_whatever_the_number_of_threads() -> None:
    output("""
from concurrent.futures import ThreadPoolExecutor
from mlxbert.backend import device as backend
backend._status = None
bind, calls = backend._bind_openblas, []
def counted():
    calls.append(None)
    return bind()
backend._bind_openblas = counted
with ThreadPoolExecutor(8) as pool:
    answers = list(pool.map(lambda _: backend.use_fast_blas(), range(32)))
assert len(calls) == 1 and answers[0].active and all(answer is answers[0] for answer in answers)
""")


@linux_cpu
@needs_openblas
def test_binding_imports_neither_numpy_nor_the_wheels_package() -> None:
    bare = "import sys, types; sys.modules['mlxbert'] = package = types.ModuleType('mlxbert')\n"
    bare += "package.__path__ = ['mlxbert']\n"  # the package without what its __init__ imports
    heavy = "print(sorted({'numpy', 'scipy_openblas32', 'logging', 'torch'} & {*sys.modules}))"
    assert output(bare + BIND + heavy) == "[]\n"


@linux_cpu
@needs_openblas
def test_forked_workers_multiply() -> None:
    # The parent has used OpenBLAS with its threads; MLX's own thread, which no fork survives, is not
    # started by binding.
    output(BIND + FORK, "-W", "ignore::DeprecationWarning")


FORK = """
from array import array
from mlxbert.backend import openblas
n = 256
ones, out = array("f", [1.0]) * (n * n), array("f", [0.0]) * (n * n)
def large_product():
    address = ones.buffer_info()[0]
    openblas.Sgemm(sgemm)(101, 111, 111, n, n, n, 1.0, address, n, address, n, 0.0, out.buffer_info()[0], n)
    return set(out)
def work(i):
    import mlx.core as mx
    return large_product(), (mx.full((n, n), i) @ mx.ones((n, n))).sum().item()
import multiprocessing
large_product()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(work, range(4)) == [({float(n)}, float(i * n**3)) for i in range(4)]
assert work(1) == ({float(n)}, float(n**3))
"""


@linux_cpu
@needs_openblas
def test_openblas_obeys_its_thread_variable() -> None:
    report = BIND + "print(status.reason)"
    assert output(report, OPENBLAS_NUM_THREADS="1").endswith(", 1 thread\n")
    assert output(report, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="").endswith(", 1 thread\n")


# Where MLX's own BLAS stays.

# Decides anew in a process whose import of mlxbert was told to leave MLX alone, and shows what is in the
# slot.
AGAIN = """
import os, platform
from mlxbert.backend import device as backend
from mlxbert.backend import openblas
import mlx.core
(libmlx,) = (library for library in openblas.loaded_libraries() if library.path.endswith("/libmlx.so"))
(slot,) = openblas.import_slots(libmlx, "cblas_sgemm", platform.machine())
before = openblas.read_pointer(slot)
os.environ["MLXBERT_BLAS"] = "on"
backend._status = None
{sabotage}
status = backend.use_fast_blas()
assert status is backend.use_fast_blas() and not status.active and status.library is None, status
assert openblas.read_pointer(slot) == before
"""

WRONG_FUNCTION = """
import ctypes, dataclasses
load = openblas.load
def wrong(*arguments):
    swapped = list(arguments)
    swapped[1], swapped[2] = swapped[2], swapped[1]
    real(*swapped)
wrong_pointer = openblas.Sgemm(wrong)
def load_wrong(path):
    global real
    blas = load(path)
    real = openblas.Sgemm(blas.sgemm)
    address = ctypes.cast(wrong_pointer, ctypes.c_void_p).value
    return dataclasses.replace(blas, sgemm=address, config="OpenBLAS 0.0 SWAPPED")
openblas.load = load_wrong
"""

NOT_WRITABLE = """
write, slots = openblas.write_pointer, []
def refuse(slot, value):
    slots.append(slot)
    raise OSError(13, "mprotect: Permission denied")
backend.write_pointer = refuse
"""


@linux_cpu
@needs_openblas
@pytest.mark.parametrize(
    ("sabotage", "reason"),
    [
        pytest.param(
            "import sys; sys.modules['scipy_openblas32'] = None",
            f"scipy-openblas32 is not installed; fix: {install_fix('cpu')}",
            id="wheel missing",
        ),
        pytest.param(
            "backend.import_slots = lambda *_: []",
            "this build of libmlx.so does not import cblas_sgemm",
            id="slot missing",
        ),
        pytest.param(
            "platform.machine = lambda: 'riscv64'",
            "no OpenBLAS is known for a processor of type riscv64",
            id="other processor",
        ),
        pytest.param(
            WRONG_FUNCTION,
            "a wrong product (A·Bᵀ, 97×65 by 65×33, alpha 1, beta 0) from OpenBLAS 0.0 SWAPPED",
            id="wrong product",
        ),
        pytest.param(
            NOT_WRITABLE,
            "libmlx.so cannot be bound to OpenBLAS ([Errno 13] mprotect: Permission denied)",
            id="slot not writable",
        ),
    ],
)
def test_mlx_keeps_its_own_blas_and_one_line_says_why(sabotage: str, reason: str) -> None:
    done = run(AGAIN.format(sabotage=sabotage) + MULTIPLY, MLXBERT_BLAS="off", PYTHONIOENCODING="utf-8")
    line = f"mlxbert: MLX keeps its own slow BLAS: {reason} (MLXBERT_BLAS=off silences this line)\n"
    assert (done.returncode, done.stderr) == (0, line)


@linux_cpu
def test_a_library_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "scipy_openblas32" / "lib").mkdir(parents=True)
    (tmp_path / "scipy_openblas32" / "__init__.py").touch()
    library = tmp_path / "scipy_openblas32" / "lib" / "libscipy_openblas.so"
    library.write_text("not a library, though long enough for a header, as it has to have 64 bytes\n")
    done = run(AGAIN.format(sabotage=""), path=tmp_path, MLXBERT_BLAS="off")
    assert done.stderr == (
        f"mlxbert: MLX keeps its own slow BLAS: OpenBLAS does not load ({library}: invalid ELF header) "
        "(MLXBERT_BLAS=off silences this line)\n"
    )
    assert done.returncode == 0


@linux_cpu
@pytest.mark.parametrize("word", ["off", " OFF "])
def test_off_is_quiet(word: str) -> None:
    code = "from mlxbert.backend.device import use_fast_blas; print(use_fast_blas())"
    wanted = BlasStatus(active=False, library=None, reason="MLXBERT_BLAS=off")
    assert output(code + MULTIPLY, MLXBERT_BLAS=word) == f"{wanted}\n"


def test_an_unknown_word_is_an_error() -> None:
    done = run("from mlxbert.backend.device import use_fast_blas; use_fast_blas()", MLXBERT_BLAS="mkl")
    assert last_line(done) == (
        "mlxbert.backend.device.BlasSettingError: MLXBERT_BLAS='mkl' is not known; "
        "fix: set it to on or off, or unset it"
    )


def test_macos_is_untouched_and_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(backend, "_bind_openblas", lambda: pytest.fail("bound"))
    monkeypatch.delenv("MLXBERT_BLAS", raising=False)
    assert backend._decide() == BlasStatus(False, None, "only MLX's Linux CPU build needs another BLAS")


def test_cuda_is_untouched_and_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend, "_bind_openblas", lambda: pytest.fail("bound"))
    monkeypatch.delenv("MLXBERT_BLAS", raising=False)
    assert backend._decide() == BlasStatus(False, None, "MLX is built for CUDA")


def test_slots_already_written_are_restored_when_a_later_one_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = (ctypes.c_uint64 * 2)(11, 22)
    first, second = ctypes.addressof(slots), ctypes.addressof(slots) + 8

    def write(slot: int, value: int) -> None:
        if slot == second:
            raise OSError(13, "mprotect: Permission denied")
        ctypes.c_uint64.from_address(slot).value = value

    monkeypatch.setattr(backend, "write_pointer", write)
    monkeypatch.setattr(openblas, "first_wrong_product", lambda _: None)
    with pytest.raises(Exception, match="cannot be bound"):
        backend.bind_checked([first, second], openblas.OpenBlas("libscipy_openblas.so", 99, "OpenBLAS", 1))
    assert list(slots) == [11, 22]


@linux_cpu
def test_loaded_libraries_lists_libmlx_with_its_real_slot() -> None:
    import mlx.core  # noqa: F401

    (libmlx,) = (library for library in openblas.loaded_libraries() if Path(library.path).name == "libmlx.so")
    (slot,) = openblas.import_slots(libmlx, "cblas_sgemm", platform.machine())
    assert openblas.page_protection(slot) & mmap.PROT_READ
    assert openblas.page_protection(openblas.read_pointer(slot)) & mmap.PROT_EXEC


@pytest.mark.skipif(sys.platform != "linux", reason="the Linux CPU's cache")
@pytest.mark.parametrize(("before", "after"), [("", 128 * 2**20), ("mx.set_cache_limit(7 * 2**20);", 7 * 2**20)])
def test_freed_memory_is_kept_unless_the_caller_has_said_how_much(before: str, after: int) -> None:
    code = f"import mlx.core as mx; {before} import mlxbert; print(mlxbert.backend.use_fast_blas().active)"
    active, limit = output(f"{code}; print(mx.set_cache_limit(0))").split()
    if active == "True":
        assert int(limit) == after


@linux_cpu
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize("variable", [None, "MALLOC_TRIM_THRESHOLD_"])
def test_a_training_keeps_its_heap_unless_the_environment_says_otherwise(variable: str | None) -> None:
    code = """
        import resource, mlx.core as mx, mlxbert
        from mlxbert.backend import device
        device.reuse_memory(training=True)
        mx.set_cache_limit(0)  # MLX's own
        def use():
            mx.eval(mx.ones(2**24))  # 64 MB
        use()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            use()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    faults = int(output(textwrap.dedent(code), **({variable: "131072"} if variable else {})))
    pages = 4 * 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert faults > pages // 4 if variable else faults < pages // 100
