"""`benchmarks.gpu`: what it counts, and that both sides compute the same; on a CPU with a tiny model."""

from __future__ import annotations

import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.gpu import Found, cells, cpu_streams, operations, peak

CONFIG = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}


def test_operations_are_those_of_real_tokens() -> None:
    """12 layers of 7,077,888 weights in matrices, a product and a sum for each; then the scores and their use."""
    one = 12 * (2 * 7_077_888 * 128 + 4 * 768 * 128**2)
    assert operations(np.array([128]), CONFIG) == one
    assert operations(np.full(8, 128), CONFIG) == 8 * one


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756.0),
        ("NVIDIA A100-SXM4-80GB", "float32", 156.0),
        ("NVIDIA L40S", "float16", 362.0),
        ("NVIDIA L4", "float16", 121.0),
        ("Tesla T4", "bfloat16", None),
        ("gpu (Apple M1 Max)", "float32", 10.4),
        ("gpu (Apple M4)", "float32", None),
        ("gpu (Apple M1)", "float32", 2.6),
        ("NVIDIA H100 NVL", "float16", 835.5),
        ("NVIDIA H200 NVL", "bfloat16", None),
        ("NVIDIA L40", "bfloat16", None),
        ("NVIDIA RTX A1000", "bfloat16", None),
        ("NVIDIA A10G", "bfloat16", None),
        ("NVIDIA GeForce RTX 3090 Ti", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090 D", "bfloat16", None),
        ("NVIDIA T400", "float16", None),
        ("cpu", "float32", None),
    ],
)
def test_a_card_that_is_not_known_has_no_peak(device: str, dtype: str, expected: float | None) -> None:
    assert peak(device, dtype) == expected


def test_wrong_numbers_have_no_time_and_an_unknown_card_no_share() -> None:
    def found(error: float) -> Found:
        return Found("cpu", [{"error": error, "seconds": 0.5, "work": 1e12, "memory": None, "CPU streams": 2}])

    theirs = found(0.0)
    assert cells(found(1.0), theirs, "float32", (), 3e-2)[0] == "WRONG: not counted"
    assert cells(found(float("nan")), theirs, "float32", (), 3e-2)[0] == "WRONG: not counted"
    row = cells(found(1e-3), theirs, "float32", ("CPU streams",), 3e-2)
    assert row == ("500.00", "1.00×", "2", "unknown", "?", "2", "1.0e-03")
    assert cells(theirs, theirs, "float32", (), 3e-2)[1] == "baseline"


def test_streams_of_the_cpu_are_counted() -> None:
    stream = mx.stream
    with cpu_streams() as found:
        with mx.stream(mx.cpu):
            mx.eval(mx.ones(3) + 1)
        mx.new_stream(mx.cpu)
    assert found == ["stream", "new_stream"]
    assert mx.stream is stream


@pytest.mark.slow
@pytest.mark.parametrize(("section", "dtype"), [("forward", "float32"), ("train", "bfloat16")])
def test_without_a_gpu_a_tiny_model_is_shown_on_the_cpu(section: str, dtype: str) -> None:
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("MLX has a GPU here")
    command = [sys.executable, "-m", "benchmarks.gpu", "--seconds", "0.01", "--dtypes", dtype, "--only", section]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "no GPU: MLX has none here." in printed
    assert f"{section}, {dtype}" in printed
    assert "mlxbert" in printed
    assert "WRONG" not in printed
