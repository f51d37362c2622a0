"""On held-out real rows every head with a real encoder beats the best constant, but not when the texts are shuffled:
its predictions come from the texts.

The scores are proper (log loss, RMSE): without information no prediction is better than the best constant.
"""

from __future__ import annotations

import calendar
import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_map

from converter.convert import convert
from heads.base import Head
from heads.head_registry import heads_for
from heads.metrics import METRICS
from mlxbert.checkpoint import load
from mlxbert.encode.encoder import batches
from mlxbert.models.bert import BertCore
from mlxbert.pooling import pool
from mlxbert.tokenization.encoding import padded
from mlxbert.tokenization.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

ROWS, LENGTH = 400, 40


@dataclass(frozen=True)
class Task:
    """Texts and targets; the last `held_out` rows are held out."""

    texts: Sequence[str]
    targets: Any
    held_out: int
    fit: dict[str, Any] = field(default_factory=dict)


def as_text(row: np.ndarray, names: Sequence[str]) -> str:
    return ", ".join(f"{name}: {value:.3g}" for name, value in zip(names, row, strict=True))


def mixed(texts: Sequence[str], targets: Any, rows: int = ROWS) -> Task:
    """Return a seeded random choice of rows."""
    order = np.random.default_rng(0).permutation(len(texts))[:rows]
    return Task([texts[i] for i in order], np.asarray(targets)[order], held_out=len(order) // 3)


def table(name: str) -> tuple[list[str], np.ndarray, Any]:
    """Return a bundled table of scikit-learn: a text a row, its numbers, the target."""
    from sklearn import datasets

    table = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    # At most eight, so that no text is cut; of diabetes without three of the serum values.
    columns = [0, 1, 2, 3, 7, 8, 9] if name == "diabetes" else list(range(8))
    names = [str(table.feature_names[column]) for column in columns]
    return [as_text(row, names) for row in table.data[:, columns]], table.data, table.target


def breast_cancer() -> Task:
    texts, _, target = table("breast_cancer")
    return mixed(texts, target)


def wine() -> Task:
    texts, _, target = table("wine")
    return mixed(texts, target)


def wine_labels() -> Task:
    """Return which of the last three measurements are above their median, from the first eight."""
    texts, numbers, _ = table("wine")
    chosen = numbers[:, [9, 11, 12]]
    return mixed(texts, (chosen > np.median(chosen, axis=0)).astype(int))


def diabetes() -> Task:
    texts, _, target = table("diabetes")
    return mixed(texts, target)


def cell_grades() -> Task:
    """Return the quartile of the largest cells' area, which is in no text, with the means of other measurements."""
    texts, numbers, _ = table("breast_cancer")
    area = numbers[:, 23]
    return mixed(texts, 1 + np.digitize(area, np.quantile(area, [0.25, 0.5, 0.75])))


def el_nino() -> Task:
    """Return the sea surface temperature of the next three months, and texts with this month and the last values."""
    from statsmodels.datasets import elnino

    values = elnino.load_pandas().data.iloc[:, 1:].to_numpy(float).ravel()
    return monthly(values, "1950-01", "sea surface temperature")


def monthly(values: np.ndarray, first: str, what: str) -> Task:
    from heads.forward_chaining import windows

    times = np.datetime64(first) + np.arange(len(values)).astype("timedelta64[M]")
    rows = windows(values, window=3, horizon=3, times=times)
    texts = [
        f"{calendar.month_name[month.astype(int) % 12 + 1]}. {what}: {', '.join(f'{value:.3g}' for value in past)}"
        for month, past in zip(rows.made_at, rows.history, strict=True)
    ]
    held_out = len(texts) // 4
    return Task(texts[-ROWS:], rows.targets[-ROWS:], held_out, {"known_at": rows.known_at[-ROWS:]})


def shared_csv(name: str, **options: Any) -> list[dict[str, str]]:
    root = os.environ.get("MLXBERT_DATA")
    if not root:
        pytest.skip("MLXBERT_DATA is not set")
    with (Path(root) / name).open(encoding="utf-8-sig", newline="") as file:
        return [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file, **options)]


def tweets() -> Task:
    rows = shared_csv("disaster-tweets/train.csv")
    return mixed([row["text"] for row in rows], [int(row["target"]) for row in rows])


def jigsaw() -> Task:
    labels = ("toxic", "obscene", "insult")
    rows = shared_csv("jigsaw-toxic/train.csv")
    return mixed([row["comment_text"] for row in rows], [[int(row[label]) for label in labels] for row in rows])


def alexa() -> Task:
    rows = shared_csv("alexa-reviews/amazon_alexa.tsv", delimiter="\t")
    rows = list({row["verified_reviews"]: row for row in rows if row["verified_reviews"].strip()}.values())
    return mixed([row["verified_reviews"] for row in rows], [int(row["rating"]) for row in rows], rows=600)


