"""`Examples`: rows to learn from, as a trainer takes them: token ids, targets, and what a series has beside them.

Logits of many rows: batches of similar length through the model, put back in the order of the rows.

`Predictions`: rows' probabilities or numbers, and the thresholds that make labels of them, whoever made them.

Averaging members, scoring out-of-fold rows, blending runs and writing a submission all work on these: what a metric or
a file format needs is derived here, by the competition type alone.

Held-out rows judged: their loss, their predictions calibrated without looking at themselves, their metrics.

Temperature and thresholds are learned from a fold's held-out rows and nothing else. A row's own truth must then have
no say in its label, or the score flatters: the held-out rows are dealt into five parts, and each part is decided by
thresholds that the other four have chosen (cross-fitting). The temperature is one number of all of them: it changes no
order, and a temperature a part would mix scales, so that a model that knows nothing scored below one half on few rows.
What a model is saved with is learned from all held-out rows.

`HeldOut`: a fold's held-out rows, and how a model does on them.
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
from mlxbert.data.batching import PredictionBatches
from mlxbert.data.token_rows import TokenRows
from mlxbert.errors import MLXBertError
from mlxbert.with_head import BertWithHead


@dataclass(frozen=True, eq=False)
class Examples:
    """N rows.

    Attributes:
        tokens: N rows of ids.
        targets: N, in the user's own values, as `Head.fit_targets` and `encode_targets` take them.
        windows: of a time series: history and times of each row.
        names: N, what messages call the rows: ids, or their numbers in the data; None: their numbers here.
    """

    tokens: TokenRows
    targets: np.ndarray
    windows: Windows | None = None
    names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def sha256(self) -> str:
        """Of ids, types, targets, histories and times: a resumed run compares it before it goes on."""
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
        """What `Head.from_targets` and `fit_targets` need beside these rows' targets."""
        return {} if self.windows is None else {"known_at": self.windows.known_at[rows]}

    def judging(self, rows: np.ndarray) -> dict[str, Any]:
        """What `Head.calibrate` needs beside these held-out rows' logits and targets."""
        return {} if self.windows is None else {"made_at": self.windows.made_at[rows]}

    def extra_inputs(self, head: Head) -> dict[str, mx.array]:
        """The head's inputs beside the text, N rows of each; scaled as this fold's head scales."""
        made: Any = getattr(head, "inputs", None)
        if self.windows is None or made is None or not head.extra_inputs:
            return {}
        history = self.windows.history if getattr(head, "window", 0) else None
        arrays: dict[str, mx.array] = made(history=history, made_at=self.windows.made_at)
        return arrays


def predict_logits(
    model: BertWithHead,
    tokens: TokenRows,
    rows: np.ndarray | None = None,
    *,
    batch_size: int,
    lengths: Sequence[int] | None = None,
    extra: Mapping[str, mx.array] | None = None,
) -> np.ndarray:
    """Logits (n, outputs), float32, in evaluation mode; the model's mode is as it was afterwards.

    Args:
        model: encoder, pooling and head.
        tokens: N rows.
        rows: numbers of the n rows wanted; None: all.
        batch_size: rows a batch.
        lengths: that batches are padded to, where they are known already.
        extra: N rows of each of the head's inputs beside the text.

    Raises:
        BatchError: there are no rows.
    """
    batches = PredictionBatches(tokens, rows, batch_size=batch_size, lengths=lengths)
    training = model.training
    model.eval()
    try:
        outputs = []
        for batch in batches:
            chosen = {name: array[mx.array(batch.rows)] for name, array in (extra or {}).items()}
            outputs.append(np.array(model(**batch.inputs(), **chosen)))
        return batches.restore(outputs)
    finally:
        model.train(training)


CLASSES = ("binary", "multiclass", "ordinal")
NUMBERS = ("regression", "time_series")


