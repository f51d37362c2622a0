"""CONTRIBUTING's way to add a head: one file in `heads/`, and nothing else."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

import heads
import mlxbert
from heads.head_registry import get_head, registered_heads
from mlxbert.with_head import BertWithHead
from tests.support.head_checks import CHECKS
from tests.support.run_samples import QUICK, options, sample

FILE = '''
    """Yes or no, trained by the squared error of the probability."""

    from __future__ import annotations

    from typing import Any

    import mlx.core as mx
    import numpy as np

    from heads.arrays import sigmoid
    from heads.base import Head, masked_mean, row_targets, row_weights
    from heads.head_registry import register_head
    from heads.labels import check_classes, encode_labels, infer_classes
    from heads.losses import mse


    @register_head("brier", competition_types="binary", priority=-1)
    class BrierHead(Head):
        """P(positive) for each row."""

        default_metric = "brier"
        metrics = ("brier", "roc_auc", "accuracy")

        def __init__(self, hidden_size, *, classes=(0, 1), dropout=0.1, dropout_samples=1):
            super().__init__(hidden_size, 1, dropout=dropout, dropout_samples=dropout_samples)
            self.classes = check_classes(classes, self.title)

        @classmethod
        def from_targets(cls, hidden_size, targets, **arguments):
            arguments.setdefault("classes", infer_classes(targets, cls.head_name))
            return super().from_targets(hidden_size, targets, **arguments)

        def encode_targets(self, targets):
            return encode_labels(targets, self.classes, self.title).astype(np.float32)

        def loss(self, logits, targets, *, rows=None):
            encoded = row_targets(targets, rows, logits, 0, self.title)
            errors = mse(mx.sigmoid(logits[:, 0]), encoded, reduction="none")
            return masked_mean(errors, row_weights(rows, len(logits), self.title))

        def predict(self, logits):
            return sigmoid(self.host(logits)[:, 0])

        def outputs(self, logits, needs):
            probabilities = self.predict(logits)
            return (probabilities >= 0.5).astype(np.int32) if needs == "labels" else probabilities

        def metric_targets(self, targets):
            return encode_labels(targets, self.classes, self.title)
'''


@pytest.mark.usefixtures("fresh")
def test_a_new_head_is_one_file_and_trains(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brier.py").write_text(textwrap.dedent(FILE))
    monkeypatch.setattr(heads, "__path__", [*heads.__path__, str(tmp_path)])
    assert "brier" in registered_heads()
    for check in CHECKS:
        check("brier")
    data = sample("binary")
    settings = {**options("binary"), **QUICK, "task": "brier"}
    run = mlxbert.train(data, out=tmp_path / "run", model=tiny_checkpoint, **settings)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["metric"] == "brier"
    assert scores["pooled"]["brier"] < 0.25  # that of a constant
    assert type(BertWithHead.load(run.members[0]).head) is get_head("brier")
    assert len(run.predict(data)) == len(data)
