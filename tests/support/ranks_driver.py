"""A rank of `tests.training.test_ranks`: ``python -m tests.support.ranks_driver WHAT DIRECTORY``.

"steps" takes some training steps, and writes what they report and a digest of the weights to DIRECTORY/RANK.json.
"raises" trains like `mlxbert train` with the arguments after DIRECTORY, and rank 1 raises in its third step.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlxbert.training.parallel import current_world
from mlxbert.training.step import TrainStep
from tests.training.test_training_step import as_bytes, batch, make_step


def steps(accumulated: int) -> list[dict[str, Any]]:
    """Take steps on batches of eight, two and eight rows, alone or in the launcher's world."""
    step = make_step(dropout=0.1)
    step.world = current_world()
    given = [batch(seed, rows) for seed, rows in ((0, 8), (1, 2), (2, 8), (3, 2))]
    reports = [asdict(step(given[i : i + accumulated])) for i in range(0, len(given), accumulated)]
    digest = hashlib.sha256(b"".join(array for _, array in sorted(as_bytes(step.weights).items()))).hexdigest()
    return [*reports, {"weights": digest}]


def raises(arguments: list[str]) -> None:
    """Run `mlxbert` with these arguments; rank 1 raises."""
    from mlxbert.cli import main

    update = TrainStep.update

    def broken(step: TrainStep) -> Any:
        if os.environ["MLX_RANK"] == "1" and step.step == 2:
            raise ValueError("something is wrong here")
        return update(step)

    TrainStep.update = broken  # type: ignore[method-assign]
    main(arguments, prog_name="mlxbert")


if __name__ == "__main__":
    what, directory, *rest = sys.argv[1:]
    if what == "steps":
        file = Path(directory) / f"{os.environ['MLX_RANK']}.json"
        file.write_text(json.dumps([steps(1), steps(2)]))
    else:
        raises(rest)
