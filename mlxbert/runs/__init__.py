"""Runs: from a competition's data to a cross-validated model and a submission, in one directory.

run = train("data/train.csv", model="mlx_models/minilm", text="text", target="target", out="runs/tweets")
run.scores["pooled"]                        # metrics of the out-of-fold predictions
run.predict(frame)                          # a frame of predictions for new rows
"""

import importlib
from typing import TYPE_CHECKING, Any

# Imported on first use: `mlxbert train --help` needs only the settings.
_LATER = {
    "Run": "mlxbert.runs.run",
    "RunError": "mlxbert.runs.files",
    "resume": "mlxbert.runs.session",
    "train": "mlxbert.runs.session",
}

__all__ = ["Run", "RunError", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'mlxbert.runs' has no attribute {name!r}")


if TYPE_CHECKING:
    from mlxbert.runs.files import RunError
    from mlxbert.runs.run import Run
    from mlxbert.runs.session import resume, train
