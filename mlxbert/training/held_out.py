"""`Examples`, the rows of a training; `Predictions` for rows; and `HeldOut`, the evaluation on a fold's held-out rows.

Averages of members, scores of out-of-fold rows, blends of runs and submissions all work on `Predictions`: it derives
what a metric or a file format needs from the competition type alone.

Temperature and thresholds are learned from a fold's held-out rows only. The truth of a row must not influence its own
label, or the score is too high. So the held-out rows are dealt into five parts, and each part gets the thresholds that
the other four have chosen (cross-fitting). The temperature is one number for all parts: it does not change the order
of rows, and one for each part would mix scales, so that a model without knowledge scores below one half on few rows. A
saved model has the temperature and thresholds of all held-out rows.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from heads.base import Head
from heads.calibration import threshold_metric
from heads.errors import HeadError, MetricUndefinedWarning
from heads.forward_chaining import Windows
from heads.metrics import METRICS
from heads.multilabel import ThresholdWarning
from mlxbert.data.tokens import PredictionBatches, TokenRows
from mlxbert.errors import MLXBertError
from mlxbert.training.parallel import World
from mlxbert.with_head import BertWithHead

NUMBERS = ("regression", "time_series")
"""The competition types that predict numbers."""


@dataclass(frozen=True, eq=False)
class Examples:
    """N rows to learn from or to evaluate on.

    Attributes:
        tokens: N rows of ids.
        targets: N, in the user's own values, for `Head.fit_targets` and `encode_targets`.
        windows: history and times of each row of a time series.
        names: N, for messages: ids, or row numbers in the data; None: row numbers here.
    """

    tokens: TokenRows
    targets: np.ndarray
    windows: Windows | None = None
    names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def sha256(self) -> str:
        """Return a digest of ids, types, targets, histories and times; a resumed run compares it."""
        digest = hashlib.sha256()
        tokens = self.tokens
        parts = [tokens.ids, tokens.type_ids, tokens.starts, self.targets]
        if self.windows is not None:
            parts += [self.windows.history, self.windows.made_at, self.windows.known_at]
        for part in parts:
            data = repr(part.tolist()).encode() if part.dtype.kind in "OUM" else np.ascontiguousarray(part).tobytes()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def fitting(self, rows: np.ndarray) -> dict[str, Any]:
        """Return the arguments of `Head.from_targets` and `fit_targets` beside these rows' targets."""
        return {} if self.windows is None else {"known_at": self.windows.known_at[rows]}

    def calibrating(self, rows: np.ndarray) -> dict[str, Any]:
        """Return the arguments of `Head.calibrate` beside these held-out rows' logits and targets."""
        return {} if self.windows is None else {"made_at": self.windows.made_at[rows]}

    def extra_inputs(self, head: Head) -> dict[str, mx.array]:
        """Return the head's inputs beside the text, N rows of each, scaled by this fold's head."""
        inputs: Any = getattr(head, "inputs", None)
        if self.windows is None or inputs is None or not head.extra_inputs:
            return {}
        history = self.windows.history if getattr(head, "window", 0) else None
        arrays: dict[str, mx.array] = inputs(history=history, made_at=self.windows.made_at)
        return arrays


def predict_logits(
    model: BertWithHead,
    tokens: TokenRows,
    rows: np.ndarray | None = None,
    *,
    batch_size: int,
    lengths: Sequence[int] | None = None,
    extra: Mapping[str, mx.array] | None = None,
    world: World | None = None,
) -> np.ndarray:
    """Return the logits of rows, (n, outputs), float32, in evaluation mode; the model's mode does not change.

    Args:
        model: encoder, pooling and head.
        tokens: N rows.
        rows: numbers of the n rows; None: all.
        batch_size: rows a batch.
        lengths: to which batches are padded, if they are known already.
        extra: N rows of each of the head's inputs beside the text.
        world: the ranks that compute the batches in turn; each returns all logits.

    Raises:
        DataError: there are no rows.
    """
    world = world or World()
    batches = PredictionBatches(tokens, rows, batch_size=batch_size, lengths=lengths)
    training = model.training
    model.eval()
    try:
        outputs = []
        for batch in batches.every(world.size, world.rank):
            world.at("evaluation")
            batch_extra = {name: array[mx.array(batch.rows)] for name, array in (extra or {}).items()}
            outputs.append(np.array(model(**batch.inputs(), **batch_extra)))
        return batches.restore(world.in_turn("logits", outputs, len(batches)))
    finally:
        model.train(training)


