"""Titanic: from a sentence about each passenger to a cross-validated model and a submission for Kaggle.

    mlxbert-convert sentence-transformers/all-MiniLM-L6-v2          # once
    python -m examples.titanic DATA_DIR                             # has train.csv and test.csv

The ready configuration in `mlxbert.data.competitions` has the row template and the numbers of the training.
"""

from __future__ import annotations

from examples.arguments import arguments
from mlxbert.runs import Run, train


def main(argv: list[str] | None = None) -> Run:
    """Train, and predict the test file."""
    options = arguments("titanic", __doc__, argv)
    run = train(
        options.data / "train.csv",
        competition="titanic",
        model=options.model,
        test=options.data / "test.csv",
        out=options.out,
        **options.settings,
    )
    assert run.scores is not None
    accuracy, spread = run.scores["pooled"]["accuracy"], run.scores["spread"]["accuracy"]
    print(f"accuracy out of fold: {accuracy:.3f}, folds {spread['low']:.3f} to {spread['high']:.3f}")
    print(f"submission: {run.files.submission}")
    print(f"passengers it was most wrong about: {run.files.worst}")
    return run


if __name__ == "__main__":
    main()
