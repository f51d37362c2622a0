"""Commands of `mlxbert` in several processes of the real `mlx.launch`; all of them are dead at the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

TIMEOUT = 120.0


class Ranks:
    """The processes of one launch.

    Attributes:
        launcher: the process of `mlx.launch`, which leads a process group of its own.
        output: the file of what all ranks print.
    """

    def __init__(self, launcher: subprocess.Popen[bytes], output: Path):
        self.launcher, self.output = launcher, output

    def pid(self, rank: int) -> int:
        """Return the process of a rank."""
        wanted = f"MLX_RANK={rank}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                in_group = os.getpgid(int(folder.name)) == self.launcher.pid
                if in_group and wanted in (folder / "environ").read_bytes().split(b"\0"):
                    return int(folder.name)
        raise AssertionError(f"rank {rank} is not there: {self.output.read_text()}")

    def wait(self) -> str:
        """Wait for the end of all ranks; return what they printed."""
        self.launcher.wait(timeout=TIMEOUT)
        return self.output.read_text()

    def wait_for_steps(self, log: Path, steps: int) -> None:
        """Wait until the log of a run has this many lines."""
        limit = time.monotonic() + TIMEOUT
        while not log.is_file() or len(log.read_bytes().splitlines()) < steps:
            assert time.monotonic() < limit, self.output.read_text()
            assert self.launcher.poll() is None, self.output.read_text()
            time.sleep(0.01)


@contextmanager
def launched(ranks: int, *command: object, cwd: Path, timeout: float = 60.0) -> Iterator[Ranks]:
    """Start `mlx.launch -n RANKS -- COMMAND`, with `timeout` seconds until its watchdog ends it."""
    root = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLX_RANK", "MLX_HOST"))}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MLXBERT_RANK_TIMEOUT": str(timeout),
        "COLUMNS": "200",
    }
    launch = "from mlx._distributed_utils.launch import main; main()"
    options = ["-n", ranks, "--starting-port", free_ports(ranks + 1), "--python", sys.executable]
    output = cwd / f"output-{time.monotonic_ns()}"
    with output.open("wb") as file:
        launcher = subprocess.Popen(
            [sys.executable, "-c", launch, *map(str, options), "--", *map(str, command)],
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE,  # at the end of its input, MLX's launcher would read for ever
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Ranks(launcher, output)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def ran(ranks: int, *command: object, cwd: Path) -> str:
    """Run a command in several ranks to its end; return what they printed."""
    with launched(ranks, *command, cwd=cwd) as started:
        return started.wait()


def free_ports(count: int) -> int:
    """Return the first of some neighboring ports that nobody uses now."""
    for first in range(20000 + os.getpid() % 20000, 60000, count):
        if all(map(_is_free, range(first, first + count))):
            return first
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as place:
        try:
            place.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def errors(output: str) -> list[str]:
    """Return the lines with which mlxbert ended; one may stand within a warning that the launcher writes in parts."""
    start = "mlxbert: error:"
    return [line[line.index(start) :] for line in output.splitlines() if start in line]


def loss_curve(run: Path) -> Sequence[float]:
    """Return the loss of each step of a run."""
    events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["event"] == "step"]
