"""Trained models of every head and pooling, and a run of them on disk, built by hand in seconds."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

import mlxbert
from heads.forward_chaining import windows
from heads.head_registry import get_head
from mlxbert.data.text_columns import RowText
from mlxbert.tokenization.tokenizer import TruncationWarning
from mlxbert.with_head import BertWithHead

WIDTH = 48
WORDS = [f"word{i}" for i in range(30)] + ["cab", "dab", "fig", "zebra"]


def texts(rows: int, seed: int = 0, longest: int = 9) -> list[str]:
    """Of words that the tiny vocabulary has, of very different lengths; the first is empty."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, n)) for n in [0, *rng.integers(1, longest, rows - 1)]]


def months(rows: int) -> list[str]:
    return [str(month) for month in np.arange("1949-01", f"{1950 + rows // 12}-01", dtype="datetime64[M]")[:rows]]


def series(rows: int) -> np.ndarray:
    """Above 0, growing, with a season."""
    steps = np.arange(rows)
    noise = np.random.default_rng(3).normal(size=rows)
    return np.round(100 + 2 * steps + 20 * np.sin(2 * np.pi * steps / 4) + noise, 2)


def targets(name: str, rows: int = 40, columns: int = 1) -> Any:
    """Targets of a head, in the user's own units and labels."""
    rng = np.random.default_rng(1)
    if name == "binary":
        return np.where(np.arange(rows) % 3 == 0, "yes", "no")
    if name == "multiclass":
        return np.array([10, 20, 30])[np.arange(rows) % 3]
    if name == "multilabel":
        return rng.integers(0, 2, (rows, 4))
    if name == "ordinal":
        return 1 + np.arange(rows) % 5
    return 2000 + 500 * rng.random((rows, columns) if columns > 1 else rows)


def trained(converted: Path, out: Path, name: str, pooling: Any = "mean", seed: int = 0, **options: Any) -> Path:
    """A saved model of random weights, its head fitted and calibrated: nothing about it is a default."""
    mx.random.seed(seed)
    rows = 40
    if name == "time_series":
        rest = {key: options.pop(key) for key in ("window", "horizon")}
        made = windows(series(60), window=max(rest["window"], 1), horizon=rest["horizon"], times=months(60))
        head = get_head(name).from_targets(WIDTH, made.targets, known_at=made.known_at, **rest, **options)
    else:
        columns = options.pop("columns", 1)
        given = targets(name, rows, columns)
        head = get_head(name).from_targets(WIDTH, given, **options)
    model = BertWithHead.from_pretrained(converted, head, pooling)
    for part in (model.head, model.pooling):
        part.update(nn.utils.tree_map(lambda a: a + 0.5 * mx.random.normal(a.shape), part.parameters()))
    if name in ("binary", "multiclass", "multilabel"):
        # Centred: a probability of 0.999 would hide errors.
        tokenizer = mlxbert.load(converted)[1]
        head.output.bias = head.output.bias - model(**tokenizer(texts(rows))).mean(axis=0)
        encoded = mx.array(head.encode_targets(given))
        right = encoded[:, None] == mx.arange(3) if name == "multiclass" else encoded.reshape(rows, -1)
        logits = 3 * right - 1 + 2 * mx.random.normal(right.shape)
        model.head.calibrate(logits, given, **({} if name == "multiclass" else {"metric": "f1"}))
    return model.save(out)


def logits_of(directory: Path, first: list[str], second: list[str] | None = None, **extra: Any) -> tuple[Any, Any]:
    """The saved model's head and its logits, by MLX."""
    model = BertWithHead.load(directory)
    tokenizer = mlxbert.load(directory)[1]
    inputs = model.head.inputs(**extra) if extra else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        return model.head, model(**tokenizer(first, second, max_length=16), **inputs)


def run_json(task: str, text: RowText, members: list[str], submission: dict[str, Any], **data: Any) -> dict[str, Any]:
    """`run.json` of a finished run."""
    target = data.pop("target", ["target"])
    facts = {"reason": "as told", "classes": None, "num_targets": len(target), "rows": 8, "missing": 0}
    kinds: dict[str, str] = {}
    return {
        "format": "mlxbert-run",
        "version": 1,
        "task": {"task": task, "target": target, **facts},
        "metric": "f1",
        "metrics": ["f1"],
        "data": {
            "path": "train.csv",
            "sha256": None,
            "rows": 8,
            "text": text.to_dict(),
            "kinds": kinds,
            "id": None,
            "group": None,
            "time": None,
            "max_length": 16,
            "examples_sha256": None,
        }
        | data,
        "model": {"checkpoint": "mlx_models/tiny"},
        "settings": {"model": "mlx_models/tiny", "target": target},
        "config": {},
        "environment": {},
        "folds": {"kind": "plain", "count": len(members)},
        "members": members,
        "submission": submission,
    }


def write_run(directory: Path, info: dict[str, Any], *, finished: bool = True) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.json").write_text(json.dumps(info))
    if finished:
        (directory / "scores.json").write_text("{}")
    return directory
