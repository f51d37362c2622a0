"""Where a training is: what its loop remembers between two batches, beside weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from mlxbert.training.save import SaveError


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
    """

    epoch: int = 0
    batch: int = 0
    batches_done: int = 0
    kept: Kept | None = None
    top: float | None = None
    stale: int = 0
    stopped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """What `to_dict` gave.

        Raises:
            SaveError: it is something else.
        """
        try:
            kept = fields["kept"]
            return cls(**{**fields, "kept": None if kept is None else Kept(**kept)})
        except (KeyError, TypeError) as error:
            raise SaveError(f"the saved position cannot be read ({error}); fix: delete the saved state") from error
