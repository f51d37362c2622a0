"""What a person sees while a run goes on: a bar on a terminal or in a notebook, else a line for each evaluation.

TensorBoard and Weights & Biases, where they are installed: the same numbers as metrics.jsonl has.

The directory of a run: whether one may be begun there, and that one process at a time writes it.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mlxbert.files.output_directory import target_lock
from mlxbert.files.output_file import TEMPORARY, WriteError, write_errors
from mlxbert.files.reading import expand_home
from mlxbert.runs.files import RunError, RunFiles
from mlxbert.runs.record import INFO, read_values
from mlxbert.terminal import SafeConsole
from mlxbert.training.callbacks import Callback, EvaluationEvent, MemberEvent, StepEvent

# From so many columns on, the bar of a training has room for the learning rate.
WIDE = 100


class ProgressBar(Callback):
    """Loss, rate, throughput and time left of the whole run, on standard error."""

    def __init__(self, members: int):
        self.members = members
        self.console = SafeConsole(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[numbers]}"),
        )
        self.bars = Progress(*columns, console=self.console, disable=not shows_bars(self.console), transient=True)
        self._task: TaskID | None = None
        self._done_members = 0
        self._loss: float | None = None
        # Seconds a step, of the steps seen: an exponential mean, so that other lengths and folds are followed.
        self._seconds: float | None = None
        self._last = time.monotonic()

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        if self._task is None:
            self.bars.start()
            self._task = self.bars.add_task("", total=1.0, numbers="")
        self._loss, self._last = None, time.monotonic()
        if done:
            self._say(f"{member}: goes on after step {done} of {steps}")

    def on_step(self, event: StepEvent) -> None:
        now = time.monotonic()
        taken, self._last = now - self._last, now
        self._seconds = taken if self._seconds is None else 0.95 * self._seconds + 0.05 * taken
        if event.loss == event.loss:
            self._loss = event.loss if self._loss is None else 0.9 * self._loss + 0.1 * event.loss
        if self._task is None:
            return
        part = event.step / event.steps
        left = (event.steps - event.step + (self.members - self._done_members - 1) * event.steps) * self._seconds
        loss = "" if self._loss is None else f"loss {self._loss:.4f}  "
        # At 80 columns the bar itself needs the room; metrics.jsonl has the rate of every step.
        rate = f"rate {event.rate:.1e}  " if self.console.width >= WIDE else ""
        self.bars.update(
            self._task,
            completed=(self._done_members + part) / self.members,
            description=f"{event.member} ({self._done_members + 1}/{self.members})",
            numbers=f"{loss}{rate}{event.rows_per_second:.0f} rows/s  {duration(left)} left",
        )

    def on_evaluation(self, event: EvaluationEvent) -> None:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in list(event.metrics.items())[:3])
        best = "  best" if event.best else ""
        self._say(f"{event.member}  epoch {event.epoch:.2f}  held-out loss {event.loss:.4f}  {metrics}{best}")
        self._last = time.monotonic()

    def on_member_end(self, event: MemberEvent) -> None:
        self._done_members += 1
        if event.note:
            self._say(f"{event.member}: thresholds stay at one half: {event.note}")

    def _say(self, line: str) -> None:
        # A log file has no width: soft_wrap leaves the line in one piece.
        self.console.print(line, soft_wrap=True)

    def skip(self, count: int) -> None:
        """Models that an earlier run has finished."""
        self._done_members += count

    def on_run_end(self, scores: object) -> None:
        self.bars.stop()


def shows_bars(console: Console) -> bool:
    """On a terminal, and in a notebook with the widgets that rich draws them with."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


