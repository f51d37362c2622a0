"""What a person sees while a run goes on: a bar on a terminal or in a notebook, else a line for each evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

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
