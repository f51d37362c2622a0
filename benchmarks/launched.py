"""A Python command in several processes of the real `mlx.launch`, or alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


class Launched:
    """A command in several ranks, or alone; `end` ends all of its processes.

    Attributes:
        process: that of `mlx.launch`, or of the command itself; it leads a process group of its own.
        output: the file of what all ranks print.
    """

    def __init__(self, folder: Path, ranks: int, threads: int, command: Sequence[str], watchdog: float = 300):
        """Start it.

        Args:
            folder: the current directory of the command.
            ranks: how many processes.
            threads: of each.
            command: what follows the name of the interpreter: a script, or -m and a module, and its arguments.
            watchdog: seconds after which the ranks end if one of them gives no sign of life.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "200"}
        environment["MLXBERT_RANK_TIMEOUT"] = str(watchdog)
        words = list(command)
        if ranks > 1:
            launch = "from mlx._distributed_utils.launch import main; main()"
            options = ["-n", str(ranks), "--starting-port", str(_free_port(ranks + 1)), "--python", sys.executable]
            words = ["-c", launch, *options, "--", *words]
        self.output = folder / "output.txt"
        with self.output.open("wb") as file:
            # MLX's launcher reads its input, and spins when it ends.
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> bool:
        """Return whether all ended in this time."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def rank(self, rank: int) -> int | None:
        """Return the process of a rank; None: it is not there."""
        wanted = f"MLX_RANK={rank}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                in_group = os.getpgid(int(folder.name)) == self.process.pid
                if in_group and wanted in (folder / "environ").read_bytes().split(b"\0"):
                    return int(folder.name)
        return None

    def end(self) -> None:
        """Kill what is left."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _free_port(count: int) -> int:
    """Return the first of some ports that nobody uses now."""
    for first in range(20000 + os.getpid() % 20000, 60000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as place:
                    place.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise SystemExit("no free ports")
