"""The shared command line of the examples."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUICK: dict[str, Any] = {"folds": 2, "epochs": 1, "max_length": 64}


@dataclass(frozen=True)
class Arguments:
    """The arguments of an example.

    Attributes:
        data: the folder with the competition's files.
        model: a converted directory; None: the competition's own, where `mlxbert-convert` puts it.
        out: the run's directory.
        settings: of `TrainingConfig`, and `overwrite`.
    """

    data: Path
    model: str | None
    out: Path
    settings: dict[str, Any]


def arguments(name: str, about: str | None, argv: list[str] | None) -> Arguments:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder with the competition's files")
    parser.add_argument("--model", help="a converted directory (default: mlx_models/all-MiniLM-L6-v2)")
    parser.add_argument("-o", "--out", type=Path, default=Path("runs") / name, help=f"(default: runs/{name})")
    parser.add_argument("--quick", action="store_true", help="two folds, one epoch, short texts: fast, but no score")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run")
    options = parser.parse_args(argv)
    settings = {"overwrite": options.overwrite, **(QUICK if options.quick else {})}
    return Arguments(options.data, options.model, options.out, settings)
