"""Run the benchmarks, one after the other: `python -m benchmarks`, or `make bench`.

Those that train for an hour are named, and run alone.
"""

from __future__ import annotations

import importlib
import pkgutil

import benchmarks

NOT_BENCHMARKS = {
    *("__main__", "baselines", "child", "family_sizes", "inputs", "launched", "machine", "way"),
    *("speed_encoding", "speed_inputs", "speed_sides", "speed_table", "speed_training"),
}
LONG = {"competitions", "defaults", "family", "memory", "ranks", "tweets"}


def main() -> None:
    """Each module of this folder with a `main`, in alphabetical order, with its defaults."""
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if module.name in NOT_BENCHMARKS:
            continue
        long = module.name in LONG
        print(
            f"\n== python -m benchmarks.{module.name}" + (" takes an hour: run it alone" if long else ""), flush=True
        )
        if not long:
            importlib.import_module(f"benchmarks.{module.name}").main([])


if __name__ == "__main__":
    main()