def house_prices() -> Task:
    columns = ("OverallQual", "GrLivArea", "Neighborhood", "YearBuilt", "GarageCars", "HouseStyle")
    rows = shared_csv("house-prices/train.csv")
    texts = [", ".join(f"{column}: {row[column]}" for column in columns) for row in rows]
    return mixed(texts, [float(row["SalePrice"]) for row in rows])


TASKS: dict[str, tuple[Callable[[], Task], ...]] = {
    "binary": (breast_cancer, tweets),
    "multiclass": (wine,),
    "multilabel": (wine_labels, jigsaw),
    "regression": (diabetes, house_prices),
    "ordinal": (cell_grades, alexa),
    "time_series": (el_nino,),
}
CASES = [
    pytest.param(entry.name, kind, task, id=f"{entry.name}-{task.__name__}")
    for kind, tasks in TASKS.items()
    for entry in heads_for(kind)
    for task in tasks
]


@pytest.fixture(scope="module")
def vectors(minilm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], np.ndarray]:
    """Return mean-pooled vectors (N, D) of the frozen encoder; the texts of several tasks are encoded once."""
    out = tmp_path_factory.mktemp("learn") / "minilm"
    convert(minilm_source, out, verify=False)
    core, tokenizer = load(out)
    known: dict[str, np.ndarray] = {}

    def encode(texts: Sequence[str]) -> np.ndarray:
        new = sorted(set(texts) - set(known))
        known.update(zip(new, mean_vectors(core, tokenizer, new), strict=True))
        return np.stack([known[text] for text in texts])

    return encode


def mean_vectors(core: BertCore, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    encodings = tokenizer.encode(list(texts), max_length=LENGTH)
    vectors = np.zeros((len(texts), core.config.hidden_size), np.float32)
    for rows, length in batches([len(one.ids) for one in encodings], 64, LENGTH):
        inputs = padded(
            [encodings[i].ids for i in rows],
            [encodings[i].type_ids for i in rows],
            length=length,
            pad_id=tokenizer.pad_token_id or 0,
        )
        hidden = core(inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"]).last_hidden_state
        vectors[rows] = np.array(pool("mean", hidden, inputs["attention_mask"]))
    return vectors


def train(head: Head, x: mx.array, targets: np.ndarray, steps: int = 60, decay: float = 0.5) -> None:
    optimizer, encoded = optim.AdamW(learning_rate=0.01, weight_decay=decay, bias_correction=True), mx.array(targets)
    step = nn.value_and_grad(head, lambda: head.loss(head(x), encoded))
    head.train()
    for _ in range(steps):
        _, gradients = step()
        optimizer.update(head, gradients)
        mx.eval(head.parameters(), optimizer.state)
    head.eval()


def score(head: Head, logits: mx.array, targets: Any) -> float:
    """Return the proper score of held-out rows: log loss, or RMSE where values are predicted. Lower is better."""
    values = "rmse" in head.metrics
    metric = METRICS["rmse" if values else "log_loss"]
    return metric(head.metric_targets(targets), head.outputs(logits, metric.needs))


def constant(head: Head, x: mx.array, targets: np.ndarray) -> None:
    """Train only the bias, without features: the best constant of the training rows."""
    head.freeze()
    head.output.update(tree_map(mx.zeros_like, head.output.parameters()))
    head.unfreeze(keys=["bias", "first_threshold", "raw_gaps"])
    train(head, mx.zeros_like(x), targets, steps=400, decay=0.0)


@pytest.mark.parametrize(("name", "kind", "make"), CASES)
def test_a_head_learns_from_texts_and_from_nothing_else(
    name: str, kind: str, make: Callable[[], Task], vectors: Callable[[Sequence[str]], np.ndarray]
) -> None:
    task = make()
    x = vectors(task.texts)
    cut = len(task.texts) - task.held_out
    seen, unseen = slice(0, cut), slice(cut, None)
    fit = {key: value[seen] for key, value in task.fit.items()}
    targets = np.asarray(task.targets)

    def judged(features: np.ndarray, learn: Callable[[Head, mx.array, np.ndarray], None]) -> float:
        mx.random.seed(1)
        (head_class,) = [entry.head for entry in heads_for(kind) if entry.name == name]
        options = {"classes": tuple(sorted(set(targets.tolist())))} if kind == "ordinal" else {}
        head = head_class.from_targets(x.shape[1], targets[seen], dropout=0.1, **fit, **options)
        learn(head, mx.array(features[seen]), head.encode_targets(targets[seen]))
        return score(
            head, head(mx.array(features[unseen] if learn is train else 0 * features[unseen])), targets[unseen]
        )

    best_constant = judged(x, constant)
    shuffled = x.copy()
    rng = np.random.default_rng(1)
    for part in (seen, unseen):
        rng.shuffle(shuffled[part])
    learned, without = judged(x, train), judged(shuffled, train)
    report = f"{name}: {learned:.4g} learned, {best_constant:.4g} constant, {without:.4g} shuffled"
    print(report)
    assert learned < 0.95 * best_constant, report
    assert without > 0.98 * best_constant, report
