"""Runs of every task written by hand, as a trainer leaves them: small, seeded, each number known to the test."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TASKS = ("binary", "multiclass", "multilabel", "ordinal", "regression", "time_series")
METRICS = {
    "binary": ["f1", "roc_auc", "accuracy", "log_loss"],
    "multiclass": ["f1_macro", "accuracy", "log_loss"],
    "multilabel": ["roc_auc_macro", "f1_macro", "log_loss"],
    "ordinal": ["quadratic_kappa", "accuracy", "mae"],
    "regression": ["rmsle", "rmse", "r2"],
    "time_series": ["mae", "rmse", "smape"],
}
TARGETS = {
    "binary": ["target"],
    "multiclass": ["topic"],
    "multilabel": ["toxic", "threat", "insult"],
    "ordinal": ["rating"],
    "regression": ["SalePrice"],
    "time_series": ["Passengers"],
}
CLASSES: dict[str, list[Any]] = {
    "binary": [0, 1],
    "multiclass": ["sport", "world", "science"],
    "multilabel": [0, 1],
    "ordinal": [1, 2, 3, 4, 5],
}
HOSTILE = '<script>alert(1)</script> & "quoted", $\\frac{1$ 模型 \U0001f600\nsecond line'


def write_run(
    path: Path,
    task: str,
    *,
    rows: int = 240,
    folds: int = 3,
    seeds: Sequence[int] = (0,),
    finished: int | None = None,
    steps: int = 40,
    target: list[str] | None = None,
    classes: list[Any] | None = None,
    hold_out: bool = True,
) -> Path:
    """A run in `path`; with `finished`, one that was stopped when that many members were trained."""
    rng = np.random.default_rng(7)
    path.mkdir(parents=True)
    members = [f"seed{seed}-fold{fold}" for seed in seeds for fold in range(folds)]
    target = target or TARGETS[task]
    classes = classes or CLASSES.get(task)
    done = len(members) if finished is None else finished
    info = _info(task, target, classes, members, list(seeds), folds, rows)
    (path / "run.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
    scores = _write_log(path, info, done, steps, rows // folds, rng)
    if finished is not None:
        return path
    header, table = PREDICTIONS[task](rows, folds, target, classes, rng)
    write_csv(path / "oof.csv", header, table)
    texts = [[i + 1, i, f"id{i}", round(9 / (i + 1), 4), 1, 0.123456789, f"text {i}"] for i in range(30)]
    texts[0][-1] = HOSTILE
    write_csv(path / "worst_rows.csv", ["rank", "row", "id", "loss", "truth", "prediction", "text"], texts)
    values = {name: [member["metrics"][name] for member in scores] for name in METRICS[task]}
    summary = {
        "metric": info["metric"],
        "greater_is_better": True,
        "members": scores,
        "spread": {
            name: {"mean": np.mean(v), "std": np.std(v), "low": min(v), "high": max(v)} for name, v in values.items()
        },
        "pooled": {name: float(np.median(v)) for name, v in values.items()},
        "hold_out": {"rows": 60, "metrics": {name: min(v) for name, v in values.items()}} if hold_out else None,
        "seconds": 312.4,
    }
    (path / "scores.json").write_text(json.dumps(summary), encoding="utf-8")
    return path


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A CSV with "\n" at line ends, as pandas writes it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _info(
    task: str, target: list[str], classes: Any, members: list[str], seeds: list[int], folds: int, rows: int
) -> dict[str, Any]:
    return {
        "format": "mlxbert-run",
        "version": 1,
        "created": "2026-11-24T11:00:00+00:00",
        "competition": None,
        "task": {
            "task": task,
            "reason": f"it looks like {task}",
            "target": target,
            "classes": classes,
            "num_targets": len(target),
            "rows": rows,
            "missing": 0,
        },
        "metric": METRICS[task][0],
        "metrics": METRICS[task],
        "data": {
            "path": "train.csv",
            "sha256": "3f" * 32,
            "size": 987_654,
            "rows": rows,
            "kinds": {"text": "text", "target": "number"},
            "text": {"first": "text", "second": None, "missing": "unknown"},
            "max_length": 128,
            "id": "id",
            "group": None,
            "time": None,
            "examples_sha256": "ab" * 32,
        },
        "model": {
            "checkpoint": "mlx_models/minilm",
            "manifest_sha256": "cd" * 32,
            "source": "sentence-transformers/all-MiniLM-L6-v2",
            "revision": "c9" * 20,
        },
        "settings": {"model": "mlx_models/minilm", "target": target, "text": {"first": "text"}, "id": "id"},
        "config": {
            "epochs": 2,
            "batch_size": 32,
            "rate": 5e-05,
            "schedule": "linear",
            "pooling": "mean",
            "max_length": 128,
            "seeds": seeds,
            "folds": folds,
        },
        "folds": {"kind": "stratified", "count": folds, "sha256": "ef" * 32},
        "members": members,
        "submission": {
            "id_column": "id",
            "columns": target,
            "values": "values" if task in ("regression", "time_series") else "labels",
        },
        "environment": {
            "mlxbert": "0.1.0",
            "python": "3.11.7",
            "platform": "Linux-x86_64",
            "device": "cpu",
            "blas": "OpenBLAS 0.3.30",
            "threads": 2,
            "packages": {"mlx": "0.32.4", "numpy": "2.3.5"},
        },
    }


def _write_log(
    path: Path, info: dict[str, Any], done: int, steps: int, held_out: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """metrics.jsonl with `done` members, and a half of the next if there is one; the members of scores.json."""
    scores: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    low_is_good = info["metric"] in ("rmsle", "mae")
    for number, member in enumerate(info["members"][: done + 1]):
        seed, fold = (int(part[4:]) for part in member.split("-"))
        common = {"member": member, "seed": seed, "fold": fold}
        whole = number < done
        for step in range(1, (steps if whole else steps // 2) + 1):
            progress = step / steps
            event = {"event": "step", **common, "epoch": 2 * progress, "step": step, "steps": steps}
            loss = 0.25 + 0.45 * np.exp(-4 * progress) + 0.06 * rng.standard_normal()
            warm = min(1, progress / 0.1) * min(1, (1 - progress) / 0.9 + 1e-9)
            lines.append(event | {"loss": float(loss), "rate": 5e-5 * warm, "norm": 1.9, "rows_per_second": 140.2})
            if step % (steps // 4) == 0:
                gain = 0.8 - 0.25 * np.exp(-3 * progress) + 0.01 * rng.standard_normal()
                good = float(1 - gain if low_is_good else gain)
                metrics = {name: good + 0.03 * i for i, name in enumerate(info["metrics"])}
                held = {"event": "evaluation", **common, "epoch": 2 * progress, "step": step}
                loss = 0.4 + 0.3 * np.exp(-4 * progress) + 0.05 * progress
                lines.append(held | {"loss": float(loss), "metrics": metrics, "best": step < steps})
        if whole:
            best = {"step": steps * 3 // 4, "epoch": 1.5, "metrics": metrics}
            lines.append({"event": "member", **common, **best, "seconds": 61.2})
            scores.append({**common, "rows": held_out, **best})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text, encoding="utf-8")
    return scores


def _keys(rows: int, folds: int) -> list[list[Any]]:
    return [[i, f"id{i}", i % folds] for i in range(rows)]


def _binary(rows: int, folds: int, target: list[str], classes: Any, rng: np.random.Generator) -> Any:
    truth = rng.random(rows) < 0.43
    probability = 1 / (1 + np.exp(-(2.2 * (truth - 0.5) + rng.standard_normal(rows))))
    header = ["row", "id", "fold", f"target:{target[0]}", "probability", "label"]
    return header, [
        [*key, classes[int(t)], f"{p:.6f}", classes[int(p > 0.45)]]
        for key, t, p in zip(_keys(rows, folds), truth, probability, strict=True)
    ]


def _classes(rows: int, folds: int, target: list[str], classes: Any, rng: np.random.Generator) -> Any:
    truth = rng.integers(0, len(classes), rows)
    logits = rng.standard_normal((rows, len(classes)))
    distance = np.abs(np.arange(len(classes)) - truth[:, None])
    logits += 2.0 * np.exp(-distance)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = [f"probability:{name}" for name in classes]
    header = ["row", "id", "fold", f"target:{target[0]}", *names, "label"]
    return header, [
        [*key, classes[t], *(f"{value:.6f}" for value in p), classes[int(p.argmax())]]
        for key, t, p in zip(_keys(rows, folds), truth, probability, strict=True)
    ]


def _labels(rows: int, folds: int, target: list[str], classes: Any, rng: np.random.Generator) -> Any:
    truth = (rng.random((rows, len(target))) < np.linspace(0.4, 0.1, len(target))).astype(int)
    probability = 1 / (1 + np.exp(-(3 * (truth - 0.6) + rng.standard_normal(truth.shape))))
    label = (probability > 0.5).astype(int)
    truth[rng.random(truth.shape) < 0.05] = -1
    header = ["row", "id", "fold"] + [
        f"{kind}:{name}" for kind in ("target", "probability", "label") for name in target
    ]
    return header, [
        [*key, *t, *(f"{value:.6f}" for value in p), *d]
        for key, t, p, d in zip(_keys(rows, folds), truth, probability, label, strict=True)
    ]


def _numbers(rows: int, folds: int, target: list[str], classes: Any, rng: np.random.Generator) -> Any:
    truth = np.exp(12 + 0.4 * rng.standard_normal((rows, len(target))))
    prediction = truth * np.exp(0.15 * rng.standard_normal(truth.shape))
    header = ["row", "id", "fold"] + [f"{kind}:{name}" for kind in ("target", "prediction") for name in target]
    return header, [
        [*key, *(f"{value:.2f}" for value in (*t, *p))]
        for key, t, p in zip(_keys(rows, folds), truth, prediction, strict=True)
    ]


def _series(rows: int, folds: int, target: list[str], classes: Any, rng: np.random.Generator) -> Any:
    horizon, windows = 12, 48
    months = np.arange(windows + horizon)
    series = (150 + 3 * months) * (1 + 0.2 * np.sin(months * 2 * np.pi / 12))
    header = ["row", "made_at", "fold"]
    header += [f"{kind}:+{step}" for kind in ("target", "prediction") for step in range(1, horizon + 1)]
    table = []
    for window in range(windows):
        truth = series[window : window + horizon]
        forecast = truth * (1 + 0.01 * np.arange(horizon) * rng.standard_normal())
        made_at = np.datetime64("1955-01") + np.timedelta64(window, "M")
        table.append([window, str(made_at), window * folds // windows, *np.round([*truth, *forecast], 4)])
    return header, table


PREDICTIONS = {
    "binary": _binary,
    "multiclass": _classes,
    "multilabel": _labels,
    "ordinal": _classes,
    "regression": _numbers,
    "time_series": _series,
}
