"""What a run is about to learn, in a few lines, and its scores as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from heads.calibration import threshold_metric
from mlxbert.errors import printable
from mlxbert.runs.files import RunError
from mlxbert.runs.record import SCORES, RunRecord, read_scores
from mlxbert.training.predictions import NUMBERS

if TYPE_CHECKING:
    from mlxbert.runs.prepare import Prepared
    from mlxbert.runs.run import Run
    from mlxbert.runs.settings import RunSettings

_QUOTES = {"none": ", quotes read as characters", "escaped": ", quotes escaped by a backslash"}


def show_inference(
    prepared: Prepared, settings: RunSettings, record: Mapping[str, Any], columns: Iterable[str]
) -> None:
    """Say on standard error, before hours of training, what was inferred from the data and why."""
    console = Console(stderr=True, highlight=False, markup=False)
    for name, what in inference_lines(prepared, settings, record, columns):
        console.print(f"{name:<10}{what}", soft_wrap=True)


def inference_lines(
    prepared: Prepared, settings: RunSettings, record: Mapping[str, Any], columns: Iterable[str]
) -> list[tuple[str, str]]:
    """What is learned from which columns, how it is judged, and why: (name, what) each.

    Args:
        prepared: the data.
        settings: what was asked for.
        record: of the data, for run.json.
        columns: of the data.
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
    lines.append(("Text", " / ".join(_listed(one) if isinstance(one, tuple) else printable(one) for one in parts)))
    roles = {"id": prepared.id_column, "group": settings.group, "time": settings.time}
    named = [f"{printable(name)} ({role})" for role, name in roles.items() if name is not None]
    used = {*task.target, *text.columns, *roles.values()}
    left = [str(name) for name in columns if str(name) not in used]
    if named or left:
        lines.append(("Not text", ", ".join([*named, *([_listed(left)] if left else [])])))
    lines.append(("Folds", f"{len(prepared.folds)}, {prepared.fold_kind}"))
    return lines


def _listed(names: Iterable[Any]) -> str:
    shown = [printable(name, 60) for name in names]
    return ", ".join(shown[:10]) + (f", … and {len(shown) - 10} more" if len(shown) > 10 else "")


def decision(record: RunRecord) -> str | None:
    """Return how a run's probabilities become labels, in words; None: they do not."""
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


def scores_frame(run: Run) -> Any:
    """A pandas frame: a row a model, then "pooled" and "hold-out"; columns are the metrics."""
    import pandas

    scores = read_scores(run.path)
    rows = {} if scores is None else {one.member: one.metrics for one in scores.members}
    if scores is not None:
        rows["pooled"] = scores.pooled
        if scores.hold_out is not None:
            rows["hold-out"] = scores.hold_out.metrics
    return pandas.DataFrame.from_dict(rows, orient="index")


def scores_table(run: Run) -> Table:
    """A finished run's scores for the terminal: the first few metrics, the optimized one first.

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
    for one in scores.members:
        table.add_row(printable(one.member, 40), str(one.rows), *(_shown(one.metrics.get(name)) for name in names))
    if len(scores.members) > 1:
        spreads = [scores.spread.get(name) for name in names]
        table.add_row("mean", "", *(_shown(None if one is None else one.mean) for one in spreads))
        table.add_row("deviation", "", *(_shown(None if one is None else one.std) for one in spreads))
    rows = sum(one.rows for one in scores.members if one.seed == scores.members[0].seed)
    table.add_row("all out of fold", str(rows), *(_shown(scores.pooled[name]) for name in names))
    held = scores.hold_out
    if held is not None:
        table.add_row("held out of all", str(held.rows), *(_shown(held.metrics.get(name)) for name in names))
    return table


def _shown(value: float | None) -> str:
    return "—" if value is None or value != value else f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
