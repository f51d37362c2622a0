"""The report of a run: one HTML page that needs nothing outside it, and its plots as PNG files.

Texts, labels and column names in a run are hostile: the page escapes them, runs no script and loads nothing.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from heads.calibration import threshold_metric
from heads.metrics import METRICS
from mlxbert.errors import escaped_value
from mlxbert.files.output_file import replace_file
from mlxbert.files.reading import expand_home, from_json, read_json
from mlxbert.report.classification_plots import class_plots, label_plots
from mlxbert.report.figures import DARK, LIGHT, Plot, curve_plots, render
from mlxbert.report.regression_plots import forecast_plots, number_plots
from mlxbert.report.reported_run import (
    ClassPredictions,
    LabelPredictions,
    NumberPredictions,
    OofPredictions,
    ReportedRun,
    ReportError,
    read_predictions,
    read_reported_run,
)
from mlxbert.report.tables import (
    column,
    evaluation_table,
    metric_header,
    origin_table,
    point_tables,
    prediction_table,
    score_table,
    worst_rows,
)
from mlxbert.runs.command import repeating_command
from mlxbert.runs.files import RunError, RunFiles, check_own

# In the page's head: only a file with this mark is overwritten as a report.
MARK = '<meta name="generator" content="mlxbert report">'
HEAD_BYTES = 1000  # the mark is in the first lines

# Parts of run.json, in reading order, and their titles; the other parts follow under their own names.
SECTIONS = {
    "task": "Task",
    "data": "Data",
    "model": "Model",
    "config": "Training",
    "folds": "Folds",
    "submission": "Submission",
    "environment": "Environment",
}
# Shown in the page's head or another table.
SHOWN_ELSEWHERE = {"format", "version", "metric", "metrics", "members"}


@dataclass(frozen=True)
class WrittenReport:
    """A written report: the page, the folder of its plots and how many there are, and the run."""

    page: Path
    folder: Path
    plots: int
    run: ReportedRun


def write_report(run_directory: str | Path, out: str | Path | None = None, plots: str | Path | None = None) -> Path:
    """Write the report of a run, finished or not, and return the page's path.

    Args:
        run_directory: the run, as `mlxbert train … -o` wrote it.
        out: the page; RUN/report.html by default.
        plots: the folder of the PNG files; RUN/plots by default.

    Raises:
        RunError: not a run, damaged JSON of it (the message names the field or the line), or a link where the run is
            written.
        ReportError: a damaged table of it (the message names the line), an `out` that is no report of ours, or
            matplotlib or scikit-learn missing.
        WriteError: it cannot be written.
    """
    return write(run_directory, out, plots).page


def write(run_directory: str | Path, out: str | Path | None, plots: str | Path | None) -> WrittenReport:
    """Write the report as `write_report`, and return a summary for the command."""
    run = read_reported_run(run_directory)
    path, folder = report_paths(run.path, out, plots)
    page = make_page(run)
    for name, png in page.plots.items():
        replace_file(folder / f"{name}.png", png, fix="give another folder with --plots", follow_links=False)
    replace_file(path, page.html.encode("utf-8"), follow_links=out is not None)
    return WrittenReport(path, folder, len(page.plots), run)


def report_paths(run: Path, out: str | Path | None, plots: str | Path | None) -> tuple[Path, Path]:
    """Return the paths of the page and of the folder of plots.

    Raises:
        ReportError: a folder in the page's place, a file in that of the plots, or a file that is no report.
        RunError: a link in the place of either, inside the run.
    """
    page = run / "report.html" if out is None else expand_home(out)
    folder = run / "plots" if plots is None else expand_home(plots)
    if out is None:
        check_own(page)
    if plots is None:
        check_own(folder)
    if page.is_dir():
        raise ReportError(f"{page}: a directory; fix: name a file, -o {page / 'report.html'}")
    if page.is_file() and MARK.encode() not in _head(page):
        raise ReportError(f"{page}: exists, and is no report; it is left alone; fix: give another file with -o")
    if folder.exists() and not folder.is_dir():
        raise ReportError(f"{folder}: a file, not a directory; fix: give another folder with --plots")
    return page, folder


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}; fix: give another file with -o") from None


def shown_score(run: ReportedRun) -> str:
    """Return "f1 0.7912 pooled", or how far the run is; for a terminal."""
    if run.scores is None:
        return f"unfinished: {len(run.finished)} of {len(run.record.members)} members trained"
    if run.metric not in run.scores.pooled:
        return f"{len(run.finished)} members"
    return f"{len(run.finished)} members, {run.metric} {column([run.scores.pooled[run.metric]])[0]} pooled"


# The page


@dataclass(frozen=True)
class DrawnPlot:
    """A plot and its PNGs, for a light and a dark screen."""

    plot: Plot
    light: bytes
    dark: bytes

    @property
    def light_url(self) -> str:
        """The light PNG as a data URL."""
        return _data_url(self.light)

    @property
    def dark_url(self) -> str:
        """The dark PNG as a data URL."""
        return _data_url(self.dark)


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


@dataclass(frozen=True)
class Page:
    """The page's text, and its plots for a light screen: name -> PNG."""

    html: str
    plots: dict[str, bytes]


