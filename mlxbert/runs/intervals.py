"""Prediction intervals of numbers: widths by Monte-Carlo dropout, levels calibrated on rows that no model saw.

The width at a row follows from passes with dropout (`BertWithHead.sample`, `RegressionHead.mc_interval`): their
variance, plus the noise that they do not explain (`calibrate_mc`, fitted on held-out rows and saved with the head).

That assumes a normal distribution, which errors seldom have. So every model also keeps which share of its held-out
rows lies inside at each nominal level. A prediction then takes the nominal level at which the asked share of all
models' held-out rows was inside (Kuleshov et al. 2018, https://arxiv.org/abs/1807.00263).

The interval of several models lies around their mean and has the mean of their widths. The mean of the models errs
less than one model, so it rather covers more rows than promised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from heads.errors import HeadError
from heads.regression import RegressionHead
from mlxbert.data.tokens import PredictionBatches, TokenRows
from mlxbert.files.safetensors import read_array_file
from mlxbert.runs.files import RunError, RunFiles
from mlxbert.training.gradients import seed_of
from mlxbert.training.held_out import HeldOut, Predictions
from mlxbert.with_head import BertWithHead

# Passes with dropout over the rows that are predicted.
PASSES = 30
# A few numbers are fitted: few rows and passes suffice, and the training hardly takes longer.
CALIBRATION_PASSES, CALIBRATION_ROWS = 8, 256
# Half widths at which the share of rows inside is kept, in standard deviations of a normal distribution.
_WIDTHS = np.linspace(0.05, 6, 120)
COVERAGE = "coverage"


def calibrate_intervals(
    model: BertWithHead, held_out: HeldOut, logits: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Fit the noise of the head's intervals on some of the held-out rows; `logits` are those without dropout.

    Returns:
        "coverage": the share of these rows inside, at each nominal level; nothing for a head without intervals.
    """
    head = model.head
    if not isinstance(head, RegressionHead):
        return {}
    count = min(CALIBRATION_ROWS, len(held_out.rows))
    places = np.unique(np.linspace(0, len(held_out.rows) - 1, count).astype(np.int64))
    rows, examples = held_out.rows[places], held_out.examples
    targets = examples.targets[rows]
    with _random_stream(seed):
        sampled = _sampled_logits(
            model,
            examples.tokens,
            rows,
            passes=CALIBRATION_PASSES,
            batch_size=held_out.batch_size,
            extra=held_out.extra,
        )
    try:
        head.calibrate_mc(sampled, targets, **examples.calibrating(rows))
    except HeadError:  # such rows teach nothing, which is no reason to lose the training
        return {}
    predictions, truth = np.asarray(head.predict(logits[places])), head.metric_targets(targets)
    ends = [_ends(head, predictions, sampled, level) for level in _levels()]
    return {COVERAGE: np.array([((lower <= truth) & (truth <= upper)).mean() for lower, upper in ends])}


def nominal_level(files: RunFiles, members: Sequence[str], level: float) -> float:
    """Return the nominal level at which a share of `level` of the held-out rows of all models was inside.

    Raises:
        RunError: a model was not calibrated for intervals.
    """
    coverages = []
    for member in members:
        coverage = (read_array_file(files.logits(member), RunError, fix="fix: train again") or {}).get(COVERAGE)
        if coverage is None or coverage.shape != _WIDTHS.shape or not np.isfinite(coverage).all():
            raise RunError(
                f"{files.member(member)} has no calibrated intervals (it was trained by an older mlxbert, or with "
                "--no-calibrate); fix: train the run again"
            )
        coverages.append(coverage)
    return float(np.interp(level, np.maximum.accumulate(np.mean(coverages, axis=0)), _levels()))


def interval_ends(
    model: BertWithHead,
    predictions: Predictions,
    tokens: TokenRows,
    level: float,
    *,
    batch_size: int,
    extra: Mapping[str, mx.array] | None = None,
) -> tuple[Predictions, Predictions]:
    """Return the lower and the upper ends of one model's intervals at a nominal level.

    Args:
        model: of a regression or a time series.
        predictions: of the rows, without dropout.
        tokens: the rows.
        level: as `nominal_level` gives it.
        batch_size: rows of a batch.
        extra: inputs of the head beside the text.
    """
    head: Any = model.head
    with _random_stream(0):
        sampled = _sampled_logits(model, tokens, None, passes=PASSES, batch_size=batch_size, extra=extra)
    lower, upper = _ends(head, predictions.values, sampled, level)
    return Predictions(predictions.task, lower), Predictions(predictions.task, upper)


def _levels() -> np.ndarray:
    """The nominal level of each of `_WIDTHS`."""
    from scipy.special import erf

    levels: np.ndarray = erf(_WIDTHS / np.sqrt(2))
    return levels


def _ends(head: RegressionHead, predictions: np.ndarray, sampled: np.ndarray, level: float) -> tuple[Any, Any]:
    """The ends of the intervals around the predictions: the mean of the passes lies elsewhere than these."""
    interval = head.mc_interval(sampled, float(level))
    below, above = interval.value - interval.lower, interval.upper - interval.value
    return predictions - below.reshape(predictions.shape), predictions + above.reshape(predictions.shape)


def _sampled_logits(
    model: BertWithHead,
    tokens: TokenRows,
    rows: np.ndarray | None,
    *,
    passes: int,
    batch_size: int,
    extra: Mapping[str, mx.array] | None,
) -> np.ndarray:
    """Logits (passes, n, outputs) with dropout on, in the order of the rows."""
    batches = PredictionBatches(tokens, rows, batch_size=batch_size)
    outputs = []
    for batch in batches:
        chosen = {name: array[mx.array(batch.rows)] for name, array in (extra or {}).items()}
        sampled = model.sample(**batch.inputs(), samples=passes, **chosen)  # (S, B, outputs)
        outputs.append(np.array(sampled).transpose(1, 0, 2))
    return batches.restore(outputs).transpose(1, 0, 2)


@contextmanager
def _random_stream(seed: int) -> Iterator[None]:
    """Within this, MLX's random numbers begin at `seed`; afterwards they go on as if nothing had been."""
    state: Any = mx.random.state
    before = seed_of(state[0].tolist())
    mx.random.seed(seed)
    try:
        yield
    finally:
        mx.random.seed(before)
