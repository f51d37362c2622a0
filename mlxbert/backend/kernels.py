"""A folder for the kernels that MLX compiles on a CPU, for each of several processes that start together."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def kernel_folder(number: int) -> Path:
    """Return a directory for temporary files of process `number`; that of process 0 is the usual one.

    MLX writes its kernels in place, into a folder of `TMPDIR` that all processes share, and loads what it finds there.
    Processes that start together compile the same kernels at the same time, and would load files that another one
    has half written. So each but the first gets a `TMPDIR` of its own, which the next run finds again.
    """
    usual = Path(tempfile.gettempdir())
    if number == 0:
        return usual
    place = usual / f"mlxbert-{os.getuid()}-process{number}"
    with suppress(FileExistsError):  # a file
        place.mkdir(mode=0o700, exist_ok=True)
    # What lies there is loaded and run, so it must be this user's.
    if place.is_symlink() or not place.is_dir() or place.stat().st_uid != os.getuid():
        place = Path(tempfile.mkdtemp(prefix="mlxbert-"))
    return place