class PredictionError(MLXBertError):
    """Predictions that cannot be made, or cannot be combined."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions for N rows.

    Attributes:
        task: the competition type.
        values: P(positive) (N,) of "binary"; P(class) (N, C) of "multiclass" and "ordinal"; P(label) (N, L) of
            "multilabel"; numbers in the user's units, (N,) or (N, T), of the others.
        thresholds: the lowest probability of a positive row: (N,) of "binary", (N, L) of "multilabel"; None: one half.
    """

    task: str
    values: np.ndarray
    thresholds: np.ndarray | None = None

    @classmethod
    def of(cls, task: str, head: Head, logits: Any) -> Predictions:
        """Return a head's predictions for logits (N, outputs), with its temperature and thresholds."""
        if task in NUMBERS:
            return cls(task, np.asarray(head.predict(logits)))
        values = np.asarray(head.outputs(logits, "probabilities"))
        # A class is the most probable or the median one; the thresholds of ordinal heads are something else.
        attribute = {"binary": "threshold", "multilabel": "thresholds"}.get(task)
        thresholds = None if attribute is None else getattr(head, attribute, None)
        return cls(task, values, None if thresholds is None else np.broadcast_to(thresholds, values.shape))

    def __len__(self) -> int:
        return len(self.values)

    def outputs(self, needs: str) -> np.ndarray:
        """Return the values that a metric compares with the truth: see `heads.base.Head.outputs`."""
        is_distance = self.task == "ordinal" and needs == "values"  # between ratings
        return self.labels() if needs == "labels" or is_distance else self.values

    def labels(self) -> np.ndarray:
        """Return the decided labels: indices of the classes (N,), 0 and 1 (N, L) of "multilabel".

        Raises:
            PredictionError: the predictions are numbers.
        """
        if self.task in NUMBERS:
            raise PredictionError(f"{self.task} predicts numbers, which are no labels; fix: values='values'")
        if self.task == "multiclass":
            return self.values.argmax(axis=1).astype(np.int32)
        if self.task == "ordinal":
            # The median, as in `OrdinalRegressionHead`: the number of P(y > k) above one half.
            above = 1.0 - np.cumsum(self.values, axis=1)[:, :-1]
            return (above > 0.5).sum(axis=1).astype(np.int32)
        thresholds = 0.5 if self.thresholds is None else self.thresholds
        return (self.values >= thresholds).astype(np.int32)

    def __getitem__(self, rows: Any) -> Predictions:
        """Return some of the rows."""
        thresholds = None if self.thresholds is None else self.thresholds[rows]
        return Predictions(self.task, self.values[rows], thresholds)


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Return the rows of several predictions, one after the other."""
    thresholds = [part.thresholds for part in parts if part.thresholds is not None]
    return Predictions(
        parts[0].task,
        np.concatenate([part.values for part in parts]),
        np.concatenate(thresholds) if len(thresholds) == len(parts) else None,
    )


def average(parts: Sequence[Predictions], weights: Sequence[float] | np.ndarray | None = None) -> Predictions:
    """Return the weighted mean of several predictions for the same rows, and of their thresholds.

    Raises:
        PredictionError: their numbers of rows or classes differ.
    """
    if len({(part.task, part.values.shape) for part in parts}) > 1:
        shapes = " and ".join(sorted({f"{part.task} {part.values.shape}" for part in parts}))
        raise PredictionError(f"predictions of {shapes} cannot be averaged; fix: the same rows and classes")
    if len(parts) == 1:
        return parts[0]
    shares = np.full(len(parts), 1 / len(parts)) if weights is None else np.asarray(weights, np.float64)
    values = sum(share * part.values for share, part in zip(shares, parts, strict=True))
    thresholds = None
    if all(part.thresholds is not None for part in parts):
        thresholds = sum(share * part.thresholds for share, part in zip(shares, parts, strict=True))
    return Predictions(parts[0].task, np.asarray(values), None if thresholds is None else np.asarray(thresholds))


def ranks(predictions: Predictions) -> Predictions:
    """Return each column's values as ranks among the rows, from 0 to 1; equal values have their mean rank."""
    from scipy.stats import rankdata

    values = (rankdata(predictions.values, axis=0) - 0.5) / len(predictions)
    return Predictions(predictions.task, values)