def make_page(run: ReportedRun) -> Page:
    """Return the page of a run; the same files give the same bytes.

    Raises:
        ReportError: oof.csv or worst_rows.csv is damaged, or a library is missing.
    """
    import jinja2

    predictions = read_predictions(run)
    worst = worst_rows(run)
    curves = _draw(curve_plots(run))
    plots = _draw(_prediction_plots(predictions, run.task)) if predictions is not None else []
    template = files("mlxbert.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        finalize=escaped_value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.from_string(template).render(
        run=run,
        title=run.path.resolve().name,
        mark=MARK,
        trained=len(run.finished),
        quoted=shlex.quote(str(run.path)),
        unit=_unit(run),
        tiles=_tiles(run),
        scores=score_table(run),
        decisions=decisions(run),
        curves=curves,
        once=evaluation_table(run),
        plots=plots,
        predictions=predictions,
        points=[] if predictions is None else point_tables(predictions),
        outcomes=None if predictions is None else prediction_table(predictions, run.task),
        origins=origin_table(predictions) if isinstance(predictions, NumberPredictions) else None,
        worst=worst,
        command=repeating_command(run.record, f"{run.path}-again"),
        sections=sections(run),
    )
    return Page(html, {drawn.plot.name: drawn.light for drawn in (*curves, *plots)})


def _prediction_plots(predictions: OofPredictions, task: str) -> list[Plot]:
    if isinstance(predictions, ClassPredictions):
        return class_plots(predictions, task)
    if isinstance(predictions, LabelPredictions):
        return label_plots(predictions)
    return [*(forecast_plots(predictions) if predictions.origins is not None else []), *number_plots(predictions)]


def _draw(plots: Sequence[Plot]) -> list[DrawnPlot]:
    return [DrawnPlot(plot, render(plot, LIGHT), render(plot, DARK)) for plot in plots]


def _unit(run: ReportedRun) -> str:
    return "forecasts" if run.task == "time_series" else "rows"


def _tiles(run: ReportedRun) -> list[tuple[str, str, str]]:
    """Return (title, value, explanation) of each tile in the page's head."""
    tiles: list[tuple[str, str, str]] = []
    name, scores = metric_header(run.metric), run.scores
    values = [member.metrics[run.metric] for member in run.finished if run.metric in member.metrics]
    if scores is not None and run.metric in scores.pooled:
        rows = f"{len(run.oof.lines):,} {_unit(run)}" if run.oof is not None else f"all {_unit(run)}"
        tiles.append((name, column([scores.pooled[run.metric]])[0], f"pooled: {rows}, out of fold"))
    spread = scores.spread.get(run.metric) if scores is not None and len(scores.members) > 1 else None
    if spread is not None:
        mean, deviation = column([spread.mean, spread.std])
        words = f"mean ± standard deviation of {len(values)} members"
        tiles.append((f"{name} per member", f"{mean} ± {deviation}", words))
    elif values and scores is None:
        words = "the finished member" if len(values) == 1 else f"{len(values)} finished members, lowest and highest"
        ends = column([min(values), max(values)] if len(values) > 1 else values)
        tiles.append((f"{name} so far", " to ".join(ends), words))
    if scores is not None and scores.hold_out is not None and run.metric in scores.hold_out.metrics:
        value = column([scores.hold_out.metrics[run.metric]])[0]
        tiles.append((f"{name} on the hold-out", value, f"{scores.hold_out.rows:,} rows that no member saw"))
    tiles.append(("Members", f"{len(run.finished)} of {len(run.record.members)}", "trained, each a seed and a fold"))
    if scores is not None:
        tiles.append(("Time", _duration(scores.seconds), "of training and scoring, all sittings together"))
    return tiles


