"""A conversion that is killed at one of its points: ``python -m tests.kill_driver SRC OUT [--overwrite] [--at N]``.

Without ``--at`` it runs to its end. Prints the points it passed, as JSON, when it gets there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path

from converter.convert import convert
from tests.interruption import Points, counted_points


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("src", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--at", type=int)
    arguments = parser.parse_args()
    points = Points(lambda: os.kill(os.getpid(), signal.SIGKILL), arguments.at)
    with counted_points(points):
        convert(arguments.src, arguments.out, verify=False, overwrite=arguments.overwrite)
    print(json.dumps(points.names))


if __name__ == "__main__":
    main()
