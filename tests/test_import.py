"""`import mlxbert`: the names that it offers, and what it does not import until they are used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import mlxbert


def output(code: str) -> str:
    """What the code prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'scipy', 'tokenizers', 'ml_dtypes', 'mlx.nn', 'huggingface_hub', 'mlxbert.models'}"
    assert output(f"import sys, mlxbert; print(sorted({heavy} & {{*sys.modules}}))") == "[]"


def test_every_name_is_there() -> None:
    names = "from mlxbert import *; import mlxbert; print(sorted({*mlxbert.__all__} - {*globals()}))"
    assert output(names) == "[]"
    assert {*mlxbert.__all__} <= {*dir(mlxbert)}


def test_a_name_is_the_one_of_its_module() -> None:
    from mlxbert.checkpoint import load
    from mlxbert.errors import MLXBertError

    assert mlxbert.load is load
    assert mlxbert.MLXBertError is MLXBertError


def test_a_module_of_the_package_is_an_attribute() -> None:
    code = "import mlxbert; print(mlxbert.pooling.pool.__name__, hasattr(mlxbert, 'no_such_module'))"
    assert output(code) == "pool False"
    assert mlxbert.pooling is importlib.import_module("mlxbert.pooling")


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(AttributeError, match=r"^module 'mlxbert' has no attribute 'nothing'$"):
        _ = mlxbert.nothing
