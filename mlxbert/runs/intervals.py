"""Prediction intervals of numbers by Monte-Carlo dropout, calibrated on rows that a model did not see.

When a model is trained, some passes with dropout over a part of its held-out rows fit the noise that dropout does not
explain (`RegressionHead.calibrate_mc`); the head is saved with it. A prediction then takes passes with dropout over
the new rows, and `RegressionHead.mc_interval` adds both variances.

An interval of several models has the mean of their lower ends and the mean of their upper ends (the average of
quantiles: Ratcliff 1979, "Group reaction time distributions"). Each model's interval covers its own held-out rows. The
mean of the models errs less than one model, so the interval of the mean rather covers more rows than promised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from heads.errors import HeadError
from heads.regression import RegressionHead
from mlxbert.data.batching import PredictionBatches
from mlxbert.data.token_rows import TokenRows
from mlxbert.runs.files import RunError
from mlxbert.training.gradients import seed_of
from mlxbert.training.held_out import HeldOut, Predictions
from mlxbert.with_head import BertWithHead

# Passes with dropout over the rows that are predicted.
PASSES = 30
# The noise is one number: it needs few rows and few passes, and the training hardly takes longer.
CALIBRATION_PASSES, CALIBRATION_ROWS = 8, 256


def calibrate_intervals(model: BertWithHead, held_out: HeldOut, seed: int) -> None:
    """Let the head learn the noise of its intervals from some of the held-out rows.

    A head without intervals stays as it is, and one whose held-out rows do not fit (`Head.calibrate` refuses them
    too).
    """
    if not isinstance(model.head, RegressionHead):
        return
    count = min(CALIBRATION_ROWS, len(held_out.rows))
    places = np.unique(np.linspace(0, len(held_out.rows) - 1, count).astype(np.int64))
    rows, examples = held_out.rows[places], held_out.examples
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
        model.head.calibrate_mc(sampled, examples.targets[rows], **examples.judging(rows))
    except HeadError:
        return


def interval_ends(
    model: BertWithHead,
    directory: Path,
    tokens: TokenRows,
    level: float,
    *,
    task: str,
    batch_size: int,
    extra: Mapping[str, mx.array] | None = None,
) -> tuple[Predictions, Predictions]:
    """Return the lower and the upper ends of one model's intervals for some rows.

    Args:
        model: of a regression or a time series.
        directory: where it lies.
        tokens: the rows.
        level: share of the true values that should lie between the ends.
        task: the competition type.
        batch_size: rows of a batch.
        extra: inputs of the head beside the text.

    Raises:
        RunError: the model was not calibrated for intervals.
    """
    head = model.head
    if not isinstance(head, RegressionHead) or head.mc_noise is None:
        raise RunError(
            f"{directory} has no calibrated intervals (trained by an older mlxbert, or with --no-calibrate); "
            "fix: train the run again"
        )
    with _random_stream(0):
        sampled = _sampled_logits(model, tokens, None, passes=PASSES, batch_size=batch_size, extra=extra)
    interval = head.mc_interval(sampled, level)
    return Predictions(task, np.asarray(interval.lower)), Predictions(task, np.asarray(interval.upper))


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
