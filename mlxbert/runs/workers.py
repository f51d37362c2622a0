"""Train the models of a run in several processes of this machine.

Each worker is a new process of the same interpreter (`mlxbert.runs.worker`): a fork of a process in which MLX has
computed hangs. It takes one free model of the run after the other, under the model's lock; so there is no queue. The
parent tells it what to do through its standard input, which then stays open. When it ends, because the parent closes
it or dies, the worker saves its state and stops.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import mlx.core as mx

from heads.losses import registered_losses
from mlxbert.backend.kernels import kernel_folder
from mlxbert.backend.processor import free_memory
from mlxbert.errors import RunWarning, printable
from mlxbert.files.output_file import format_bytes
from mlxbert.runs.files import RunError, RunFiles
from mlxbert.runs.inputs import Inputs, as_pandas, is_path
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.record import environment
from mlxbert.runs.settings import RunSettings
from mlxbert.training.callbacks import KINDS, Callback, EvaluationEvent, MemberEvent, StepEvent
from mlxbert.training.trainer import TrainingInterrupted

_MODULE = "mlxbert.runs.worker"
_EVENTS = {name: kind for kind, name in KINDS.items()}
# Arrays of the weights' size in a training: weights, gradients, two moments of AdamW, best weights so far.
_COPIES = 5


class WorkerError(RunError):
    """A worker process failed; the message names its model."""


@dataclass(frozen=True, eq=False)
class Job:
    """What every worker of a run is told; it is sent to it as a pickle, which frames need.

    Attributes:
        root: directory of the run.
        tables: path or frame of the data, and of validation and test data and the sample submission, if there are any.
        members: names of the models that the workers share.
        device: "cpu" or "gpu".
        environment: that of the parent, as in run.json.
        modules: where head and loss are registered.
    """

    root: str
    tables: Mapping[str, Any]
    members: tuple[str, ...]
    device: str
    environment: Mapping[str, Any]
    modules: tuple[str, ...] = ()


def make_job(
    files: RunFiles,
    inputs: Inputs,
    members: Sequence[str],
    prepared: Prepared,
    settings: RunSettings,
) -> Job:
    """Return the job of the workers of a run.

    Raises:
        RunError: the head or its loss is defined in a script or a notebook.
    """
    tables = {name: _table(name, table) for name, table in vars(inputs).items() if table is not None}
    defined: list[tuple[str, type[Any]]] = [("head", prepared.problem.head_class)]
    objective = settings.head.get("objective")
    name = objective.get("name") if isinstance(objective, Mapping) else objective
    if name in (known := registered_losses()):
        defined.append(("loss", known[name]))
    modules = [(what, kind) for what, kind in defined if not kind.__module__.startswith("heads.")]
    for what, kind in modules:
        if kind.__module__ == "__main__":
            raise RunError(
                f"the {what} {kind.__name__} is defined in a script or a notebook, which worker processes cannot "
                "import; fix: put it into a module of its own, or workers=1"
            )
    return Job(
        root=str(files.root),
        tables=tables,
        members=tuple(members),
        device="cpu" if mx.default_device().type == mx.DeviceType.cpu else "gpu",
        environment=environment(),
        modules=tuple(kind.__module__ for _, kind in modules),
    )


def _table(name: str, table: Any) -> Any:
    return str(os.fspath(table)) if is_path(table) else as_pandas(table, f"the {name} frame")


def note_memory(checkpoint: Path, workers: int) -> None:
    """Warn if so many models in training do not fit in memory: the least that they need is known, texts come on top.

    Warns:
        RunWarning: names both sizes.
    """
    weights = sum(file.stat().st_size for file in checkpoint.glob("model*.safetensors"))
    free, needed = free_memory(), workers * _COPIES * weights
    if free is not None and needed > free:
        warnings.warn(
            f"{workers} workers need at least {format_bytes(needed)} of memory, and {format_bytes(free)} are free; "
            "fix: fewer --workers",
            RunWarning,
            stacklevel=2,
        )


@dataclass(eq=False)
class _Worker:
    """One process: the model that it trains now, how it ended, and what it has written to standard error."""

    process: subprocess.Popen[bytes]
    stderr: IO[bytes]
    member: str | None = None
    seconds: float = 0.0
    failure: str | None = None
    was_interrupted: bool = False
    is_done: bool = False

    def send(self, job: bytes) -> None:
        """Send the job; a worker that is dead already is found when its output ends."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(job)
            self.process.stdin.flush()

    def stop(self) -> None:
        """Let the worker save its state and stop."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def end(self) -> None:
        """Wait for the process, and note how it ended."""
        code = self.process.wait()
        who = "a worker" if self.member is None else f"{self.member}: its worker"
        if self.is_done or self.failure is not None or self.was_interrupted:
            return
        if code < 0:
            self.failure = f"{who} was killed (signal {-code}); a full memory can be the reason: fewer --workers"
        else:
            self.stderr.seek(0)
            lines = self.stderr.read().decode("utf-8", "replace").strip().splitlines() or ["it says nothing"]
            self.failure = f"{who} ended with code {code}: {printable(lines[-1])}"


@dataclass(eq=False)
class Workers:
    """The workers of a run, and what comes from them."""

    callbacks: Callback
    several: list[_Worker] = field(default_factory=list)
    messages: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = field(default_factory=queue.SimpleQueue)
    is_stopping: bool = False
    running: set[_Worker] = field(default_factory=set)

    def start(self, job: Job, count: int) -> None:
        """Start `count` processes, and send them the job."""
        if not sys.executable:
            raise RunError("this Python does not name its interpreter, so workers cannot be started; fix: workers=1")
        # The same modules as here. Without the safe path, files of the current directory could hide them.
        paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109 - as Python has it
        variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
        data = pickle.dumps(job)
        for number in range(count):
            stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
            process = subprocess.Popen(
                [sys.executable, "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=variables | {"TMPDIR": str(kernel_folder(number))},
                start_new_session=True,  # Ctrl-C in a terminal goes to the parent alone, which stops the workers
            )
            self.several.append(_Worker(process, stderr))
        self.running = set(self.several)
        for worker in self.several:
            threading.Thread(target=self._read, args=(worker,), daemon=True).start()
        for worker in self.several:
            worker.send(data)

    def _read(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            with suppress(ValueError):  # the last line of a killed worker
                self.messages.put((worker, json.loads(line)))
        self.messages.put((worker, None))

    def follow(self) -> None:
        """Pass on what the workers do, until all have ended; if one fails, stop the others."""
        while self.running:
            worker, message = self.messages.get()
            if message is not None:
                self._take(worker, message)
                continue
            worker.end()
            self.running.discard(worker)
            if worker.failure is not None or worker.was_interrupted:
                self.stop()

    def stop(self) -> None:
        """Let all workers save their states and stop; callbacks are not called any more."""
        self.is_stopping = True
        for worker in self.several:
            worker.stop()

    def kill(self) -> None:
        """End all processes at once; what they saved last stays."""
        for worker in self.several:
            worker.process.kill()
            worker.process.wait()
            for pipe in (worker.process.stdin, worker.process.stdout, worker.stderr):
                if pipe is not None:
                    with suppress(OSError, ValueError):
                        pipe.close()

    def _take(self, worker: _Worker, message: dict[str, Any]) -> None:
        kind = message.pop("event")
        if kind == "end":
            worker.is_done, worker.seconds = True, message["seconds"]
        elif kind == "error":
            if message["interrupted"]:
                worker.was_interrupted = True
            else:
                member, text = message["member"], message["text"]
                worker.failure = text if member is None or text.startswith(f"{member}") else f"{member}: {text}"
        elif kind == "warning":
            warnings.warn(f"{worker.member}: {message['text']}", RunWarning, stacklevel=2)
        elif self.is_stopping:
            return
        elif kind == "start":
            worker.member = message["member"]
            self.callbacks.on_member_start(**message)
        else:
            event = _EVENTS[kind](**message)
            if isinstance(event, StepEvent):
                self.callbacks.on_step(event)
            elif isinstance(event, EvaluationEvent):
                self.callbacks.on_evaluation(event)
            elif isinstance(event, MemberEvent):
                self.callbacks.on_member_end(event)


def train_in_workers(job: Job, count: int, callbacks: Callback) -> float:
    """Train the unfinished models of a run in several processes.

    Return the seconds that earlier sittings spent on them. A model that another process trains is left out.

    Args:
        job: for all workers.
        count: of the processes.
        callbacks: called in this process with the events of all models, as they come.

    Raises:
        TrainingInterrupted: Ctrl-C; every worker has saved its state. The second Ctrl-C kills them.
        WorkerError: a worker failed; it names the model. The others have saved their states.
    """
    workers = Workers(callbacks)
    try:
        try:
            workers.start(job, count)
            workers.follow()
        except BaseException:  # Ctrl-C, or a callback that raises
            workers.stop()
            workers.follow()
            raise
    finally:
        workers.kill()
    failures = [worker.failure for worker in workers.several if worker.failure is not None]
    if failures:
        raise WorkerError(failures[0])
    if any(worker.was_interrupted for worker in workers.several):
        raise TrainingInterrupted("a worker was interrupted")
    return sum(worker.seconds for worker in workers.several)
