"""`World`: the processes that train one model together, each on its part of every batch.

`mlx.launch` (or mpirun) starts the same command several times and says so in environment variables. MLX's collectives
add up the gradients (`mx.distributed`: ring, NCCL, JACCL or MPI, as MLX chooses). `mlxbert.training.control` carries
the small messages and watches all ranks. A process that was started alone is a world of one: its sums are its own.

All ranks run the same program on the same data. Each takes its rows of every batch; after the sums, each updates its
weights alike, so that they stay equal to the bit. Only rank 0 writes files and shows progress.
"""

from __future__ import annotations

import atexit
import faulthandler
import io
import json
import os
import socket
import stat
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxbert.backend.kernels import kernel_folder
from mlxbert.errors import Interrupted, MLXBertError, printable
from mlxbert.training.connection import WorldError
from mlxbert.training.control import Control, Times
from mlxbert.training.optimizer import Arrays

TIMEOUT = "MLXBERT_RANK_TIMEOUT"
_SECONDS = 300.0
_START_SECONDS = 60.0
# Few large messages: each one is a chance for MLX's ring to stop (issue 4475), and a small one costs as much time.
_PIECE = 16 * 2**20  # elements of float32
_CHUNK = 2**26  # bytes of a file


@dataclass(frozen=True)
class Launch:
    """What the launcher says.

    Attributes:
        rank: of this process; `size`: number of ranks.
        address: host and port on which rank 0 waits for the others; None: the collectives tell it.
        hosts: of each rank, if they are known.
        backend: the name of MLX's collectives.
    """

    rank: int
    size: int
    address: tuple[str, int] | None
    hosts: tuple[str, ...] = ()
    backend: str = "mpi"


def launched(environment: Mapping[str, str] | None = None) -> Launch | None:
    """Return what `mlx.launch` or mpirun says in these environment variables; None: this process was started alone.

    Raises:
        WorldError: the variables do not fit together, or the launcher's file cannot be read.
    """
    given = os.environ if environment is None else environment
    try:
        if "MLX_RANK" not in given:
            for mpi in ("OMPI_COMM_WORLD", "PMI"):
                if int(given.get(f"{mpi}_SIZE", 1)) > 1:
                    return _checked(Launch(int(given[f"{mpi}_RANK"]), int(given[f"{mpi}_SIZE"]), None))
            return None
        rank = int(given["MLX_RANK"])
        if given.get("MLX_HOSTFILE"):
            nodes = json.loads(Path(given["MLX_HOSTFILE"]).read_text(encoding="utf-8").strip() or "[]")
            places = [[_place(place) for place in node] for node in nodes]
            if len(places) < 2:
                return None
            # The ring listens on the ports of the file; the next one is free.
            port = 1 + max(port for node in places for _, port in node)
            hosts = tuple(node[0][0] for node in places)
            return _checked(Launch(rank, len(places), (hosts[0], port), hosts, "ring"))
        if "NCCL_HOST_IP" in given:
            address = (given["NCCL_HOST_IP"], int(given["NCCL_PORT"]) + 1)
            return _checked(Launch(rank, int(given["MLX_WORLD_SIZE"]), address, backend="nccl"))
        if "MLX_IBV_DEVICES" in given:
            size = len(json.loads(Path(given["MLX_IBV_DEVICES"]).read_text(encoding="utf-8")))
            host, port = _place(given["MLX_JACCL_COORDINATOR"])
            return _checked(Launch(rank, size, (host, port + 1), backend="jaccl"))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise WorldError(
            f"the launcher's environment variables are damaged ({printable(str(error), 200)}); "
            "fix: start with mlx.launch"
        ) from error
    return None


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _checked(launch: Launch) -> Launch | None:
    if not 0 <= launch.rank < launch.size:
        raise ValueError(f"rank {launch.rank} of {launch.size}")
    return launch if launch.size > 1 else None


def part(rows: int, rank: int, size: int) -> slice:
    """Return the rows of a batch that a rank computes, as `np.array_split` deals them; none if there are few."""
    least, more = divmod(rows, size)
    start = rank * least + min(rank, more)
    return slice(start, start + least + (rank < more))


