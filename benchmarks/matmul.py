"""Float32 matrix products on a Linux CPU: MLX as installed, MLX in OpenBLAS, and OpenBLAS called directly.

    python -m benchmarks.matmul --repeat 15

One run measures all three. MLX as installed runs in a process of its own (MLXBERT_BLAS=off); the other two
alternate in this one, on the same numbers, and the results are compared. "Directly" means one
``cblas_sgemm`` for each matrix product through ctypes, outputs allocated beforehand, less what the same
calls cost with nothing to multiply (ctypes' own time). It is how MLX calls it, too: a batch is a loop of
products. OpenBLAS also has one call for a whole batch, which spreads the batch over the threads instead of
every product; MLX cannot make it, and its speed is printed for information.

The fastest of the samples counts, because other processes only ever add time. Even so it wants an idle
machine: where something else holds a core, OpenBLAS's threads wait for each other, and both sides fall to
a fraction of their speed, the small products of attention most.

A benchmark shows, and asserts nothing: the exit code is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.machine import machine
from mlxbert.backend import openblas
from mlxbert.backend.device import use_fast_blas

_TARGET = 0.80
_SAMPLE_FLOPS = 4e9  # work in one timed sample: some 20 ms at 200 GFLOP/s, far above the clock and a thread's start


@dataclass(frozen=True)
class Shape:
    """`batch` products of (m, k) by (k, n); `transposed` names the factor so stored: "", "A" or "B"."""

    name: str
    batch: int
    m: int
    k: int
    n: int
    transposed: str = ""
    bias: bool = False

    @property
    def flops(self) -> float:
        """Floating-point operations: a multiplication and an addition for each term."""
        return 2.0 * self.batch * self.m * self.k * self.n


SHAPES = (
    Shape("linear up, x·Wᵀ", 1, 1024, 768, 3072, "B"),
    Shape("linear up, x·Wᵀ + bias (addmm)", 1, 1024, 768, 3072, "B", bias=True),
    Shape("linear down, x·Wᵀ", 1, 1024, 3072, 768, "B"),
    Shape("weight gradient, gᵀ·x", 1, 3072, 1024, 768, "A"),
    Shape("plain product", 1, 1024, 768, 3072),
    Shape("scores Q·Kᵀ, 8×12 heads of 64", 96, 128, 64, 128, "B"),
    Shape("values P·V, 8×12 heads of 64", 96, 128, 128, 64),
    Shape("scores Q·Kᵀ, 8×12 heads of 32", 96, 128, 32, 128, "B"),
    Shape("scores Q·Kᵀ, 1×12 heads, length 512", 12, 512, 64, 512, "B"),
    Shape("values P·V, 1×12 heads, length 512", 12, 512, 512, 64),
)


class Operands:
    """The numbers of one shape: numpy arrays (batch, rows, columns), laid out as the shape asks for."""

    def __init__(self, shape: Shape) -> None:
        rng = np.random.default_rng(0)
        a_shape = (shape.k, shape.m) if shape.transposed == "A" else (shape.m, shape.k)
        b_shape = (shape.n, shape.k) if shape.transposed == "B" else (shape.k, shape.n)
        self.shape = shape
        self.a = rng.standard_normal((shape.batch, *a_shape), dtype=np.float32)
        self.b = rng.standard_normal((shape.batch, *b_shape), dtype=np.float32)
        self.bias = rng.standard_normal(shape.n, dtype=np.float32)

    def through_mlx(self) -> Callable[[], mx.array]:
        """The product as a model computes it, evaluated."""
        shape = self.shape
        a, b, bias = (mx.array(values) for values in (self.a, self.b, self.bias))
        mx.eval(a, b, bias)
        a = mx.swapaxes(a, 1, 2) if shape.transposed == "A" else a
        b = mx.swapaxes(b, 1, 2) if shape.transposed == "B" else b
        if shape.batch == 1:
            a, b = a[0], b[0]

        def run() -> mx.array:
            out = mx.addmm(bias, a, b) if shape.bias else mx.matmul(a, b)
            mx.eval(out)
            return out

        return run

    def arguments(self, out: np.ndarray, *, empty: bool = False) -> list[tuple[Any, ...]]:
        """The arguments of ``cblas_sgemm``, a tuple a product; `empty` asks for no rows, so no work."""
        shape = self.shape
        lda, ldb = self.a.shape[2], self.b.shape[2]
        trans_a, trans_b = (112 if shape.transposed == side else 111 for side in "AB")
        rows, beta = 0 if empty else shape.m, 1.0 if shape.bias else 0.0
        return [
            (
                *(101, trans_a, trans_b, rows, shape.n, shape.k),
                *(1.0, self.a[i].ctypes.data, lda, self.b[i].ctypes.data, ldb),
                *(beta, out[i].ctypes.data, shape.n),
            )
            for i in range(shape.batch)
        ]


def seconds(run: Callable[[], object], times: int) -> float:
    """Mean seconds of one call over `times` calls in a row."""
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def sgemm_loop(sgemm: Callable[..., None], arguments: list[tuple[Any, ...]]) -> Callable[[], None]:
    """One call for each product."""

    def run() -> None:
        for product in arguments:
            sgemm(*product)

    return run


def batched_call(library: ctypes.CDLL, operands: Operands, out: np.ndarray) -> Callable[[], None]:
    """OpenBLAS's one call for a whole batch of equal shapes, its strides in numbers of elements."""
    call = library.scipy_cblas_sgemm_batch_strided
    i, f, p = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    call.argtypes, call.restype = (i, i, i, i, i, i, f, p, i, i, p, i, i, f, p, i, i, i), None
    (order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) = operands.arguments(out)[0]
    stride_a, stride_b, stride_c = (values[0].size for values in (operands.a, operands.b, out))
    arguments = (order, ta, tb, m, n, k, alpha, a, lda, stride_a, b, ldb, stride_b, beta, c, ldc, stride_c)

    def run() -> None:
        call(*arguments, operands.shape.batch)

    return run


