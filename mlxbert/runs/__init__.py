"""Runs: from a competition's data to a cross-validated model and a submission, in one directory.

run = train("data/train.csv", model="mlx_models/minilm", text="text", target="target", out="runs/tweets")
run.scores["pooled"]                        # metrics of the out-of-fold predictions
run.predict(frame)                          # a frame of predictions for new rows
"""

from mlxbert.runs.files import RunError
from mlxbert.runs.run import Run
from mlxbert.runs.train import resume, train

__all__ = ["Run", "RunError", "resume", "train"]
