"""The ready competitions, from one command to a score on held-out rows, beside honest baselines on the same rows.

    python -m benchmarks.competitions                          # all four: an hour on two cores
    python -m benchmarks.competitions titanic --runs runs      # a finished run in runs/titanic is not trained again

Ours is `mlxbert train --competition NAME DATA --hold-out 0.2`: 20 % of the rows (equal texts on one side) held out of
everything, folds of the rest (five, or as many as the run has), the mean of their models on the held-out rows. A
baseline is fitted on each fold's training rows for the out-of-fold column, and on all rows but the held-out ones for
the last. Nothing of a baseline was tuned; ours keeps the best of its epochs by the out-of-fold metric, which flatters
that column and not the last one. (What is constant in a fold is not so over several: the frequency of a label then
ranks rows, worse than chance would.)

The linear models read the same row texts, as TF-IDF of words and pairs of words (numbers are words there). Gradient
boosting reads the raw columns, but for those of more than 250 different words, such as names.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.baselines import Fit, Rows, boosting, constant, logistic, raw_columns, ridge
from benchmarks.inputs import MissingInputError, converted_minilm, training_file
from benchmarks.machine import machine
from mlxbert.data.folds import folds_sha256
from mlxbert.errors import MLXBertError
from mlxbert.runs import Run, train
from mlxbert.runs.finish import fitted_head
from mlxbert.runs.inputs import read_frame
from mlxbert.runs.prepare import Prepared, prepare
from mlxbert.training.held_out import Predictions, concatenate, scores

NAMES = ("titanic", "house-prices", "jigsaw-toxic", "alexa-stars")
BASELINES: dict[str, dict[str, Fit]] = {
    "titanic": {
        "majority": constant,
        "TF-IDF + logistic regression": logistic,
        "gradient boosting, raw columns": boosting,
    },
    "house-prices": {
        "mean of the logarithms": constant,
        "TF-IDF + ridge": ridge,
        "gradient boosting, raw columns": boosting,
    },
    "jigsaw-toxic": {"each label's frequency": constant, "TF-IDF + logistic regression": logistic},
    "alexa-stars": {"majority": constant, "TF-IDF + logistic regression": logistic, "TF-IDF + ridge, rounded": ridge},
}


def rows_of(run: Run, file: Path) -> tuple[Prepared, Rows, Rows]:
    """What the run was made of again: the rows that it learned from, and those held out of everything.

    Raises:
        SystemExit: the file is not the one that the run was trained on.
    """
    settings, config = run.settings, run.record.config
    frame, _, record = read_frame(file, text=settings.text, id_column=settings.id, encoding=None, kinds=run.kinds)
    if record["sha256"] != run.record.data.sha256:
        raise SystemExit(f"{run.path} was trained on another file than {file}; fix: delete it, or give that file")
    prepared = prepare(frame, settings, config)
    rows, folds = run.record.data.examples_sha256, run.record.folds.sha256
    if (prepared.examples.sha256(), folds_sha256(prepared.folds)) != (rows, folds) or prepared.held_out is None:
        raise SystemExit(f"{run.path} learned from other rows or folds than are made now; fix: delete it")
    head = fitted_head(run.files, run.record.members[0])
    task, log = prepared.problem.task, bool(settings.head.get("log_targets"))
    columns = raw_columns(frame, drop=[*settings.target, *([settings.id] if settings.id else [])])

    def part(texts: Any, numbers: Any, targets: Any) -> Rows:
        truth = np.asarray(head.metric_targets(targets))
        return Rows(task.task, len(task.classes or ()), np.asarray(texts, object), columns.iloc[numbers], truth, log)

    held_out = prepared.held_out
    others = np.setdiff1d(np.arange(len(frame)), prepared.rows)
    asked = part(prepared.problem.text.render(held_out).texts, others, prepared.problem.targets(held_out))
    return prepared, part(prepared.texts, prepared.rows, prepared.examples.targets), asked


def baseline_scores(fit: Fit, prepared: Prepared, learn: Rows, ask: Rows) -> tuple[float, float]:
    """The competition's metric out of fold, and on the held-out rows."""
    metric = prepared.metric.name
    parts = [fit(learn[fold.train], learn[fold.valid]) for fold in prepared.folds]
    order = np.concatenate([fold.valid for fold in prepared.folds])
    folded = concatenate([Predictions(learn.task, part) for part in parts])
    held_out = Predictions(learn.task, fit(learn, ask))
    return scores(learn.truth[order], folded, [metric])[metric], scores(ask.truth, held_out, [metric])[metric]


def finished_run(name: str, file: Path, root: Path, model: Path | None) -> Run:
    """The run in ROOT/NAME, trained now if it is not there."""
    if (root / name / "scores.json").is_file():
        return Run.open(root / name)
    own = root / "minilm"
    checkpoint = model or (own if own.is_dir() else converted_minilm(own))
    return train(file, competition=name, model=checkpoint, hold_out=0.2, out=root / name)


def main(argv: list[str] | None = None) -> None:
    """Train what is not trained, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--runs", type=Path, help="folder of runs, each under its competition's name; kept")
    parser.add_argument("--data", type=Path, help="folder of the competitions' data (default: MLXBERT_DATA)")
    parser.add_argument("--model", type=Path, help="a converted directory (default: the packaged MiniLM, converted)")
    options = parser.parse_args(argv)
    for name in options.names:
        if name not in NAMES:
            parser.error(f"{name!r} is not among {', '.join(NAMES)}")
    table = Table(title="The competition's metric, ours beside baselines on the same rows")
    for column in ("competition", "model"):
        table.add_column(column)
    for column in ("out of fold", "held out"):
        table.add_column(column, justify="right", no_wrap=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.runs or Path(temporary)
        for name in options.names or NAMES:
            try:
                file = training_file(name, options.data)
                run = finished_run(name, file, root, options.model)
            except (MissingInputError, MLXBertError) as error:
                print(f"{name}: skipped: {error}")
                continue
            _add(table, name, run, file)
    Console().print(table)
    print(machine())


def _add(table: Table, name: str, run: Run, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training has said it
        prepared, learn, ask = rows_of(run, file)
    metric, found = prepared.metric, run.scores
    assert found is not None
    better = "higher" if metric.greater_is_better else "lower"
    lines = {"mlxbert": (found["pooled"][metric.name], found["hold_out"]["metrics"][metric.name])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines |= {label: baseline_scores(fit, prepared, learn, ask) for label, fit in BASELINES[name].items()}
    table.add_section()
    about = [
        f"{name}",
        f"{metric.name} ({better} is better)",
        f"{len(learn.truth)} rows + {len(ask.truth)} held out",
        "",
    ]
    for what, (label, (folded, held_out)) in zip(about, lines.items(), strict=False):
        table.add_row(what, label, f"{folded:.4f}", f"{held_out:.4f}")


if __name__ == "__main__":
    main()