class PredictionError(MLXBertError):
    """Predictions that cannot be made, or not be put together."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What is predicted for N rows.

    Attributes:
        task: the competition type.
        values: P(positive) (N,) of "binary"; P(class) (N, C) of "multiclass" and "ordinal"; P(label) (N, L) of
            "multilabel"; numbers in the user's units, (N,) or (N, T), of the others.
        thresholds: from which probability on a row counts as positive: (N,) of "binary", (N, L) of "multilabel";
            None: one half.
    """

    task: str
    values: np.ndarray
    thresholds: np.ndarray | None = None

    @classmethod
    def of(cls, task: str, head: Head, logits: Any) -> Predictions:
        """A head's predictions for logits (N, outputs), with its temperature and thresholds."""
        if task in NUMBERS:
            return cls(task, np.asarray(head.predict(logits)))
        values = np.asarray(head.outputs(logits, "probabilities"))
        # Classes are decided by the most probable or the median one; ordinal heads call something else a threshold.
        own = {"binary": "threshold", "multilabel": "thresholds"}.get(task)
        decided = None if own is None else getattr(head, own, None)
        return cls(task, values, None if decided is None else np.broadcast_to(decided, values.shape))

    def __len__(self) -> int:
        return len(self.values)

    def outputs(self, needs: str) -> np.ndarray:
        """What a metric compares with the truth: see `heads.base.Head.outputs`."""
        ranks = self.task == "ordinal" and needs == "values"  # how far off a rating is
        return self.labels() if needs == "labels" or ranks else self.values

    def labels(self) -> np.ndarray:
        """Decided ones: indices of the classes (N,), 0 and 1 (N, L) of "multilabel".

        Raises:
            PredictionError: numbers are no labels, and ranks have no threshold.
        """
        if self.task in NUMBERS:
            raise PredictionError(f"{self.task} predicts numbers, which are no labels; fix: values='values'")
        if self.task == "multiclass":
            return self.values.argmax(axis=1).astype(np.int32)
        if self.task == "ordinal":
            # The median: how many P(y > k) are above one half, as `OrdinalRegressionHead` decides.
            above = 1.0 - np.cumsum(self.values, axis=1)[:, :-1]
            return (above > 0.5).sum(axis=1).astype(np.int32)
        thresholds = 0.5 if self.thresholds is None else self.thresholds
        return (self.values >= thresholds).astype(np.int32)

    def __getitem__(self, rows: Any) -> Predictions:
        """Some of the rows."""
        thresholds = None if self.thresholds is None else self.thresholds[rows]
        return Predictions(self.task, self.values[rows], thresholds)


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """The rows of several, one after the other."""
    thresholds = [part.thresholds for part in parts if part.thresholds is not None]
    return Predictions(
        parts[0].task,
        np.concatenate([part.values for part in parts]),
        np.concatenate(thresholds) if len(thresholds) == len(parts) else None,
    )


def average(parts: Sequence[Predictions], weights: Sequence[float] | np.ndarray | None = None) -> Predictions:
    """The weighted mean of several predictions for the same rows, and of their thresholds.

    Raises:
        PredictionError: they are for other numbers of rows or classes.
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
    """Each column's values as their ranks among the rows, from 0 to 1, equal values at their mean rank; no labels."""
    from scipy.stats import rankdata

    count = len(predictions)
    made = (rankdata(predictions.values, axis=0) - 0.5) / count
    return Predictions(predictions.task, made)


_PARTS = 5


