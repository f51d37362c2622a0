"""A worker process of a run: ``python -m mlxbert.runs.worker``, started by `mlxbert.runs.workers`.

It reads a pickled `Job` from standard input, which then stays open, and writes a line of JSON for each event to
standard output. When standard input ends, the parent stops it or is dead: it saves its state and ends.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import sys
import threading
import warnings
from typing import IO, Any

from mlxbert.errors import Interrupted, readable
from mlxbert.runs.workers import Job
from mlxbert.training.callbacks import Callback, EvaluationEvent, Event, MemberEvent, StepEvent, event_record


class Sender(Callback):
    """Sends every event to the parent.

    Attributes:
        member: the model in training; None before the first one.
    """

    def __init__(self, out: IO[bytes]):
        self._out = out
        self.member: str | None = None

    def send(self, message: dict[str, Any]) -> None:
        """Write a line; if the parent is dead, the end of standard input stops the training."""
        try:
            self._out.write(json.dumps(message).encode() + b"\n")
            self._out.flush()
        except OSError:
            return

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        self.member = member
        self.send({"event": "start", "member": member, "seed": seed, "fold": fold, "steps": steps, "done": done})

    def on_step(self, event: StepEvent) -> None:
        self._event(event)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        self._event(event)

    def on_member_end(self, event: MemberEvent) -> None:
        self._event(event)

    def _event(self, event: Event) -> None:
        self.send(event_record(event))


def main() -> int:
    """Train the free models of the job; return the exit code."""
    # Standard output is for events only; what a package prints goes to standard error.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # A parent in the background of a script ignores SIGINT, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sender = Sender(out)
    try:
        job: Job = pickle.load(sys.stdin.buffer)  # from the parent's own pipe, not from a file
        threading.Thread(target=_stop_at_the_end, args=(sys.stdin.buffer,), daemon=True).start()
        seconds = _train(job, sender)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | Interrupted | EOFError)
        text = str(error) if type(error).__module__.startswith(("mlxbert.", "heads.")) else _foreign(error)
        sender.send({"event": "error", "member": sender.member, "text": text, "interrupted": interrupted})
        return 1
    sender.send({"event": "end", "seconds": seconds})
    return 0


def _foreign(error: BaseException) -> str:
    return readable(f"{type(error).__name__}: {error}".rstrip(": "))


def _stop_at_the_end(stdin: IO[bytes]) -> None:
    """Send this process Ctrl-C when its standard input ends: the training saves its state before it stops."""
    while stdin.read(1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def _train(job: Job, sender: Sender) -> float:
    import mlx.core as mx

    from mlxbert.runs.session import train_share

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if sender.member is not None:  # before that, the parent has warned of the same
            sender.send({"event": "warning", "text": str(message)})

    mx.set_default_device(mx.Device(mx.DeviceType.cpu if job.device == "cpu" else mx.DeviceType.gpu))
    for module in job.modules:
        importlib.import_module(module)
    with warnings.catch_warnings():
        warnings.showwarning = show
        return train_share(job, sender)


if __name__ == "__main__":
    # At the end of the interpreter, the thread that waits for standard input would hold a lock of its buffer.
    code = main()
    sys.stderr.flush()
    os._exit(code)
