"""The report as one HTML page with nothing outside it: plots inside as PNGs, for a light and a dark screen."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from mlxbert.errors import escaped_value
from mlxbert.report.classification_plots import class_plots, label_plots
from mlxbert.report.curves import arrow, curve_plots
from mlxbert.report.decisions import decisions
from mlxbert.report.facts import sections
from mlxbert.report.figures import DARK, LIGHT, Plot, render
from mlxbert.report.forecast_plots import forecast_plots
from mlxbert.report.predictions import (
    ClassPredictions,
    LabelPredictions,
    NumberPredictions,
    Predictions,
    read_predictions,
)
from mlxbert.report.regression_plots import number_plots
from mlxbert.report.run_files import ReportedRun
from mlxbert.report.tables import (
    column,
    evaluation_table,
    origin_table,
    point_tables,
    prediction_table,
    score_table,
)
from mlxbert.report.worst_rows import worst_rows
from mlxbert.runs.command import repeating_command

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
