"""Show a run to people: what it infers from the data, its progress, its scores; and callbacks for trackers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from heads.calibration import threshold_metric
from mlxbert.errors import printable
from mlxbert.runs.files import TRACKERS, RunError
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.record import RunRecord
from mlxbert.runs.run import Run
from mlxbert.runs.scores import SCORES, read_scores
from mlxbert.runs.settings import RunSettings
from mlxbert.terminal import SafeConsole
from mlxbert.training.callbacks import Callback, EvaluationEvent, MemberEvent, StepEvent
from mlxbert.training.held_out import NUMBERS

_OF_STEPS = ("loss", "rate", "norm", "rows_per_second", "padding")
"""What the services show of every step."""

# A terminal of this many columns has room for the learning rate beside the bar.
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
        # Seconds per step: an exponential mean, which follows other lengths and folds.
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
        time_left = (event.steps - event.step + (self.members - self._done_members - 1) * event.steps) * self._seconds
        loss = "" if self._loss is None else f"loss {self._loss:.4f}  "
        # At 80 columns the bar needs the room; metrics.jsonl has the rate of every step.
        rate = f"rate {event.rate:.1e}  " if self.console.width >= WIDE else ""
        self.bars.update(
            self._task,
            completed=(self._done_members + part) / self.members,
            description=f"{event.member} ({self._done_members + 1}/{self.members})",
            numbers=f"{loss}{rate}{event.rows_per_second:.0f} rows/s  {duration(time_left)} left",
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
        # A log file has no width: soft_wrap keeps the line whole.
        self.console.print(line, soft_wrap=True)

    def skip(self, count: int) -> None:
        """Count models that an earlier sitting has finished."""
        self._done_members += count

    def on_run_end(self, scores: object) -> None:
        self.bars.stop()


class WorkersProgress(ProgressBar):
    """A line for each model that a worker trains now, and one for all models; on standard error."""

    def __init__(self, members: int):
        super().__init__(members)
        self._lines: dict[str, TaskID] = {}
        self._losses: dict[str, float] = {}
        self._speeds: dict[str, float] = {}

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        if self._task is None:
            self.bars.start()
            self._task = self.bars.add_task("", total=self.members, numbers="")
            self._show_all()
        self._lines[member] = self.bars.add_task(member, total=steps, completed=done, numbers="")
        if done:
            self._say(f"{member}: goes on after step {done} of {steps}")

    def on_step(self, event: StepEvent) -> None:
        member, loss = event.member, event.loss
        if loss == loss:
            self._losses[member] = 0.9 * self._losses.get(member, loss) + 0.1 * loss
        self._speeds[member] = event.rows_per_second
        if member in self._lines:
            shown = f"loss {self._losses[member]:.4f}  " if member in self._losses else ""
            numbers = f"epoch {event.epoch:.2f}  step {event.step}/{event.steps}  {shown}"
            self.bars.update(
                self._lines[member],
                completed=event.step,
                numbers=f"{numbers}{event.rows_per_second:.0f} rows/s",
            )
            self._show_all()

    def on_member_end(self, event: MemberEvent) -> None:
        super().on_member_end(event)
        self._speeds.pop(event.member, None)
        line = self._lines.pop(event.member, None)
        if line is not None:
            self.bars.remove_task(line)
        self._show_all()

    def _show_all(self) -> None:
        if self._task is not None:
            self.bars.update(
                self._task,
                completed=self._done_members,
                description=f"models ({self._done_members}/{self.members})",
                numbers=f"{sum(self._speeds.values()):.0f} rows/s",
            )


def shows_bars(console: Console) -> bool:
    """Return whether the console shows bars: a terminal, or a notebook with the widgets that rich needs."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


