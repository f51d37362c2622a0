"""Run every benchmark, one after the other: `python -m benchmarks`, or `make bench`."""

from __future__ import annotations

import importlib
import pkgutil

import benchmarks

NOT_BENCHMARKS = {"__main__", "machine"}


def main() -> None:
    """Each module of this folder with a `main`, in alphabetical order, with its defaults."""
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if module.name not in NOT_BENCHMARKS:
            print(f"\n== python -m benchmarks.{module.name}", flush=True)
            importlib.import_module(f"benchmarks.{module.name}").main([])


if __name__ == "__main__":
    main()