class HeldOut:
    """Evaluates `model`, with its current weights, on some rows."""

    def __init__(
        self,
        model: BertWithHead,
        examples: Examples,
        rows: np.ndarray,
        *,
        task: str,
        metric: str,
        metrics: Sequence[str],
        calibrated: bool,
        batch_size: int,
        lengths: Sequence[int],
        extra: Mapping[str, mx.array],
        world: World | None = None,
    ):
        """Encode the targets of the held-out rows.

        Args:
            model: with a head that is fitted to the training rows' targets.
            examples: all rows.
            rows: numbers of the held-out rows.
            task: the competition type.
            metric: that is optimized.
            metrics: that are reported, `metric` among them.
            calibrated: whether temperature and thresholds are learned.
            batch_size: rows a batch.
            lengths: to which batches are padded.
            extra: the head's inputs beside the text, of all examples.
            world: the ranks that evaluate together.
        """
        self.model, self.examples, self.rows = model, examples, rows
        self.task, self.metric, self.metrics, self.calibrated = task, metric, tuple(metrics), calibrated
        self.batch_size, self.lengths, self.extra = batch_size, tuple(lengths), extra
        self.world = world
        self._targets = examples.targets[rows]
        self._encoded = model.head.encode_targets(self._targets)
        self._truth = model.head.metric_targets(self._targets)

    def logits(self) -> np.ndarray:
        """Return the logits, (n, outputs), float32, in the order of the rows."""
        return predict_logits(
            self.model,
            self.examples.tokens,
            self.rows,
            batch_size=self.batch_size,
            lengths=self.lengths,
            extra=self.extra,
            world=self.world,
        )

    def loss(self, logits: np.ndarray) -> float:
        """Return the mean loss over all rows."""
        return float(np.array(self.model.loss(mx.array(logits), self._encoded)))

    def predictions(self, logits: np.ndarray) -> Predictions:
        """Return the cross-fitted predictions; the docstring of this module has the reason."""
        return cross_fitted(self.task, self.model.head, logits, self._targets, self.metric, calibrated=self.calibrated)

    def scores(self, predictions: Predictions) -> dict[str, float]:
        """Return the value of each metric by name."""
        return scores(self._truth, predictions, self.metrics)

    def calibrate(self, logits: np.ndarray) -> str | None:
        """Let the head learn temperature and thresholds, if wanted; return the reason if it could not."""
        if not self.calibrated:
            return None
        options = self.examples.calibrating(self.rows)
        return calibrate(self.task, self.model.head, logits, self._targets, self.metric, options)


_PARTS = 5