def duration(seconds: float) -> str:
    """Return a time in words: "1 h 05 min", "3 min 20 s", "12 s"."""
    whole = max(round(seconds), 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextmanager
def row_progress() -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar of predicted rows on standard error; nothing if that is neither a terminal nor a notebook."""
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


def tracker(name: str, root: Path) -> Callback:
    """Return the callback that logs a run to a service.

    Raises:
        RunError: an unknown name, or its package is not installed.
    """
    if name == "tensorboard":
        return TensorBoard(root)
    if name == "wandb":
        return WandB(root)
    raise RunError(f"tracker {name!r} is unknown; known: {', '.join(TRACKERS)}")


class TensorBoard(Callback):
    """Writes event files in the run, one folder per model: `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, root: Path):
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise RunError("logging to TensorBoard needs tensorboardX; fix: pip install tensorboardX") from error
        self._make, self._root = SummaryWriter, root / "tensorboard"
        self._writers: dict[str, Any] = {}  # of the models in training: workers train several at the same time

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        self._writers[member] = self._make(str(self._root / member), purge_step=done + 1 if done else None)

    def on_step(self, event: StepEvent) -> None:
        for name in _OF_STEPS:
            self._writers[event.member].add_scalar(f"train/{name}", getattr(event, name), event.step)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        for name, value in {"loss": event.loss, **event.metrics}.items():
            self._writers[event.member].add_scalar(f"held_out/{name}", value, event.step)

    def on_member_end(self, event: MemberEvent) -> None:
        self._writers.pop(event.member).close()

    def on_run_end(self, scores: dict[str, Any] | None) -> None:
        while self._writers:
            self._writers.popitem()[1].close()


class WandB(Callback):
    """Logs each model as a run of Weights & Biases, in one group; wandb has login and project (WANDB_PROJECT)."""

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
        self._log({f"train/{name}": getattr(event, name) for name in _OF_STEPS}, event.step)

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


_QUOTES = {"none": ", quotes read as characters", "escaped": ", quotes escaped by a backslash"}


def show_inference(
    prepared: Prepared, settings: RunSettings, record: Mapping[str, Any], columns: Iterable[str], ranks: str = ""
) -> None:
    """Show on standard error, before the training, what is inferred from the data, and the `ranks` that train."""
    console = Console(stderr=True, highlight=False, markup=False)
    for name, what in inference_lines(prepared, settings, record, columns):
        console.print(f"{name:<10}{what}", soft_wrap=True)
    if ranks:
        console.print(f"{'Ranks':<10}{ranks}", soft_wrap=True)


def inference_lines(
    prepared: Prepared, settings: RunSettings, record: Mapping[str, Any], columns: Iterable[str]
) -> list[tuple[str, str]]:
    """Return what is learned from which columns, and how it is scored, as lines (name, text).

    Args:
        prepared: the data.
        settings: of the run.
        record: the entry of the data in run.json.
        columns: the columns of the data.
    """
    task, text, metric = prepared.problem.task, prepared.problem.text, prepared.metric
    source = "a frame" if record["path"] is None else printable(record["path"])
    lines = [
        ("Data", f"{source}, {record['rows']} rows{_QUOTES.get(record.get('quoting') or '', '')}"),
        ("Target", f"{_listed(task.target)}: {printable(str(task), 1000)}"),
    ]
    if task.classes is not None:
        lines.append(("Classes", f"{len(task.classes)}: {_listed(task.classes)}"))
    lines.append(("Metric", f"{metric.name} ({'higher' if metric.greater_is_better else 'lower'} is better)"))
    parts = [text.first, *([] if text.second is None else [text.second])]
    lines.append(("Text", " / ".join(_listed(part) if isinstance(part, tuple) else printable(part) for part in parts)))
    roles = {"id": prepared.id_column, "group": settings.group, "time": settings.time}
    named = [f"{printable(name)} ({role})" for role, name in roles.items() if name is not None]
    used = {*task.target, *text.columns, *roles.values()}
    unused = [str(name) for name in columns if str(name) not in used]
    if named or unused:
        lines.append(("Not text", ", ".join([*named, *([_listed(unused)] if unused else [])])))
    lines.append(("Folds", f"{len(prepared.folds)}, {prepared.fold_kind}"))
    return lines


def _listed(names: Iterable[Any]) -> str:
    shown = [printable(name, 60) for name in names]
    return ", ".join(shown[:10]) + (f", … and {len(shown) - 10} more" if len(shown) > 10 else "")


def decision(record: RunRecord) -> str | None:
    """Return in words how the probabilities of a run become labels; None for numbers."""
    task = record.task.task
    if task in NUMBERS:
        return None
    if task in ("multiclass", "ordinal"):
        return "the most probable class" if task == "multiclass" else "the median rating"
    if not record.config.calibrate:
        return "positive from a probability of one half on"
    metric = threshold_metric(record.metric) if task == "binary" else "f1"
    each = "" if task == "binary" else ", one a label"
    return f"decided at thresholds fitted for {metric} on held-out rows{each}"


def scores_table(run: Run) -> Table:
    """Return the scores of a finished run for the terminal: the first few metrics, the optimized one first.

    Raises:
        RunError: the run is not finished, or scores.json is damaged.
    """
    scores = read_scores(run.path)
    if scores is None:
        raise RunError(f"{run.path}: there is no {SCORES}; fix: {run.go_on}")
    names = list(scores.pooled)[:4]
    direction = "higher" if scores.greater_is_better else "lower"
    title = f"{run.task.task}, {printable(run.record.metric)} ({direction} is better)"
    table = Table(title=title)
    table.add_column("", no_wrap=True, min_width=12)
    table.add_column("rows", justify="right", no_wrap=True)
    for name in names:
        table.add_column(printable(name, 40), justify="right", no_wrap=True)
    for member in scores.members:
        values = (_shown(member.metrics.get(name)) for name in names)
        table.add_row(printable(member.member, 40), str(member.rows), *values)
    if len(scores.members) > 1:
        spreads = [scores.spread.get(name) for name in names]
        table.add_row("mean", "", *(_shown(None if spread is None else spread.mean) for spread in spreads))
        table.add_row("deviation", "", *(_shown(None if spread is None else spread.std) for spread in spreads))
    rows = sum(member.rows for member in scores.members if member.seed == scores.members[0].seed)
    table.add_row("all out of fold", str(rows), *(_shown(scores.pooled[name]) for name in names))
    held = scores.hold_out
    if held is not None:
        table.add_row("held out of all", str(held.rows), *(_shown(held.metrics.get(name)) for name in names))
    return table


def _shown(value: float | None) -> str:
    return "—" if value is None or value != value else f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
