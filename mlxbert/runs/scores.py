"""scores.json as a checked record: its only reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlxbert.files.reading import from_json, read_json
from mlxbert.runs.files import FIX, RunError

SCORES = "scores.json"


@dataclass(frozen=True)
class MemberScores:
    """A finished model on the rows that its fold held out; `step` and `epoch` are those of the kept weights."""

    member: str
    seed: int
    fold: int
    rows: int
    step: int
    epoch: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Spread:
    """A metric over the models."""

    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class HoldOutScores:
    """The scores of the rows that no model saw."""

    rows: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Scores:
    """The content of scores.json.

    Attributes:
        metric: the metric that was optimized.
        members: each model on its own held-out rows.
        spread: each metric over the models.
        pooled: metrics of all out-of-fold rows together; NaN: undefined.
        seconds: duration of the run, all sittings together.
        hold_out: scores of the rows held out of everything; None: there are none.
        values: the whole JSON object as it was read.
    """

    metric: str
    greater_is_better: bool
    members: tuple[MemberScores, ...]
    spread: Mapping[str, Spread]
    pooled: Mapping[str, float]
    seconds: float
    hold_out: HoldOutScores | None = None
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)


def read_scores(root: Path) -> Scores | None:
    """Return the scores.json of a run; None: the run is not finished.

    Raises:
        RunError: it is damaged; the field is named.
    """
    file = root / SCORES
    values = read_json(file, RunError)
    if values is None:
        return None
    scores = from_json(Scores, {**values, "values": {}}, place=str(file), fix=FIX, error=RunError, null_is_nan=True)
    return replace(scores, values=values)