def duration(seconds: float) -> str:
    """ "1 h 05 min", "3 min 20 s", "12 s"."""
    whole = max(round(seconds), 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextmanager
def row_progress() -> Iterator[Callable[[int, int | None], None]]:
    """A bar of rows done, on standard error; nothing where that is neither a terminal nor a notebook."""
    console = Console(stderr=True)
    columns = (
        TextColumn("Predicting"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not shows_bars(console)) as bars:
        task = bars.add_task("", total=1)

        def progress(done: int, total: int | None) -> None:
            bars.update(task, completed=done, total=total)

        yield progress


TRACKERS = ("tensorboard", "wandb")


def tracker(name: str, root: Path) -> Callback:
    """The callback that logs a run to a service.

    Raises:
        RunError: an unknown name, or its package is not installed.
    """
    if name == "tensorboard":
        return TensorBoard(root)
    if name == "wandb":
        return WandB(root)
    raise RunError(f"tracker {name!r} is unknown; known: {', '.join(TRACKERS)}")


class TensorBoard(Callback):
    """Event files below the run, one folder a model: `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, root: Path):
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise RunError("logging to TensorBoard needs tensorboardX; fix: pip install tensorboardX") from error
        self._make, self._root = SummaryWriter, root / "tensorboard"
        self._writer: Any = None

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        self._writer = self._make(str(self._root / member), purge_step=done + 1 if done else None)

    def on_step(self, event: StepEvent) -> None:
        for name in ("loss", "rate", "norm", "rows_per_second"):
            self._writer.add_scalar(f"train/{name}", getattr(event, name), event.step)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        for name, value in {"loss": event.loss, **event.metrics}.items():
            self._writer.add_scalar(f"held_out/{name}", value, event.step)

    def on_member_end(self, event: MemberEvent) -> None:
        self._writer.close()

    def on_run_end(self, scores: dict[str, Any] | None) -> None:
        if self._writer is not None:
            self._writer.close()


class WandB(Callback):
    """One run of Weights & Biases a model, grouped; login and project are wandb's own (WANDB_PROJECT, WANDB_MODE)."""

    def __init__(self, root: Path):
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise RunError("logging to Weights & Biases needs wandb; fix: pip install wandb") from error
        self._wandb, self._root = wandb, root
        self._config: dict[str, Any] = {}
        self._run: Any = None

    def on_run_start(self, info: dict[str, Any]) -> None:
        self._config = {"config": info["config"], "task": info["task"]["task"], "metric": info["metric"]}

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        self._run = self._wandb.init(
            dir=str(self._root), group=self._root.name, name=f"{self._root.name}/{member}", config=self._config
        )

    def on_step(self, event: StepEvent) -> None:
        names = ("loss", "rate", "norm", "rows_per_second")
        self._log({f"train/{name}": getattr(event, name) for name in names}, event.step)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        values = {"loss": event.loss, **event.metrics}
        self._log({f"held_out/{name}": value for name, value in values.items()}, event.step)

    def on_member_end(self, event: MemberEvent) -> None:
        self._finish()

    def on_run_end(self, scores: dict[str, Any] | None) -> None:
        self._finish()

    def _log(self, values: dict[str, float], step: int) -> None:
        if self._run is not None:
            self._run.log(values, step=step)

    def _finish(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None


def new_directory(out: str | Path, overwrite: bool) -> Path:
    """The directory, if a run may be begun there.

    Raises:
        RunError: it is a file, has something else in it, or a run that is not to be overwritten.
    """
    root = expand_home(out)
    if root.exists() and not root.is_dir():
        raise RunError(f"{root} is a file; fix: give another directory with -o")
    if not root.is_dir() or all(TEMPORARY.fullmatch(path.name) for path in root.iterdir()):
        return root
    if not os.path.lexists(root / INFO):
        raise RunError(f"{root} is not empty, and no run; fix: give another directory with -o")
    check_own(root / INFO)
    read_values(root)
    if not overwrite:
        raise RunError(f"{root} has a run in it; fix: --resume {root}, --overwrite, or another directory with -o")
    return root


@contextmanager
def run_lock(root: Path) -> Iterator[None]:
    """Be the only process that writes this run; what a killed one left half written is deleted.

    Raises:
        RunError: another process is at it.
        WriteError: there is no place for it.
    """
    # Beside the directory itself, whatever it is called here: two names must not be two locks.
    target = Path(os.path.realpath(root))
    with write_errors(target, 0):
        target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(target_lock(target))
        except WriteError as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise RunError(f"{root}: another process is training this run now; fix: wait for its end") from error
            raise
        delete_leftovers(target)
        yield


def check_paths(files: RunFiles) -> None:
    """Refuse links, pipes, sockets and devices where a run writes and deletes; its directory itself may be a link.

    Raises:
        RunError: names the first one.
        WriteError: a folder cannot be looked at.
    """
    for path in (files.info, *files.made):
        # Trackers keep links of their own in their folders (wandb/latest-run).
        check_own(path, inside=path.name not in TRACKERS)


def check_own(path: Path, *, inside: bool = True) -> None:
    """Refuse a path of a run that is a link or a special file; with `inside` also what lies in a folder.

    Raises:
        RunError: it is one.
        WriteError: it cannot be looked at.
    """
    with write_errors(path, 0, fix="make it readable (chmod -R u+rwX)"):
        if not os.path.lexists(path):
            return
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            for inner in sorted(path.iterdir()) if inside else ():
                check_own(inner)
        elif not stat.S_ISREG(mode):
            what = "a link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
            raise RunError(
                f"{path} is {what}, and a run writes only to files and folders of its own; fix: delete it, or put "
                "there what it leads to"
            )


def delete_leftovers(root: Path) -> None:
    """Delete files that a killed process had half written."""
    for folder in (root, *(path for part in ("members", "resume", "logits") for path in root.glob(f"{part}/**/"))):
        for path in [path for path in folder.iterdir() if TEMPORARY.fullmatch(path.name)] if folder.is_dir() else ():
            path.unlink(missing_ok=True)


def empty(files: RunFiles) -> None:
    """Delete what a run and its report have made, but run.json; anything else that lies there stays.

    What a kill leaves of it is an unfinished run, to be overwritten or resumed.
    """
    for path in files.made:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