def cross_fitted(
    task: str, head: Head, logits: np.ndarray, targets: np.ndarray, metric: str, calibrated: bool = True
) -> Predictions:
    """Held-out predictions (N rows), each part decided by the other parts; the head is left as it was.

    Args:
        task: the competition type.
        head: of the fold.
        logits: (N, outputs) of the fold's held-out rows.
        targets: N, in the user's own values.
        metric: that is optimized.
        calibrated: False: temperature and thresholds as the head has them.
    """
    if task in NUMBERS or not head.fitted or not calibrated:
        return Predictions.of(task, head, logits)
    with _restored(head):
        calibrate(task, head, logits, targets, metric)
        whole, scale = Predictions.of(task, head, logits), _temperature(head)
    if whole.thresholds is None:
        return whole  # no learned number decides anything
    from scipy.special import expit, logit

    part = _parts(targets)
    thresholds = np.array(whole.thresholds)
    for number in range(_PARTS):
        mine, others = np.flatnonzero(part == number), np.flatnonzero(part != number)
        if len(mine):
            with _restored(head):
                calibrate(task, head, logits[others], targets[others], metric)
                learned = Predictions.of(task, head, logits[mine]).thresholds
                assert learned is not None
                # The same logit decides, at whichever temperature its probability is told.
                thresholds[mine] = expit(logit(learned) * (_temperature(head) / scale))
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
    """Learn temperature and thresholds; why they stay as they are, or None where they were learned.

    Held-out rows of one class teach nothing: that is no reason to lose the training.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ThresholdWarning)
            # One label of many is judged by F1, whatever the metric over all of them.
            own = threshold_metric(metric) if task == "binary" else None
            head.calibrate(logits, targets, metric=own, **(options or {}))
    except HeadError as error:
        return str(error)
    return None


def scores(truth: np.ndarray, predictions: Predictions, metrics: Sequence[str]) -> dict[str, float]:
    """Metric name -> value (nan where it is undefined); `truth` as `Head.metric_targets` gives it."""
    made = {}
    with warnings.catch_warnings():
        # nan says it; a warning at every evaluation of every fold would bury what else is said.
        warnings.simplefilter("ignore", MetricUndefinedWarning)
        for name in metrics:
            metric = METRICS[name]
            made[name] = float(metric.function(truth, predictions.outputs(metric.needs)))
    return made


def row_losses(truth: np.ndarray, predictions: Predictions) -> np.ndarray:
    """How wrong each row is, (N,): −log P(truth), its mean over known labels, or the mean |error|."""
    values = predictions.values
    if predictions.task in NUMBERS:
        return np.abs(values - truth).reshape(len(values), -1).mean(axis=1)
    tiny = np.finfo(np.float64).tiny
    if predictions.task in ("multiclass", "ordinal"):
        return -np.log(np.maximum(values[np.arange(len(values)), truth.astype(int)], tiny))
    right = np.where(truth == 1, values, 1 - values)
    losses = np.where(truth >= 0, -np.log(np.maximum(right, tiny)), 0.0)
    if losses.ndim == 1:
        return losses
    return losses.sum(axis=1) / np.maximum((truth >= 0).sum(axis=1), 1)


def _parts(targets: np.ndarray) -> np.ndarray:
    """The part of each row, (N,); classes are spread over them."""
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
    saved = {name: getattr(head, name) for name in head.fitted}
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(head, name, value)


class HeldOut:
    """Judges `model`, with the weights that it has at the moment, on some rows."""

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
    ):
        """Take over the rows.

        Args:
            model: whose head is fitted to the training rows' targets.
            examples: of which `rows` are held out.
            rows: their numbers.
            task: the competition type.
            metric: that is optimized.
            metrics: that are told, `metric` among them.
            calibrated: whether temperature and thresholds are learned.
            batch_size: rows a batch.
            lengths: that batches are padded to.
            extra: the head's inputs beside the text, of all examples.
        """
        self.model, self.examples, self.rows = model, examples, rows
        self.task, self.metric, self.metrics, self.calibrated = task, metric, tuple(metrics), calibrated
        self.batch_size, self.lengths, self.extra = batch_size, tuple(lengths), extra
        self._targets = examples.targets[rows]
        self._encoded = model.head.encode_targets(self._targets)
        self._truth = model.head.metric_targets(self._targets)

    def logits(self) -> np.ndarray:
        """(n, outputs), float32, in the order of the rows."""
        return predict_logits(
            self.model,
            self.examples.tokens,
            self.rows,
            batch_size=self.batch_size,
            lengths=self.lengths,
            extra=self.extra,
        )

    def loss(self, logits: np.ndarray) -> float:
        """The mean over all rows."""
        return float(np.array(self.model.loss(mx.array(logits), self._encoded)))

    def predictions(self, logits: np.ndarray) -> Predictions:
        """Cross-fitted: `mlxbert.training.held_out` says why."""
        return cross_fitted(self.task, self.model.head, logits, self._targets, self.metric, calibrated=self.calibrated)

    def scores(self, predictions: Predictions) -> dict[str, float]:
        """Metric name -> value."""
        return scores(self._truth, predictions, self.metrics)

    def calibrate(self, logits: np.ndarray) -> str | None:
        """Have the head learn temperature and thresholds, where it should; else why it could not."""
        if not self.calibrated:
            return None
        options = self.examples.judging(self.rows)
        return calibrate(self.task, self.model.head, logits, self._targets, self.metric, options)