def differences(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what each rank has that differs from rank 0, one text a rank, for a message."""
    first, texts = facts[0], []
    for rank, other in enumerate(facts):
        names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        pairs = [f"{name} is {_short(other.get(name))}, not {_short(first.get(name))}" for name in names[:3]]
        if pairs:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            texts.append(f"rank {rank}: {', '.join(pairs)}{more}")
    return texts


def _short(value: Any) -> str:
    return printable(str(value), 80)


class World:
    """The ranks of a training; without `control` a single one.

    Attributes:
        rank: number of this process.
        size: how many there are.
        local_size: how many of them are on rank 0's machine.
        text: how many there are, where, and how they add up, for people; "" for a single one.
    """

    def __init__(self, rank: int = 0, size: int = 1, control: Control | None = None, group: Any = None):
        self.local_size, self.text = 1, ""
        self.rank, self.size, self._control, self._group = rank, size, control, group
        self._running = False

    @property
    def writes(self) -> bool:
        """Whether this rank writes files and shows progress: rank 0."""
        return self.rank == 0

    def at(self, phase: str, step: int | None = None) -> None:
        """Tell the watchdog what this rank does now (`mlxbert.training.control.WATCHED`), and that it goes on."""
        if self._control is not None:
            self._control.at(phase, step)

    def advise(self, advice: str) -> None:
        """Note how to go on, for the line with which the watchdog ends all ranks."""
        if self._control is not None:
            self._control.advice = advice

    def part(self, rows: int) -> slice:
        """Return the rows of a batch of `rows` that this rank computes."""
        return part(rows, self.rank, self.size)

    def gather(self, label: str, value: Any) -> list[Any]:
        """Return the JSON values of all ranks, in their order."""
        if self._control is None:
            return [value]
        return [json.loads(content) for content in self._control.gather(label, json.dumps(value).encode())]

    def first(self, label: str, value: Any) -> Any:
        """Return the JSON value of rank 0 on every rank."""
        if self._control is None:
            return value
        return json.loads(self._control.first(label, json.dumps(value).encode() if self.writes else None))

    def any(self, label: str, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return flag if self._control is None else any(self.gather(label, bool(flag)))

    def add(self, label: str, numbers: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all ranks, added in the order of the ranks; the same bits on every rank."""
        if self._control is None:
            return list(numbers)
        return [sum(column) for column in zip(*self.gather(label, list(numbers)), strict=True)]

    def in_turn(self, label: str, arrays: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
        """Return `count` arrays of one shape in order; rank r of n has those of numbers r, r + n, r + 2 n, …."""
        if self._control is None:
            return list(arrays)
        content = io.BytesIO()
        np.save(content, np.stack(arrays) if arrays else np.zeros(0), allow_pickle=False)
        found = [np.load(io.BytesIO(one)) for one in self._control.gather(label, content.getvalue())]
        return [found[i % self.size][i // self.size] for i in range(count)]

    def sum(self, arrays: Arrays) -> Arrays:
        """Return the sums of float32 arrays over all ranks; every rank has the same names and shapes.

        They are sent as few large arrays. Each is there before the next one is sent, so that no two collectives are
        under way at once.

        Raises:
            WorldError: another rank has ended.
        """
        if self._control is None:
            return arrays
        before = self._control.phase
        summed: Arrays = {}
        for names in _pieces({name: array.size for name, array in arrays.items()}):
            self.at("sum of gradients")
            flat = mx.concatenate([arrays[name].reshape(-1) for name in names])
            mx.eval(flat)
            ends = np.cumsum([arrays[name].size for name in names])[:-1].tolist()
            try:
                # Without a stream, MLX takes the one that its backend needs: the CPU's for a ring, the GPU's for NCCL.
                total = mx.distributed.all_sum(flat, group=self._group)
                mx.eval(total)
            except RuntimeError as error:
                self._control.wait_for_verdict()
                raise WorldError(f"rank {self.rank}: the sum of gradients failed ({error})") from error
            for name, values in zip(names, mx.split(total, ends) if ends else [total], strict=True):
                summed[name] = values.reshape(arrays[name].shape)
        self.at(before)
        return {name: summed[name] for name in arrays}

    def same(self, what: str, facts: Mapping[str, Any], fix: str) -> None:
        """Refuse ranks whose facts differ.

        Raises:
            WorldError: names the ranks, what differs, and the fix.
        """
        found = differences(self.gather(what, dict(facts)))
        if found:
            raise WorldError(f"the ranks differ in {what} from rank 0: {'; '.join(found[:4])}; fix: {fix}")

    def same_arrays(self, what: str, arrays: Arrays) -> None:
        """Refuse ranks whose arrays are not equal to the bit."""
        if self.size > 1:
            checksum = 0
            for array in arrays.values():
                checksum = zlib.crc32(np.array(array).tobytes(), checksum)
            self.same(what, {"checksum": checksum}, "use machines of one kind, with the same versions")

    @contextmanager
    def files_of_first(self, directory: Path | None) -> Iterator[Path | None]:
        """Yield a directory with the files of rank 0's `directory`: itself there, a copy on the others.

        None if rank 0 has none. Other ranks need not see rank 0's disk.
        """
        if self._control is None:
            yield directory
            return
        files = (
            sorted(file for file in directory.iterdir() if file.is_file()) if directory and directory.is_dir() else []
        )
        sizes = self.first("saved files", [[file.name, file.stat().st_size] for file in files])
        if self.writes:
            for file in files:
                with file.open("rb") as content:
                    for start in range(0, max(file.stat().st_size, 1), _CHUNK):
                        self._control.first(f"{file.name} from {start}", content.read(_CHUNK))
            yield directory
            return
        with tempfile.TemporaryDirectory(prefix="mlxbert-") as place:
            for name, size in sizes:
                with (Path(place) / Path(name).name).open("wb") as copy:
                    for start in range(0, max(size, 1), _CHUNK):
                        copy.write(self._control.first(f"{name} from {start}", None))
            yield Path(place) if sizes else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let an error inside end all ranks; at the end let the others wait for rank 0. Inside itself do nothing."""
        control = self._control
        if control is None or self._running:
            yield
            return
        self._running = True
        try:
            with warnings.catch_warnings():
                if not self.writes:
                    warnings.simplefilter("ignore")  # rank 0 shows them
                yield
            self.at("end")
            self.first("end", True)
        except BaseException as error:
            interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
            text = " ".join(str(error).split())
            if isinstance(error, KeyboardInterrupt):
                text = "interrupted"
            elif not isinstance(error, MLXBertError):
                text = f"{type(error).__name__}: {text}" if text else type(error).__name__
            control.failed(text, 130 if interrupted else 2)
            raise
        finally:
            self._running = False


def _pieces(sizes: Mapping[str, int]) -> list[list[str]]:
    """Return the names, in their order, in pieces of about `_PIECE` elements."""
    pieces: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if size > room or not pieces:
            pieces.append([])
            room = _PIECE
        pieces[-1].append(name)
        room -= size
    return pieces


def _times() -> Times:
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text) if text else _SECONDS
        if not 1 <= seconds < float("inf"):
            raise ValueError
    except ValueError:
        raise WorldError(f"{TIMEOUT}={printable(text, 40)!r} is not a number of seconds from 1 on; fix: 300") from None
    return Times(start=min(seconds, _START_SECONDS), silence=seconds, progress=seconds)


@cache
def current_world() -> World:
    """Return the world that the launcher made, after all ranks have come; a world of one without a launcher.

    Raises:
        WorldError: a rank does not come, or MLX has no backend for the launcher's kind.
    """
    launch = launched()
    if launch is None:
        return World()
    times = _times()
    os.environ["TMPDIR"] = str(kernel_folder(launch.rank))
    if launch.backend != "mpi":
        calm_launcher()
    if launch.address is None:  # MPI knows where the processes are
        group = _init(launch, times)
        control = Control(launch.rank, launch.size, _address_by(group, launch), times)
    else:
        control = Control(launch.rank, launch.size, launch.address, times, launch.hosts)
        control.at("start of the collectives")
        group = _init(launch, times)
    atexit.register(control.leave)
    world = World(launch.rank, launch.size, control, group)
    machines = world.gather("machine", control.machine)
    world.local_size, different = machines.count(machines[0]), len(set(machines))
    world.text = f"{launch.size} on {different} {'machine' if different == 1 else 'machines'}, {launch.backend}"
    return world


def calm_launcher(stdin: int = 0) -> None:
    """Fill the pipe by which `mlx.launch` passes its standard input on, if `stdin` is one; ranks read nothing from it.

    As long as the pipe takes bytes, the launcher asks for each rank whether it does, without a pause (`select` in
    mlx/_distributed_utils/launch.py, MLX 0.32.4): on two cores, two ranks then have only one. Linux can open the other
    end of a pipe; elsewhere nothing is done.
    """
    with suppress(OSError):
        if not stat.S_ISFIFO(os.fstat(stdin).st_mode):
            return
        end = os.open(f"/proc/self/fd/{stdin}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            while True:
                os.write(end, b"\n" * 4096)  # until BlockingIOError, an OSError
        finally:
            os.close(end)


def _init(launch: Launch, times: Times) -> Any:
    # MLX holds Python's lock here, so that no thread of ours could end a rank whose neighbor has just died.
    faulthandler.dump_traceback_later(times.start + 5, exit=True)
    try:
        group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        raise WorldError(
            f"rank {launch.rank}: MLX's collectives do not start ({error}); fix: see `mlx.launch`"
        ) from error
    finally:
        faulthandler.cancel_dump_traceback_later()
    if (group.rank(), group.size()) != (launch.rank, launch.size):
        raise WorldError(
            f"MLX says rank {group.rank()} of {group.size()}, the launcher {launch.rank} of {launch.size}"
        )
    return group


def _address_by(group: Any, launch: Launch) -> tuple[str, int]:
    """Return a free port of rank 0's host, which rank 0 finds and the collectives tell the others."""
    text = b""
    if launch.rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            text = f"{socket.gethostname()}:{free.getsockname()[1]}".encode()
    numbers = mx.array(np.frombuffer(text.ljust(256, b"\0"), np.uint8).astype(np.int32))
    total = mx.distributed.all_sum(numbers, group=group)
    return _place(np.array(total).astype(np.uint8).tobytes().rstrip(b"\0").decode())
