"""`Member`: which of a run's models is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Member:
    """One model of a run: the seed it begins with and the fold that it does not see."""

    seed: int = 0
    fold: int = 0

    @property
    def name(self) -> str:
        """Of its files."""
        return f"seed{self.seed}-fold{self.fold}"

    def entropy(self) -> int:
        """What its random streams begin with: one number for each seed and fold."""
        return int(np.random.SeedSequence([self.seed, self.fold]).generate_state(1)[0])
