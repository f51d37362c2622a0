"""Where a training is: what its loop remembers between two batches, beside weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from mlxbert.files.typed_json import from_json
from mlxbert.training.save import SaveError, damage_fix


@dataclass(frozen=True)
class Kept:
    """The weights that are kept so far: after which step and epoch."""

    step: int
    epoch: float


@dataclass
class Position:
    """Where the loop is.

    Attributes:
        epoch: epochs done.
        batch: batches of this epoch done.
        batches_done: of all epochs.
        kept: the weights that are kept so far.
        top: the best value of the metric so far; None: it was undefined.
        stale: evaluations since the best one.
        stopped: early stopping has ended the training.
        seconds: that the training has taken up to here, over all sittings.
    """

    epoch: int = 0
    batch: int = 0
    batches_done: int = 0
    kept: Kept | None = None
    top: float | None = None
    stale: int = 0
    stopped: bool = False
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], file: Path, *, batches: int) -> Self:
        """Return the position that `to_dict` wrote into `file`, of a training with `batches` an epoch.

        Raises:
            SaveError: a field is missing, of the wrong type, or beyond this training.
        """
        fix = damage_fix(file)
        position = from_json(cls, fields, place=str(file), fix=fix, error=SaveError)
        counts = (position.epoch, position.batch, position.batches_done, position.stale)
        if min(counts) < 0 or position.batch >= batches:
            raise SaveError(f"{file}: batch {position.batch} of epoch {position.epoch} does not exist; {fix}")
        return position
