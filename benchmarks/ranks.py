"""Several ranks that train one model: what they cost, whether they learn the same, and whether they survive a kill.

    python -m benchmarks.ranks --only curve                            # the loss of 4 ranks against that of 1
    python -m benchmarks.ranks --only kill --runs 10 --log kills.jsonl # SIGKILL in half of the runs
    python -m benchmarks.ranks --only time --model mlx_models/minilm --data train.csv

Everything starts real processes by `mlx.launch`. `time` compares the seconds of a step, startup apart, of two ranks
with one thread each, one process with two threads, and one process with one thread; the sides take turns. `curve`
trains a tiny model with dropout 0.1 for fifty steps. `kill` trains a tiny model for 200 steps on four ranks, again
and again. In half of the runs a random rank gets SIGKILL at a random moment: at any time, while a file is written, or
while the run is put together at the end. What is left is resumed, and every run has to end in the weights, logits and
predictions of the first one, which nobody disturbed.

A benchmark shows, and asserts nothing: the exit code is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from benchmarks.launched import Launched
from benchmarks.machine import machine
from mlxbert.files.output_file import TEMPORARY
from mlxbert.terminal import show

PARTS = ("curve", "kill", "time")
_WORDS = "abcdef"
# Seconds after which the ranks end if one of them gives no sign of life; a launch may take so many times more in all.
_WATCHDOG, _PATIENCE = 20, 15
_TINY = ["--text", "text", "--target", "y", "--id", "id", "--rate", "3e-3", "--no-compiled", "--dropout", "0.1"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one part, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--ranks", type=int, default=4, help="of `curve` and `kill`")
    parser.add_argument("--runs", type=int, default=100, help="of `kill`")
    parser.add_argument("--steps", type=int, default=200, help="of each run of `kill`, over two folds")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of `kill`")
    parser.add_argument("--log", type=Path, help="append a line of JSON for each run of `kill`")
    parser.add_argument("--model", type=Path, help="of `time`: a converted checkpoint")
    parser.add_argument("--data", type=Path, help="of `time`: a CSV file with columns text and target")
    parser.add_argument("--steps-timed", type=int, default=14, help="of each side in each turn; three do not count")
    parser.add_argument("--turns", type=int, default=3, help="of `time`")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no rank is left behind
    parts: dict[str, Callable[[Path, argparse.Namespace], None]] = {"curve": _curve, "kill": _kill, "time": _time}
    for part in [options.only] if options.only else PARTS:
        with tempfile.TemporaryDirectory() as folder:
            parts[part](Path(folder), options)


def _ran(
    folder: Path, ranks: int, threads: int, arguments: Sequence[str], seconds: float, watchdog: float = _WATCHDOG
) -> bool:
    """Run a command of mlxbert to its end; return whether it came within this time."""
    launched = Launched(folder, ranks, threads, ["-m", "mlxbert", *arguments], watchdog)
    try:
        return launched.wait(seconds)
    finally:
        launched.end()


def _curve(folder: Path, options: argparse.Namespace) -> None:
    """Print the largest difference of the losses of several ranks from those of one process."""
    _write_tiny(folder, rows=64)
    more = ["--folds", "1", "--valid-size", "14", "--epochs", "8", "--batch-size", "8"]
    curves = []
    for ranks in (1, options.ranks):
        arguments = ["train", "data.csv", "--model", "model", *_TINY, *more, "--threads", "1", "-o", f"run{ranks}"]
        _ran(folder, ranks, 1, arguments, 600)
        curves.append([event["loss"] for event in _steps(folder / f"run{ranks}")][:50])
        if len(curves[-1]) < 50:
            raise SystemExit((folder / "output.txt").read_text())
    differences = [abs(ours / theirs - 1) for theirs, ours in zip(*curves, strict=True)]
    print(
        f"loss of {options.ranks} ranks against 1 over {len(differences)} steps, dropout 0.1: "
        f"largest relative difference {max(differences):.1e}; from {curves[0][0]:.4f} to {curves[0][-1]:.4f}",
        flush=True,
    )


def _time(folder: Path, options: argparse.Namespace) -> None:
    """Print the seconds of a step of each side."""
    if options.model is None or options.data is None:
        print("time: skipped; give --model and --data")
        return
    words = ["--model", str(options.model.resolve()), "--text", "text", "--target", "target", "--task", "binary"]
    words += ["--max-length", "32", "--batch-size", "32", "--folds", "1", "--epochs", "1"]
    pd.read_csv(options.data).head(32 * options.steps_timed + 32).to_csv(folder / "data.csv", index=False)
    words += ["--valid-size", "32", "--threads"]
    sides = {"2 ranks, 1 thread each": (2, 1), "1 process, 2 threads": (1, 2), "1 process, 1 thread": (1, 1)}
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.turns):
        for side, (ranks, threads) in sides.items():
            run = folder / "run"
            shutil.rmtree(run, ignore_errors=True)
            arguments = ["train", "data.csv", *words, str(threads), "-o", "run"]
            if not _ran(folder, ranks, threads, arguments, 600, watchdog=300):  # the first step is compiled
                raise SystemExit((folder / "output.txt").read_text())
            # Rows of different length take different times, and every side has the same: the mean, after a few steps.
            rates = [event["rows_per_second"] for event in _steps(run)][3:]
            if not rates:
                raise SystemExit((folder / "output.txt").read_text())
            found[side].append(statistics.mean(32 / rate for rate in rates))
    table = Table(title=f"a step of 32 texts; {machine()}")
    for heading in ("side", "ms a step: median", "range", "time of 2 ranks over it"):
        table.add_column(heading, justify="left" if heading == "side" else "right")
    ours = next(iter(found.values()))
    for side, seconds in found.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, seconds, strict=True))
        spread = f"{1000 * min(seconds):.0f}–{1000 * max(seconds):.0f}"
        table.add_row(side, f"{1000 * statistics.median(seconds):.0f}", spread, f"{ratio:.3f}×")
    show(table)


def _kill(folder: Path, options: argparse.Namespace) -> None:
    """Print how many runs hung, could not be resumed, or ended in other files."""
    _write_tiny(folder, rows=40)
    # Two folds, five batches an epoch.
    more = ["--folds", "2", "--epochs", str(options.steps // 10), "--batch-size", "4", "--save-every", "10"]
    arguments = ["train", "data.csv", "--model", "model", *_TINY, *more, "-o"]
    begun = time.monotonic()
    if not _ran(folder, options.ranks, 1, [*arguments, "whole"], 3600):
        raise SystemExit((folder / "output.txt").read_text())
    usual = time.monotonic() - begun
    limit = _PATIENCE * (_WATCHDOG + usual)
    expected = _files(folder / "whole")
    if not expected:
        raise SystemExit((folder / "output.txt").read_text())
    print(f"undisturbed: {usual:.0f} s, {len(expected)} files; {machine()}", flush=True)
    chooses, results = random.Random(options.seed), []
    for number in range(options.runs):
        moment = ("any", "save", "merge")[number // 2 % 3] if number % 2 else "none"
        result = _one(folder, options, [*arguments, "run"], moment, chooses, usual, limit)
        result["same"] = _files(folder / "run") == expected
        results.append({"run": number, **result})
        print(json.dumps(results[-1]), flush=True)
        if options.log is not None:
            with options.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(results[-1]) + "\n")
        shutil.rmtree(folder / "run", ignore_errors=True)
    table = Table(title=f"{options.runs} runs of {options.ranks} ranks, {options.steps} steps; {machine()}")
    for heading in ("SIGKILL", "runs", "killed", "hung", "not resumed", "other files"):
        table.add_column(heading, justify="left" if heading == "SIGKILL" else "right")
    for moment in ("none", "any", "save", "merge"):
        rows = [result for result in results if result["moment"] == moment]
        counts = [sum(bool(row[name]) for row in rows) for name in ("killed", "hung", "not_resumed")]
        other = sum(not row["same"] for row in rows)
        table.add_row(moment, *map(str, (len(rows), *counts, other)))
    show(table)


def _one(
    folder: Path,
    options: argparse.Namespace,
    arguments: Sequence[str],
    moment: str,
    chooses: random.Random,
    usual: float,
    limit: float,
) -> dict[str, Any]:
    """Train once, with a SIGKILL at a moment of this kind, and resume until it ends."""
    rank, share = chooses.randrange(options.ranks), chooses.random()
    launched = Launched(folder, options.ranks, 1, ["-m", "mlxbert", *arguments], _WATCHDOG)
    killed, hung, after = False, False, None
    begun = time.monotonic()
    try:
        if moment != "none":
            _wait_for(moment, folder / "run", launched, share, usual)
            if (pid := launched.rank(rank)) is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed = True
        at = time.monotonic() - begun
        # A killed rank has to end the others within the time-out of the watchdog, and the launcher's own seconds.
        hung = not launched.wait(3 * _WATCHDOG if killed else limit)
        after = time.monotonic() - begun - at
    finally:
        launched.end()
    resumes = 0
    while killed and not (folder / "run" / "scores.json").is_file() and resumes < 3:
        resumes += 1
        # Killed before run.json was there, the run begins again.
        has_begun = (folder / "run" / "run.json").is_file()
        again = ["train", "--resume", "run"] if has_begun else arguments
        hung = not _ran(folder, options.ranks, 1, again, limit) or hung
    return {
        "moment": moment,
        "rank": rank,
        "at": round(at, 1),
        "ended_after": round(after or 0, 1),
        "killed": killed,
        "hung": hung,
        "resumes": resumes,
        "not_resumed": not (folder / "run" / "scores.json").is_file(),
        "output": "" if resumes < 2 and not hung else (folder / "output.txt").read_text()[-1500:],
    }


def _wait_for(moment: str, run: Path, launched: Launched, share: float, usual: float) -> None:
    """Wait for a moment of this kind; return early if the run ends."""
    begun = time.monotonic()
    if moment == "any":
        launched.wait(share * usual)
        return
    if moment == "save":
        launched.wait(0.8 * share * usual)
    while launched.process.poll() is None and time.monotonic() - begun < 3 * usual:
        if moment == "save" and any(TEMPORARY.fullmatch(file.name) for file in run.rglob(".*.tmp")):
            return
        if moment == "merge" and len(list(run.glob("logits/*.npz"))) == 2:
            time.sleep(share * 0.3)
            return
        time.sleep(0.0005)


def _files(run: Path) -> dict[str, bytes]:
    """Return the files of a finished run that hold no times."""
    if not (run / "scores.json").is_file():
        return {}
    names = [*run.glob("oof.*"), *run.glob("logits/*"), *run.glob("members/*/*.safetensors")]
    return {str(name.relative_to(run)): name.read_bytes() for name in sorted(names)}


def _steps(run: Path) -> list[dict[str, Any]]:
    """Return the events of the steps of a run."""
    log = run / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return [event for event in map(json.loads, lines) if event["event"] == "step"]


def _write_tiny(folder: Path, rows: int) -> None:
    """Write data.csv, and a converted random BERT as `model`."""
    import torch
    from transformers import BertConfig, BertModel

    from converter.convert import convert

    chooses = random.Random(0)
    texts: dict[str, int] = {}
    while len(texts) < rows:
        words = [chooses.choice(_WORDS) for _ in range(chooses.randint(3, 9))]
        texts[" ".join(words)] = int(words.count("a") > words.count("b"))
    lines = [f"{i},{text},{label}" for i, (text, label) in enumerate(texts.items())]
    (folder / "data.csv").write_text("\n".join(["id,text,y", *lines]) + "\n", encoding="utf-8")
    source = folder / "source"
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS]
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **sizes)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(source)
    (source / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    convert(source, folder / "model", verify=False)


if __name__ == "__main__":
    main()
