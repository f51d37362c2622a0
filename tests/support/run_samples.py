"""Small data of every task whose target a tiny model can learn from its text, and a tiny converted checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from converter.convert import convert
from mlxbert.runs import Run, train
from tests.support.tiny import save_tiny

WORDS = ("a", "b", "c", "d", "e", "f")
# What a run is told beside the data; every one of them is a few seconds of training.
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "folds": 2, "rate": 3e-3, "progress": False, "compiled": False}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted random BERT, 48 wide, 2 layers, with a pooler."""
    root = tmp_path_factory.mktemp("tiny")
    save_tiny(root / "source", num_hidden_layers=2)
    convert(root / "source", root / "converted", verify=False)
    return root / "converted"


def texts(rows: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of three to nine words, each another one, and how many "a" each has less its "b"."""
    rng = np.random.default_rng(seed)
    made: dict[str, int] = {}
    while len(made) < rows:
        words = rng.choice(WORDS, rng.integers(3, 10))
        made[" ".join(words)] = int((words == "a").sum() - (words == "b").sum())
    return list(made), np.array(list(made.values()))


def sample(task: str, rows: int = 48, seed: int = 0) -> pd.DataFrame:
    """Columns id, text and the target's: "y", or "y1" and "y2"; of a series "month" and "y"."""
    if task == "time_series":
        steps = np.arange(rows)
        values = 100 + steps + 20 * np.sin(2 * np.pi * steps / 4) + np.random.default_rng(seed).normal(0, 1, rows)
        months = [str(np.datetime64("2001-01") + i) for i in steps]
        return pd.DataFrame({"month": months, "y": values.round(3)})
    lines, score = texts(rows, seed)
    frame = pd.DataFrame({"id": [f"r{i:04d}" for i in range(rows)], "text": lines})
    if task == "binary":
        frame["y"] = np.where(score > 0, "yes", "no")
    elif task == "multiclass":
        frame["y"] = np.array(["low", "middle", "top"])[np.clip(score, -1, 1) + 1]
    elif task == "multilabel":
        frame["y1"], frame["y2"] = (score > 0).astype(int), (score < 0).astype(int)
    elif task == "regression":
        frame["y"] = 1000.0 + 100 * score + np.random.default_rng(seed).normal(0, 5, rows)
    elif task == "ordinal":
        frame["y"] = np.clip(score, -2, 2) + 3
    return frame


def options(task: str) -> dict[str, Any]:
    """What `train` is told for the frame of `sample`."""
    if task == "time_series":
        head = {"horizon": 4, "window": 8, "period": 4, "calendar": ("year",)}
        return {"text": "{month}: {y}", "target": "y", "time": "month", "head": head, "task": task}
    target = ("y1", "y2") if task == "multilabel" else "y"
    return {"text": "text", "target": target, "id": "id", "task": task}


TASKS = ("binary", "multiclass", "multilabel", "regression", "ordinal", "time_series")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[str, Run]:
    """A finished run of two folds for every task; tests only read it."""
    root = tmp_path_factory.mktemp("runs")
    return {
        task: train(sample(task), model=tiny_checkpoint, out=root / task, **options(task), **QUICK) for task in TASKS
    }