def _duration(seconds: float) -> str:
    if not 0 <= seconds < 1e9:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def sections(run: ReportedRun) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (title, [(name, value)]) of everything in run.json."""
    values = run.record.values
    rest = {name: value for name, value in values.items() if name not in SECTIONS and name not in SHOWN_ELSEWHERE}
    parts = [("Run", rest), *((title, values.get(name)) for name, title in SECTIONS.items())]
    listed = [(title, list(_named_values(part))) for title, part in parts]
    return [(title, facts) for title, facts in listed if facts]


def _named_values(part: Any) -> Iterator[tuple[str, str]]:
    for name, value in part.items() if isinstance(part, dict) else ():
        if value not in (None, [], {}):
            yield name, _words(value)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_words(part)}" for name, part in value.items() if part is not None)
    return ", ".join(map(_words, value)) if isinstance(value, list) else str(value)


# Sentences: how probabilities became labels, which thresholds were fitted, and what the submission contains.


@dataclass(frozen=True)
class FittedValues:
    """What a head learned beside its weights."""

    temperature: float | None = None
    threshold: float | None = None
    thresholds: tuple[float, ...] | None = None


@dataclass(frozen=True)
class _Head:
    fitted: FittedValues


@dataclass(frozen=True)
class _ModelPart:
    head: _Head


@dataclass(frozen=True)
class _MemberConfig:
    mlxbert: _ModelPart


def decisions(run: ReportedRun) -> list[str]:
    """Return one sentence about each decision: thresholds, labels and the submission.

    Raises:
        RunError: a member's config.json is damaged.
    """
    labels = () if run.task in ("regression", "time_series") else _label_sentences(run, _fitted_values(run))
    return [*labels, _submission_sentence(run)]


def _fitted_values(run: ReportedRun) -> list[FittedValues]:
    """Return what the heads of the trained members learned beside their weights."""
    run_files = RunFiles(run.path)
    fitted = []
    for member in run.record.members:
        file = run_files.member(member) / "config.json"
        values = read_json(file, RunError)
        if values is not None and run_files.is_done(member):
            config = from_json(_MemberConfig, values, place=str(file), fix="fix: train again", error=RunError)
            fitted.append(config.mlxbert.head.fitted)
    return fitted


def _label_sentences(run: ReportedRun, fitted: list[FittedValues]) -> Iterator[str]:
    if run.task == "multiclass":
        yield "A row is given the class with the highest probability."
    elif run.task == "ordinal":
        yield "A row is given the median rating: the first one that half of the probability does not exceed."
    else:
        yield from _threshold_sentences(run, fitted)
    temperatures = [values.temperature for values in fitted if values.temperature is not None]
    if not run.record.config.calibrate:
        yield "Probabilities are not calibrated, and no threshold is fitted (--no-calibrate)."
    elif any(value != 1 for value in temperatures):
        yield f"Probabilities are calibrated by a temperature, fitted on held-out rows: {_range(temperatures)}."


def _threshold_sentences(run: ReportedRun, fitted: list[FittedValues]) -> Iterator[str]:
    which = "a row is positive" if run.task == "binary" else "a label is given"
    thresholds = [values.threshold for values in fitted if values.threshold is not None]
    thresholds += [threshold for values in fitted for threshold in values.thresholds or ()]
    if not thresholds:
        return
    if any(threshold != 0.5 for threshold in thresholds):
        # Each of several labels has the threshold of its best F1, for every metric.
        metric = threshold_metric(run.metric) if run.task == "binary" and run.metric in METRICS else "f1"
        yield (
            f"Thresholds are fitted for {metric} on held-out rows: {which} from a probability of {_range(thresholds)} "
            "on. The score of a row never depends on a threshold that was fitted on it; new rows are decided at the "
            "mean of the members' thresholds."
        )
    else:
        yield f"No threshold is fitted: {which} from a probability of 0.5 on."
    for history in run.histories:
        if history.finished is not None and history.finished.note:
            yield f"{history.member}: thresholds stay at one half: {history.finished.note}."


def _submission_sentence(run: ReportedRun) -> str:
    form = run.record.submission
    words = {
        "labels": "labels, decided as above",
        "probabilities": "probabilities, not labels (mlxbert predict --values labels writes labels)",
        "values": "numbers in the target's own unit",
    }[form.values]
    is_written = RunFiles(run.path).submission.is_file()
    columns = ", ".join(form.columns[:5]) + (f" and {len(form.columns) - 5} more" if len(form.columns) > 5 else "")
    what = "submission.csv" if is_written else "A submission of this run"
    return f"{what} holds {words}: {form.id_column}, {columns}."


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