@dataclass(frozen=True)
class Speeds:
    """GFLOP/s of one shape, the fastest samples; `difference` is the largest between the two results."""

    mlx: float
    direct: float
    batched: float | None
    difference: float


def measure(shape: Shape, blas: openblas.OpenBlas, repeat: int) -> Speeds:
    """Alternate MLX and OpenBLAS on one shape, `repeat` samples each."""
    operands = Operands(shape)
    sgemm = openblas.Sgemm(blas.sgemm)
    out = np.zeros((shape.batch, shape.m, shape.n), dtype=np.float32)
    direct = sgemm_loop(sgemm, operands.arguments(out))
    empty = sgemm_loop(sgemm, operands.arguments(out, empty=True))
    batched = batched_call(ctypes.CDLL(blas.path), operands, out) if shape.batch > 1 else None
    through_mlx = operands.through_mlx()

    out[:] = operands.bias if shape.bias else 0.0
    direct()
    difference = float(np.abs(out - np.array(through_mlx()).reshape(out.shape)).max())

    times = max(1, round(_SAMPLE_FLOPS / shape.flops))
    samples: dict[str, list[float]] = {"mlx": [], "direct": [], "batched": []}
    for _ in range(repeat):
        samples["mlx"].append(seconds(through_mlx, times))
        samples["direct"].append(seconds(direct, times) - seconds(empty, times))
        if batched is not None:
            samples["batched"].append(seconds(batched, times))
    speed = {side: shape.flops / min(values) / 1e9 for side, values in samples.items() if values}
    return Speeds(speed["mlx"], speed["direct"], speed.get("batched"), difference)


def measure_as_installed(repeat: int) -> list[float]:
    """GFLOP/s of every shape with MLX's own BLAS, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.matmul", "--as-installed", f"--repeat={min(repeat, 3)}"]
    environment = {**os.environ, "MLXBERT_BLAS": "off"}
    root = Path(__file__).resolve().parent.parent
    answer = subprocess.run(command, env=environment, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout
    speeds: list[float] = json.loads(answer)
    return speeds


def print_as_installed(repeat: int) -> None:
    """The child's side of `measure_as_installed`: a JSON list on stdout."""
    assert not use_fast_blas().active
    speeds = []
    for shape in SHAPES:
        run = Operands(shape).through_mlx()
        speeds.append(shape.flops / min(seconds(run, 1) for _ in range(repeat)) / 1e9)
    print(json.dumps(speeds))


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table and one verdict a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15, help="samples a side and shape (default 15)")
    parser.add_argument("--as-installed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    if options.as_installed:
        print_as_installed(options.repeat)
        return

    status = use_fast_blas()
    print(f"machine   {machine()}\nBLAS      {status.reason}")
    library = openblas.find_library()
    if not status.active or library is None:
        print("nothing to compare: MLX does not run in OpenBLAS here")
        return
    as_installed = measure_as_installed(options.repeat)
    blas = openblas.load(library)
    print(f"\nGFLOP/s, fastest of {options.repeat} samples; (batch) rows×inner×columns\n")
    heads = "as installed", "mlxbert", "OpenBLAS", "ratio", "max diff", "one batched call"
    print(" " * 56 + "{:>13}{:>9}{:>10}{:>7}{:>10}{:>18}".format(*heads))
    verdicts = []
    for shape, own in zip(SHAPES, as_installed, strict=True):
        speeds = measure(shape, blas, options.repeat)
        size = (f"({shape.batch}) " if shape.batch > 1 else "") + f"{shape.m}×{shape.k}×{shape.n}"
        batched = "" if speeds.batched is None else f"{speeds.batched:.0f}"
        ratio = speeds.mlx / speeds.direct
        print(
            f"{shape.name:<38}{size:<18}{own:>13.1f}{speeds.mlx:>9.0f}{speeds.direct:>10.0f}{ratio:>7.2f}"
            f"{speeds.difference:>10.1e}{batched:>18}",
            flush=True,
        )
        answer = "yes" if ratio >= _TARGET else "no"
        verdicts.append(f"ratio >= {_TARGET:.2f}: {answer:<3}  ({ratio:.2f})  {shape.name}, {size}")
    print("", *verdicts, sep="\n")


if __name__ == "__main__":
    main()
