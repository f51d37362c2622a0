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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.inputs import MissingInputError, converted_minilm, training_file
from benchmarks.machine import machine
from mlxbert.errors import MLXBertError
from mlxbert.folds import folds_sha256
from mlxbert.runs import Run, train
from mlxbert.runs.files import read_info
from mlxbert.runs.frames import read_frame
from mlxbert.runs.out_of_fold import fitted_head
from mlxbert.runs.prepare import Prepared, prepare
from mlxbert.training.config import TrainingConfig
from mlxbert.training.judging import scores
from mlxbert.training.predictions import Predictions, concatenate

NAMES = ("titanic", "house-prices", "jigsaw-toxic", "alexa-stars")
_MOST_CATEGORIES = 250  # of 255 that scikit-learn's boosting takes

Fit = Callable[["Rows", "Rows"], np.ndarray]
"""From rows to learn from and rows to predict to the latter's `Predictions.values`."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What a baseline sees of N rows.

    Attributes:
        task: the competition type.
        classes: how many there are; 0 of numbers.
        texts: as the model reads them.
        columns: the raw ones, a pandas frame without target and id.
        truth: as the head's `metric_targets` gives it: class numbers, 0 and 1, or numbers.
        log: whether numbers are learned as log(1 + y).
    """

    task: str
    classes: int
    texts: np.ndarray
    columns: Any
    truth: np.ndarray
    log: bool

    def __getitem__(self, rows: np.ndarray) -> Rows:
        return Rows(self.task, self.classes, self.texts[rows], self.columns.iloc[rows], self.truth[rows], self.log)

    @property
    def numbers(self) -> np.ndarray:
        """What a regression learns."""
        return np.log1p(self.truth) if self.log else self.truth.astype(float)

    def values(self, numbers: np.ndarray) -> np.ndarray:
        """Back from `numbers`."""
        return np.expm1(numbers) if self.log else numbers


def constant(learn: Rows, ask: Rows) -> np.ndarray:
    """The most frequent class, the frequency of each label, or the mean."""
    if learn.task == "regression":
        return np.full(len(ask.truth), learn.values(learn.numbers.mean()))
    if learn.task == "multilabel":
        return np.tile(learn.truth.mean(axis=0), (len(ask.truth), 1))
    most = np.bincount(learn.truth.astype(int)).argmax()
    if learn.task == "binary":
        return np.full(len(ask.truth), float(most))
    return one_hot(np.full(len(ask.truth), most), learn.classes)


def tfidf(learn: Rows, ask: Rows) -> tuple[Any, Any]:
    """Sparse features of both."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    return vectorizer.fit_transform(learn.texts), vectorizer.transform(ask.texts)


def logistic(learn: Rows, ask: Rows) -> np.ndarray:
    """Logistic regression on TF-IDF, classes weighted alike where they are ratings or labels."""
    from sklearn.linear_model import LogisticRegression

    known, asked = tfidf(learn, ask)
    weights = None if learn.task == "binary" else "balanced"

    def fitted(truth: np.ndarray) -> Any:
        return LogisticRegression(max_iter=2000, class_weight=weights).fit(known, truth)

    def positive(truth: np.ndarray) -> np.ndarray:
        if len(np.unique(truth)) == 1:  # a label that all of the rows have, or none: the same for all
            return np.full(len(ask.truth), float(truth[0]))
        return np.asarray(fitted(truth).predict_proba(asked)[:, 1])

    if learn.task == "multilabel":
        return np.stack([positive(column) for column in learn.truth.T], axis=1)
    if learn.task == "binary":
        return positive(learn.truth)
    return one_hot(fitted(learn.truth).predict(asked).astype(int), learn.classes)


def ridge(learn: Rows, ask: Rows) -> np.ndarray:
    """Ridge regression on TF-IDF; ratings are rounded."""
    from sklearn.linear_model import Ridge

    known, asked = tfidf(learn, ask)
    found = Ridge(alpha=1.0).fit(known, learn.numbers).predict(asked)
    if learn.task == "regression":
        return learn.values(found)
    return one_hot(np.clip(np.rint(found), 0, learn.classes - 1).astype(int), learn.classes)


def boosting(learn: Rows, ask: Rows) -> np.ndarray:
    """scikit-learn's histogram gradient boosting on the raw columns, with its defaults."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    options: dict[str, Any] = {"categorical_features": "from_dtype", "random_state": 0}
    if learn.task == "regression":
        regressor = HistGradientBoostingRegressor(**options).fit(learn.columns, learn.numbers)
        return learn.values(regressor.predict(ask.columns))
    classifier = HistGradientBoostingClassifier(**options).fit(learn.columns, learn.truth)
    return np.asarray(classifier.predict_proba(ask.columns)[:, 1])


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


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """(N, classes) probabilities of someone who is sure."""
    return np.eye(classes)[labels]


def rows_of(run: Run, file: Path) -> tuple[Prepared, Rows, Rows]:
    """What the run was made of again: the rows that it learned from, and those held out of everything.

    Raises:
        SystemExit: the file is not the one that the run was trained on.
    """
    settings, config = run.settings, TrainingConfig.make(run.info["config"])
    frame, _, record = read_frame(file, text=settings.text, id_column=settings.id, encoding=None, kinds=run.kinds)
    if record["sha256"] != run.info["data"]["sha256"]:
        raise SystemExit(f"{run.path} was trained on another file than {file}; fix: delete it, or give that file")
    prepared = prepare(frame, settings, config)
    rows, folds = run.info["data"]["examples_sha256"], run.info["folds"]["sha256"]
    if (prepared.examples.sha256(), folds_sha256(prepared.folds)) != (rows, folds) or prepared.held_out is None:
        raise SystemExit(f"{run.path} learned from other rows or folds than are made now; fix: delete it")
    head = fitted_head(run.files, run.info["members"][0])
    task, log = prepared.problem.task, bool(settings.head.get("log_targets"))
    columns = raw_columns(frame, drop=[*settings.target, *([settings.id] if settings.id else [])])

    def part(texts: Any, numbers: Any, targets: Any) -> Rows:
        truth = np.asarray(head.metric_targets(targets))
        return Rows(task.task, len(task.classes or ()), np.asarray(texts, object), columns.iloc[numbers], truth, log)

    held_out = prepared.held_out
    others = np.setdiff1d(np.arange(len(frame)), prepared.rows)
    asked = part(prepared.problem.text.render(held_out).texts, others, prepared.problem.targets(held_out))
    return prepared, part(prepared.texts, prepared.rows, prepared.examples.targets), asked


def raw_columns(frame: Any, drop: list[str]) -> Any:
    """Numbers as they are, words as categories, without columns of too many different words."""
    made = frame.drop(columns=drop)
    for name in made.columns:
        if made[name].dtype.kind not in "iufb":
            made[name] = made[name].astype("category")
    many = [
        name for name in made.columns if made[name].dtype == "category" and made[name].nunique() > _MOST_CATEGORIES
    ]
    return made.drop(columns=many)


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
        return Run(root / name, read_info(root / name))
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