def cross_fitted(
    task: str, head: Head, logits: np.ndarray, targets: np.ndarray, metric: str, calibrated: bool = True
) -> Predictions:
    """Return predictions of N held-out rows, each part with the thresholds of the others; the head does not change.

    Args:
        task: the competition type.
        head: of the fold.
        logits: (N, outputs) of the fold's held-out rows.
        targets: N, in the user's own values.
        metric: that is optimized.
        calibrated: False: use the head's temperature and thresholds.
    """
    if task in NUMBERS or not head.fitted or not calibrated:
        return Predictions.of(task, head, logits)
    with _restored(head):
        calibrate(task, head, logits, targets, metric)
        whole, scale = Predictions.of(task, head, logits), _temperature(head)
    if whole.thresholds is None:
        return whole  # no learned number decides a label
    from scipy.special import expit, logit

    part = _parts(targets)
    thresholds = np.array(whole.thresholds)
    for number in range(_PARTS):
        rows, others = np.flatnonzero(part == number), np.flatnonzero(part != number)
        if len(rows):
            with _restored(head):
                calibrate(task, head, logits[others], targets[others], metric)
                learned = Predictions.of(task, head, logits[rows]).thresholds
                assert learned is not None
                # The same logit decides; only the temperature of its probability changes.
                thresholds[rows] = expit(logit(learned) * (_temperature(head) / scale))
    return Predictions(task, whole.values, thresholds)


def _temperature(head: Head) -> float:
    return float(getattr(head, "temperature", 1.0))


def calibrate(
    task: str,
    head: Head,
    logits: np.ndarray,
    targets: np.ndarray,
    metric: str,
    options: Mapping[str, Any] | None = None,
) -> str | None:
    """Let the head learn temperature and thresholds; return the reason if it cannot.

    Held-out rows of one class teach nothing, and the training must not fail for that.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ThresholdWarning)
            # The threshold of one label of many is chosen by F1, whatever the metric over all labels.
            chosen_by = threshold_metric(metric) if task == "binary" else None
            head.calibrate(logits, targets, metric=chosen_by, **(options or {}))
    except HeadError as error:
        return str(error)
    return None


def scores(truth: np.ndarray, predictions: Predictions, metrics: Sequence[str]) -> dict[str, float]:
    """Return the value of each metric by name, nan if it is undefined; `truth` is from `Head.metric_targets`."""
    values = {}
    with warnings.catch_warnings():
        # nan is enough: a warning at every evaluation of every fold would hide other warnings.
        warnings.simplefilter("ignore", MetricUndefinedWarning)
        for name in metrics:
            metric = METRICS[name]
            values[name] = float(metric.function(truth, predictions.outputs(metric.needs)))
    return values


def row_losses(truth: np.ndarray, predictions: Predictions) -> np.ndarray:
    """Return the loss of each row, (N,): −log P(truth), its mean over known labels, or the mean |error|."""
    values = predictions.values
    if predictions.task in NUMBERS:
        return np.abs(values - truth).reshape(len(values), -1).mean(axis=1)
    tiny = np.finfo(np.float64).tiny
    if predictions.task in ("multiclass", "ordinal"):
        return -np.log(np.maximum(values[np.arange(len(values)), truth.astype(int)], tiny))
    of_truth = np.where(truth == 1, values, 1 - values)
    losses = np.where(truth >= 0, -np.log(np.maximum(of_truth, tiny)), 0.0)
    if losses.ndim == 1:
        return losses
    return losses.sum(axis=1) / np.maximum((truth >= 0).sum(axis=1), 1)


def _parts(targets: np.ndarray) -> np.ndarray:
    """Return the part of each row, (N,); each class is spread over the parts."""
    rng = np.random.default_rng(len(targets))
    order = rng.permutation(len(targets))
    if targets.ndim == 1:
        _, codes = np.unique(targets.astype(str) if targets.dtype == object else targets, return_inverse=True)
        order = order[np.argsort(codes[order], kind="stable")]
    part = np.empty(len(targets), np.int64)
    part[order] = np.arange(len(targets)) % _PARTS
    return part


@contextmanager
def _restored(head: Head) -> Iterator[None]:
    """Restore the head's temperature and thresholds afterwards."""
    saved = {name: getattr(head, name) for name in head.fitted}
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(head, name, value)
