"""What the page says of a run's settings and of where it came from, flattened to names and values.

The report as one HTML page with nothing outside it: plots inside as PNGs, for a light and a dark screen.

The report's files: what may be overwritten, and each written whole or not at all.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mlxbert.errors import escaped_value
from mlxbert.files.output_file import replace_file
from mlxbert.files.reading import expand_home
from mlxbert.report.classification_plots import class_plots, label_plots
from mlxbert.report.curves import arrow, curve_plots, decisions
from mlxbert.report.figures import DARK, LIGHT, Plot, render
from mlxbert.report.predictions import (
    ClassPredictions,
    LabelPredictions,
    NumberPredictions,
    Predictions,
    ReportedRun,
    ReportError,
    read_predictions,
    read_run,
)
from mlxbert.report.regression_plots import forecast_plots, number_plots
from mlxbert.report.tables import (
    column,
    evaluation_table,
    origin_table,
    point_tables,
    prediction_table,
    score_table,
    worst_rows,
)
from mlxbert.runs.command import repeating_command
from mlxbert.runs.files import check_own

# run.json's parts, in reading order, and what the page calls them; what else it holds follows under its own name.
SECTIONS = {
    "task": "Task",
    "data": "Data",
    "model": "Model",
    "config": "Training",
    "folds": "Folds",
    "submission": "Submission",
    "environment": "Environment",
}
# Said in the page's head or in its own table.
SAID = {"format", "version", "metric", "metrics", "members"}


def sections(run: ReportedRun) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, [(name, value)]) of everything in run.json."""
    rest = {name: value for name, value in run.record.values.items() if name not in SECTIONS and name not in SAID}
    made = [("Run", list(_flat(rest)))]
    made += [(title, list(_flat(run.record.values.get(name)))) for name, title in SECTIONS.items()]
    return [(title, facts) for title, facts in made if facts]


def _flat(values: Any) -> Iterator[tuple[str, str]]:
    for name, value in values.items() if isinstance(values, dict) else ():
        if value not in (None, [], {}):
            yield name, _words(value)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_words(part)}" for name, part in value.items() if part is not None)
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return str(value)


# In the page's head, so that another file is never taken for a report and overwritten.
MARK = '<meta name="generator" content="mlxbert report">'


@dataclass(frozen=True)
class Drawn:
    """A plot and its PNGs."""

    plot: Plot
    light: bytes
    dark: bytes

    @property
    def light_url(self) -> str:
        """As a data URL."""
        return _data_url(self.light)

    @property
    def dark_url(self) -> str:
        """As a data URL."""
        return _data_url(self.dark)


@dataclass(frozen=True)
class Page:
    """The page's text, and its plots for a light screen: name -> PNG."""

    html: str
    plots: dict[str, bytes]


def make_page(run: ReportedRun) -> Page:
    """The page of a run; the same files give the same bytes.

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
        unit="forecasts" if run.task == "time_series" else "rows",
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


def _prediction_plots(made: Predictions, task: str) -> list[Plot]:
    if isinstance(made, ClassPredictions):
        return class_plots(made, task)
    if isinstance(made, LabelPredictions):
        return label_plots(made)
    return [*(forecast_plots(made) if made.origins is not None else []), *number_plots(made)]


def _draw(plots: Sequence[Plot]) -> list[Drawn]:
    return [Drawn(plot, render(plot, LIGHT), render(plot, DARK)) for plot in plots]


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _tiles(run: ReportedRun) -> list[tuple[str, str, str]]:
    """(what, value, of what) in the page's head."""
    tiles: list[tuple[str, str, str]] = []
    name = f"{run.metric} {arrow(run.metric)}".strip()
    own = [member.metrics[run.metric] for member in run.finished if run.metric in member.metrics]
    scores = run.scores
    if scores is not None and run.metric in scores.pooled:
        unit = "forecasts" if run.task == "time_series" else "rows"
        rows = f"{len(run.oof.lines):,} {unit}" if run.oof is not None else f"all {unit}"
        tiles.append((name, column([scores.pooled[run.metric]])[0], f"pooled: {rows}, out of fold"))
    spread = scores.spread.get(run.metric) if scores is not None and len(scores.members) > 1 else None
    if spread is not None:
        mean, deviation = column([spread.mean, spread.std])
        words = f"mean ± standard deviation of {len(own)} members"
        tiles.append((f"{name} per member", f"{mean} ± {deviation}", words))
    elif own and scores is None:
        words = "the finished member" if len(own) == 1 else f"{len(own)} finished members, lowest and highest"
        values = column([min(own), max(own)] if len(own) > 1 else own)
        tiles.append((f"{name} so far", " to ".join(values), words))
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


def shown_score(run: ReportedRun) -> str:
    """ "f1 0.7912 pooled", or how far the run is; for a terminal."""
    scores = run.scores
    if scores is None:
        return f"unfinished: {len(run.finished)} of {len(run.record.members)} members trained"
    if run.metric not in scores.pooled:
        return f"{len(run.finished)} members"
    return f"{len(run.finished)} members, {run.metric} {column([scores.pooled[run.metric]])[0]} pooled"


HEAD_BYTES = 1000  # the mark is in the page's first lines


@dataclass(frozen=True)
class Written:
    """A written report: the page's path, the folder of its plots and how many there are, and the run."""

    page: Path
    folder: Path
    plots: int
    run: ReportedRun


def write(run_directory: str | Path, out: str | Path | None, plots: str | Path | None) -> Written:
    """`mlxbert.report.write_report`, and what a command says of it."""
    run = read_run(run_directory)
    path, folder = report_paths(run.path, out, plots)
    page = make_page(run)
    write_page(page, path, folder, follow_links=out is not None)
    return Written(path, folder, len(page.plots), run)


def report_paths(run: Path, out: str | Path | None, plots: str | Path | None) -> tuple[Path, Path]:
    """Where the page and the folder of plots go.

    Raises:
        ReportError: a folder where the page should be, a file where the plots should, or a file that is no report.
    """
    page = run / "report.html" if out is None else expand_home(out)
    folder = run / "plots" if plots is None else expand_home(plots)
    for own in (page if out is None else None, folder if plots is None else None):
        if own is not None:
            check_own(own)
    if page.is_dir():
        raise ReportError(f"{page}: a directory; fix: name a file, -o {page / 'report.html'}")
    if page.is_file() and MARK.encode() not in _head(page):
        raise ReportError(f"{page}: exists, and is no report; it is left alone; fix: give another file with -o")
    if folder.exists() and not folder.is_dir():
        raise ReportError(f"{folder}: a file, not a directory; fix: give another folder with --plots")
    return page, folder


def write_page(page: Page, path: Path, folder: Path, *, follow_links: bool) -> None:
    """Write the page to `path` and its plots to `folder`/NAME.png, over those of an earlier report.

    Raises:
        WriteError: the disk is full, the place is not writable.
    """
    for name, png in page.plots.items():
        replace_file(folder / f"{name}.png", png, fix="give another folder with --plots", follow_links=False)
    replace_file(path, page.html.encode("utf-8"), follow_links=follow_links)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}; fix: give another file with -o") from None
