"""Write the submission of a file, and the command that does it.

The format is that of the sample submission, or the run's own (`mlxbert.data.submission` has the rules). Everything is
checked before anything is predicted, and the output is written whole or not at all.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from converter.export.inference_modules.predictor import Predictor, render, times_in
from converter.export.inference_modules.tables import QUOTINGS, InferenceError, read_columns, read_whole, say
from converter.export.inference_modules.torch_heads import Predictions
from heads.forward_chaining import times_ahead
from mlxbert.data.frames import Table, as_text
from mlxbert.data.submission import (
    IdRules,
    Sample,
    Submission,
    SubmissionRules,
    check_ids,
    prediction_table,
    warn,
    warn_of_fractions,
)
from mlxbert.data.text_columns import id_columns, id_values, is_called_id, warn_of_empty
from mlxbert.errors import MLXBertWarning


@dataclass(frozen=True)
class Task:
    """What is predicted: `task` is its name, `target` its columns, `classes` its labels (None: numbers)."""

    task: str
    target: tuple[str, ...]
    classes: tuple[Any, ...] | None


@dataclass(frozen=True)
class Plan:
    """What is written, known before anything is predicted.

    Attributes:
        ids: of every row of the test file, as text.
        submission: the format; its columns are in the order of the predictions.
        columns: all columns, as they are written.
        order: the ids, as they are written.
        source: the test file's column of ids; None: the rows are numbered.
    """

    ids: list[str]
    submission: Submission
    columns: list[str]
    order: list[str]
    source: str | None


def write_submission(
    predictor: Predictor,
    test: Path,
    out: Path,
    *,
    sample: Path | None = None,
    values: str | None = None,
    id: str | None = None,
    batch_size: int = 32,
) -> Plan:
    """Read `test`, write the submission to `out`, whole or not at all, and return what was written.

    Args:
        predictor: the models.
        test: the file to predict; of a time series its history.
        out: the CSV file.
        sample: a sample submission, whose ids, columns and order the submission has.
        values: "labels", "probabilities" or "values"; None: the sample or the run's metric decides.
        id: the column that names a row; None: the sample's first, the training data's, or one with an id's name.
        batch_size: rows in one call of a model.

    Raises:
        InferenceError: the file cannot be read or written, or ids and columns are not the sample submission's;
            nothing was written.
    """
    with _warnings_on_stderr():
        plan = make_plan(predictor, test, sample=sample, values=values, id=id)
    form = plan.submission
    places = [[form.id_column, *form.columns].index(name) for name in plan.columns]
    try:
        with _output(out) as file, tqdm(desc="Predicting", total=len(plan.ids), unit="row", mininterval=0.5) as bar:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(plan.columns)
            cells = _cells(predictor, test, form, id, batch_size, bar.update)
            lines = ([name, *row] for name, row in zip(plan.ids, cells, strict=True))
            written = ([line[place] for place in places] for line in lines)
            if sample is not None:
                by_id = dict(zip(plan.ids, written, strict=True))
                written = (by_id[name] for name in plan.order)
            writer.writerows(written)
    except OSError as error:
        raise InferenceError(f"{out} cannot be written: {error.strerror or error}; fix: another place") from None
    return plan


def make_plan(
    predictor: Predictor,
    test: Path,
    *,
    sample: Path | None = None,
    values: str | None = None,
    id: str | None = None,
) -> Plan:
    """Return what will be written, checked against the sample submission; arguments as of `write_submission`.

    Raises:
        InferenceError: a file cannot be read, or ids and columns are not the sample's.
    """
    if predictor.text is None:
        raise InferenceError("a model exported without its run knows no column; fix: --text COLUMN")
    settings = predictor.settings
    rules = submission_rules(settings)
    form = rules.form(values)
    given = None if sample is None else _read_sample(sample)
    others: tuple[str, ...] = ()
    if given is not None:
        others = tuple(name for name in given.columns if name not in form.columns) or given.columns
    id_rules = IdRules(id, settings["id"], bool(settings.get("id_found")), settings["time"])
    names: tuple[str, ...] = ()
    if settings["task"] == "time_series":
        column, ids = settings["time"], _future(predictor, test, _kinds(predictor, id))
    else:
        names, column, ids = _ids(predictor, test, id_rules, others)
    if given is None:
        form = id_rules.named(form, names, str(test), column)
        return Plan(ids, form, [form.id_column, *form.columns], ids, column)
    key = id_rules.sample_column(given, names, others, column)
    check_ids(given, key, ids, str(test), column)
    if column is not None and key not in (column, form.id_column):
        warn(f"{sample} calls the ids {key!r}, {test} {column!r}: they are written as {key!r}")
    return Plan(ids, rules.fitted(given, key, values), list(given.columns), given.ids(key), column)


def submission_rules(settings: Mapping[str, Any]) -> SubmissionRules:
    """Return the rules of the format, from `inference.json`."""
    form, classes = settings["submission"], settings["classes"]
    task = Task(settings["task"], tuple(settings["target"]), None if classes is None else tuple(classes))
    return SubmissionRules(
        task=task,  # type: ignore[arg-type]  # InferredTask has more fields, which no rule reads
        usual=Submission(form["id_column"], tuple(form["columns"]), form["values"]),
        metric="the run's metric",
        ready=bool(settings.get("ready")),
        values=settings.get("values"),
        compares=settings.get("wanted"),
        is_named=settings["known_columns"],
    )


def _read_sample(path: Path) -> Sample:
    columns = read_whole(path, {})
    # Separators at the end of every line make a column without name and cells.
    blank = [
        name
        for name, cells in columns.items()
        if name.startswith("Unnamed: ") and all(cell in (None, "") for cell in cells)
    ]
    return Sample(str(path), {name: cells for name, cells in columns.items() if name not in blank})


def _kinds(predictor: Predictor, *ids: str | None) -> dict[str, str]:
    """Return the kinds of columns; a column of ids is read as it is written."""
    settings, text = predictor.settings, predictor.text
    read = () if text is None else text.columns
    named = [name for name in (*ids, settings["id"]) if name is not None]
    named += [name for name in settings["kinds"] if is_called_id(name) and name not in read]
    return {**settings["kinds"], **dict.fromkeys(named, "text")}


def _ids(
    predictor: Predictor, test: Path, rules: IdRules, others: Sequence[str]
) -> tuple[tuple[str, ...], str | None, list[str]]:
    """Return a file's columns, the one that names the rows (None: they are numbered), and the ids.

    The columns of the text are checked on the way.
    """
    text = predictor.text
    assert text is not None
    names: tuple[str, ...] = ()
    column: str | None = None
    kept: dict[str, list[Any]] = {}
    rows = empty = 0
    for chunk in read_columns(test, _kinds(predictor, rules.asked, *others[:1]), predictor.settings.get("quoting")):
        table = Table(chunk, str(test))
        empty += render(text, table, rows)[2]
        if not rows:
            names = tuple(chunk)
            column = rules.column(names, str(test), others)
            called = [name for name in names if is_called_id(name) and name not in text.columns]
            kept = {name: [] for name in ([column] if column is not None else called)}
        for name, values in kept.items():
            values += table.column(name).values if name in chunk else [None] * table.rows
        rows += table.rows
    warn_of_empty(empty, rows, str(test), stacklevel=1)
    if column is None and kept:
        column = next(iter(id_columns(Table(kept, str(test)))), None)
    if column is None:
        return names, None, [str(row) for row in range(rows)]
    ids = id_values(kept, column, str(test))
    if not others:
        warn_of_fractions(ids, column, str(test))
    return names, column, ids


def _future(predictor: Predictor, test: Path, kinds: Mapping[str, str]) -> list[str]:
    """Return what the steps ahead of a series are called: its times go on."""
    table = Table(read_whole(test, kinds, predictor.settings.get("quoting")), str(test))
    horizon, time = predictor.members[0].head["horizon"], predictor.settings["time"]
    if time is None:
        return [str(table.rows - 1 + step) for step in range(1, horizon + 1)]
    return as_written(times_ahead(times_in(table, time), horizon))


def as_written(times: np.ndarray) -> list[str]:
    """Return times as the data write them: dates in their own precision, whole numbers without a fraction."""
    return [str(time) for time in times] if times.dtype.kind == "M" else [str(text) for text in as_text(times)]


def _cells(
    predictor: Predictor,
    test: Path,
    form: Submission,
    id: str | None,
    batch_size: int,
    progress: Callable[[int], object],
) -> Iterator[list[Any]]:
    """Yield the prediction cells of each row, in the order of the form's columns."""
    settings = predictor.settings
    kinds, quoting = _kinds(predictor, id), settings.get("quoting")
    if settings["task"] == "time_series":
        history = read_whole(test, kinds, quoting)
        window = max(predictor.members[0].head["window"], 1)
        last = {name: cells[-window:] for name, cells in history.items()}
        values = predictor.predict(last, batch_size=batch_size).values
        assert values is not None
        progress(values.shape[1])
        yield from ([value] for value in values[-1].tolist())
        return
    rows = 0
    for chunk in read_columns(test, kinds, quoting):
        made = predictor.predict(chunk, batch_size=batch_size, start=rows, progress=progress)
        rows += len(next(iter(chunk.values())))
        yield from cells_of(form, submission_rules(settings), made)


