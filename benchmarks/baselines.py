"""The models that a fine-tuning is compared with: from rows to learn from to predictions for others, nothing tuned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

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


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """(N, classes) probabilities of someone who is sure."""
    return np.eye(classes)[labels]


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
