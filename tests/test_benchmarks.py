"""Every benchmark can be called by `make bench`; none is run here, since no test depends on a time."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks
from benchmarks.__main__ import NOT_BENCHMARKS

NAMES = sorted({module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - NOT_BENCHMARKS)


@pytest.mark.parametrize("name", NAMES)
def test_its_main_takes_arguments_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert caught.value.code == 0
    assert "usage" in capsys.readouterr().out