def cells_of(form: Submission, rules: SubmissionRules, predictions: Predictions) -> list[list[Any]]:
    """Return the cells of each row, in the order of the form's columns."""
    if form.values == "labels":
        assert predictions.labels is not None
        if rules.task.task != "multilabel":
            return [[label] for label in predictions.labels]
        return prediction_table(form, rules.task, np.array(predictions.labels)).tolist()
    values = predictions.values if form.values == "values" else predictions.probabilities
    assert values is not None
    return prediction_table(form, rules.task, values).tolist()


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Print the project's warnings, a line each."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, MLXBertWarning):
            say(str(message))
        else:
            usual(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.simplefilter("always", MLXBertWarning)
        warnings.showwarning = show
        yield


@contextmanager
def _output(out: Path) -> Iterator[TextIO]:
    """Open a file that becomes `out` at the end, or the device or pipe that `out` is; a link's file is replaced."""
    if out.exists() and not out.is_file():
        with out.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    real = Path(os.path.realpath(out))
    descriptor, temporary = tempfile.mkstemp(prefix=f".{real.name[:50]}.", dir=real.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(descriptor, real.stat().st_mode & 0o777 if real.exists() else 0o666 & ~umask)
            yield file
        Path(temporary).replace(real)
    finally:
        Path(temporary).unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 written, 2 refused, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="inference.py", description="Predict a file and write the submission.")
    parser.add_argument("test", type=Path, help="CSV, TSV or JSONL; of a time series its history")
    parser.add_argument("-o", "--out", type=Path, default=Path("submission.csv"), help="[default: submission.csv]")
    parser.add_argument("--sample-submission", type=Path, help="file whose ids, columns and order the output has")
    parser.add_argument("--id", help="column that names a row  [default: the sample's first, or the training's]")
    parser.add_argument(
        "--values", choices=("labels", "probabilities", "values"), help="what is written  [default: as the sample has]"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="[default: 32]")
    parser.add_argument("--device", help="cpu or cuda  [default: cuda where there is one]")
    parser.add_argument("--quoting", choices=[*QUOTINGS], help="of a text table  [default: as the training file's]")
    parser.add_argument("--text", help="the column to read, for a model exported without its run")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error(f"--batch-size must be 1 or more, not {options.batch_size}")
    try:
        predictor = Predictor(device=options.device, text=options.text)
        if options.quoting:
            predictor.settings["quoting"] = options.quoting
        plan = write_submission(
            predictor,
            options.test,
            options.out,
            sample=options.sample_submission,
            values=options.values,
            id=options.id,
            batch_size=options.batch_size,
        )
    except InferenceError as error:
        say(_one_line(error), "error: ")
        return 2
    except KeyboardInterrupt:
        print("inference.py: interrupted; nothing was written", file=sys.stderr)
        return 130
    ids = "rows numbered from 0" if plan.source is None else f"ids from {plan.source!r}"
    print(f"Written   {options.out}: {len(plan.ids)} rows of {plan.submission.values}, {ids}")
    return 0


def _one_line(error: InferenceError) -> str:
    """Return a message in one line, the names that it lists in parentheses: (missing: a, b; not in sample.csv: c)."""
    first, *listed = [line.strip() for line in str(error).splitlines()]
    if not listed:
        return first
    names = ", ".join(listed).replace(":, ", ": ")
    for title in [line for line in listed[1:] if line.endswith(":")]:
        names = names.replace(f", {title}", f"; {title}")
    return f"{first} ({names})"
