"""OpenBLAS is checked before it is trusted, and loaded with kernels that are there."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

import pytest

from mlxbert.backend import openblas


def sgemm_in_python(
    _order: int,
    *sizes: int | float,
    swap: bool = False,
    read_output: bool = False,
    ignore: str = "",
) -> None:
    """``cblas_sgemm`` in plain Python, with one mistake to choose."""
    trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = sizes
    floats = {name: (ctypes.c_float * 20000).from_address(int(at)) for name, at in (("a", a), ("b", b), ("c", c))}
    if swap:
        trans_a, trans_b = trans_b, trans_a
    alpha = 1.0 if ignore == "alpha" else alpha
    for i in range(int(m)):
        for j in range(int(n)):
            total = 0.0
            for x in range(int(k)):
                left = floats["a"][int(x * lda + i if trans_a == 112 else i * lda + x)]
                right = floats["b"][int(j * ldb + x if trans_b == 112 else x * ldb + j)]
                total += left * right
            at = int(i * ldc + j)
            kept = beta * floats["c"][at] if (beta or read_output) and ignore != "beta" else 0.0
            floats["c"][at] = alpha * total + kept


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ({}, None),
        ({"read_output": True}, "A·B, 5×4 by 4×3, alpha 1, beta 0"),
        ({"swap": True}, "A·Bᵀ, 5×4 by 4×3, alpha 1, beta 0"),
        ({"ignore": "beta"}, "A·B, 5×4 by 4×3, alpha 1, beta 1"),
        ({"ignore": "alpha"}, "A·B, 5×4 by 4×3, alpha 0.5, beta 2"),
    ],
)
def test_the_check_names_the_first_wrong_product(
    mistake: dict[str, bool | str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openblas, "_SHAPES", ((5, 3, 4), (1, 2, 3)))
    sgemm = functools.partial(sgemm_in_python, **mistake)  # type: ignore[arg-type]
    assert openblas.first_wrong_product(sgemm) == found


def test_the_check_sees_one_wrong_element_in_the_last_block() -> None:
    calls: list[int] = []

    def nearly(*arguments: int | float) -> None:
        m, n, c = int(arguments[3]), int(arguments[4]), int(arguments[12])
        right(*arguments)
        if (m, n) == (17, 9):
            calls.append(1)
            ctypes.c_float.from_address(c + 4 * (m * n - 1)).value += 1.0

    library = openblas.find_library()
    if library is None or sys.platform != "linux":
        pytest.skip("scipy-openblas32 is not installed")
    right = openblas.Sgemm(openblas.load(library).sgemm)
    assert openblas.first_wrong_product(right) is None
    assert openblas.first_wrong_product(nearly) == "A·B, 17×23 by 23×9, alpha 1, beta 0"
    assert len(calls) == 1


def setting_while_loading(name: str, users: str | None, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What OpenBLAS reads when it is loaded; afterwards the user's setting is as it was."""
    monkeypatch.delenv(name, raising=False)
    if users is not None:
        monkeypatch.setenv(name, users)
    seen = []

    def stop(_path: str) -> None:
        seen.append(os.environ.get(name))
        raise OSError("stopped")

    monkeypatch.setattr(ctypes, "CDLL", stop)
    with pytest.raises(OSError, match="stopped"):
        openblas.load(Path("libscipy_openblas.so"))
    assert os.environ.get(name) == users
    return seen[0]


@pytest.mark.parametrize(
    ("has_sme", "users", "seen"),
    [(False, None, None), (True, None, "NEOVERSEN1"), (True, "ARMV8", "ARMV8")],
)
def test_the_kernels_for_sme_are_avoided_while_openblas_loads(
    has_sme: bool, users: str | None, seen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openblas, "has_sme", lambda: has_sme)
    assert setting_while_loading("OPENBLAS_CORETYPE", users, monkeypatch) == seen


@pytest.mark.parametrize(
    ("limit", "cores", "users", "seen"),
    [
        (None, 8, {}, None),
        (2, 8, {}, "2"),
        (8, 2, {}, None),
        (2, 8, {"OMP_NUM_THREADS": "4"}, None),
        (2, 8, {"OPENBLAS_NUM_THREADS": "4"}, "4"),
        (2, 8, {"OPENBLAS_NUM_THREADS": ""}, "2"),
        (2, 8, {"OMP_NUM_THREADS": "0"}, "2"),
        (2, 8, {"OPENBLAS_NUM_THREADS": "many", "OMP_NUM_THREADS": ""}, "2"),
    ],
)
def test_there_are_no_more_threads_than_a_container_may_use(
    limit: int | None, cores: int, users: dict[str, str], seen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openblas, "cpu_limit", lambda: limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cores)), raising=False)
    for name in ("OMP_NUM_THREADS", "GOTO_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    if "OMP_NUM_THREADS" in users:
        monkeypatch.setenv("OMP_NUM_THREADS", users["OMP_NUM_THREADS"])
    name = "OPENBLAS_NUM_THREADS"
    assert setting_while_loading(name, users.get(name), monkeypatch) == seen


@pytest.mark.parametrize(("users", "seen"), [(None, "20"), ("26", "26")])
def test_idle_threads_sleep_soon_unless_the_user_has_said_when(
    users: str | None, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert setting_while_loading("OPENBLAS_THREAD_TIMEOUT", users, monkeypatch) == seen
