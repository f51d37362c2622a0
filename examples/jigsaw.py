"""Jigsaw toxic comments: six labels a comment, one fifth held out; and the labels of two new comments.

mlxbert-convert sentence-transformers/all-MiniLM-L6-v2          # once
python -m examples.jigsaw DATA_DIR                              # has train.csv
"""

from __future__ import annotations

import pandas as pd

from examples.arguments import arguments
from mlxbert.runs import Run, train

LABELS = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


def main(argv: list[str] | None = None) -> Run:
    """Train, score the held-out comments, and predict two new comments."""
    options = arguments("jigsaw-toxic", __doc__, argv)
    run = train(
        options.data / "train.csv",
        competition="jigsaw-toxic",
        model=options.model,
        hold_out=0.2,
        out=options.out,
        **options.settings,
    )
    assert run.scores is not None
    held_out = run.scores["hold_out"]
    print(f"ROC AUC, mean of the labels, out of fold: {run.scores['pooled']['roc_auc_macro']:.3f}")
    print(f"ROC AUC of {held_out['rows']} held-out comments: {held_out['metrics']['roc_auc_macro']:.3f}")
    print(f"submission: {run.files.submission}")
    comments = ["Thank you for the sources, I have added them.", "You are a complete idiot, get lost."]
    new = pd.DataFrame({"id": ["kind", "rude"], "comment_text": comments})
    print(run.predict(new)[["id", *LABELS]].to_string(index=False, float_format="{:.2f}".format))
    return run


if __name__ == "__main__":
    main()
