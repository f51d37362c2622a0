"""Fine-tuning on the disaster tweets: mlxbert's scores and time against a plain PyTorch loop's.

    python -m benchmarks.tweets --seeds 3
    python -m benchmarks.tweets --seeds 1 --rows 600        # a look

all-MiniLM-L6-v2 on the first of five stratified folds: 2 epochs, batches of 32, peak rate 5e-5, linear schedule after
10 % warm-up, AdamW with decay 0.01 on matrices, gradients clipped at 1, the checkpoint's own dropout, mean pooling and
a linear head with dropout 0.1, the last epoch's weights, threshold 0.5. The sides are a process each,
and take turns every 20 steps: a busy minute of the machine hits both, and one rests while the other works.

PyTorch's side is transformers' BertModel with its default attention and torch's fused AdamW. It gets the very batches
that ours gets, rows of similar length together, but cut to their own longest row and without the rows that fill the
last one up: less padding than ours, which pads to few lengths. Seconds are those of the training steps, ours with the
compilation of its step; reading, tokenizing and judging are left out on both sides.

A benchmark shows, and asserts nothing: the exit code is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import child
from benchmarks.inputs import MissingInputError, converted_minilm, training_file
from benchmarks.machine import load, machine
from heads.metrics import f1, roc_auc
from mlxbert.data.competitions import get_competition
from mlxbert.data.tokens import Batch, PredictionBatches, TrainingBatches
from mlxbert.runs.inputs import read_frame
from mlxbert.runs.prepare import Prepared, prepare
from mlxbert.runs.settings import RunSettings
from mlxbert.training.callbacks import Callback, EvaluationEvent, StepEvent
from mlxbert.training.config import TrainingConfig
from mlxbert.training.optimizer import Schedule

_RATE, _MAX_NORM = 5e-5, 1.0
_WORST_LOSS, _MOST_TIME = 0.01, 1.05
# Steps that a side does before the other one goes on.
TURN = 20


def configuration(seed: int) -> TrainingConfig:
    """What both sides are trained with."""
    return TrainingConfig(
        epochs=2,
        batch_size=32,
        rate=_RATE,
        max_norm=_MAX_NORM,
        metric="f1",
        keep="last",
        calibrate=False,
        seeds=(seed,),
    )


def prepared_rows(data: Path, model: Path, config: TrainingConfig, rows: int | None) -> Prepared:
    """Tokens, targets and folds, the same for both sides."""
    ready = get_competition("disaster-tweets")
    frame, _, _ = read_frame(data, text=ready.text, id_column=ready.id, encoding=None, kinds=None)
    if rows is not None:
        frame = frame.sample(min(rows, len(frame)), random_state=0).reset_index(drop=True)
    return prepare(frame, RunSettings.for_competition(ready, model=str(model)), config)


class StepClock(Callback):
    """Seconds spent in training steps, without the evaluations between them and the other side's turns."""

    def __init__(self) -> None:
        self.seconds, self.steps, self._since = 0.0, 0, 0.0

    def start(self) -> None:
        """Wait for the first turn."""
        next_turn()
        self._since = time.perf_counter()

    def step(self) -> None:
        """A step is done."""
        self.seconds += time.perf_counter() - self._since
        self.steps += 1
        if self.steps % TURN == 0:
            next_turn()
        self._since = time.perf_counter()

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        """The first step is about to begin."""
        self.start()

    def on_step(self, event: StepEvent) -> None:
        """A step is done."""
        self.step()

    def on_evaluation(self, event: EvaluationEvent) -> None:
        """Evaluations do not count."""
        self._since = time.perf_counter()


def next_turn() -> None:
    """Tell the parent that this side rests, and wait until it may go on."""
    print("turn", flush=True)
    sys.stdin.readline()


def mlxbert_side(prepared: Prepared, model: Path, config: TrainingConfig) -> tuple[np.ndarray, float, int]:
    """P(disaster) of the held-out rows, (n,), seconds of training, and steps."""
    import mlx.core as mx

    from mlxbert.runs.members import new_model
    from mlxbert.training.trainer import Member, Trainer

    mx.set_default_device(mx.cpu)
    member, clock = Member(config.seeds[0], 0), StepClock()
    made = new_model(prepared, RunSettings(model=str(model), target=("target",)), config, member)
    options: dict[str, Any] = {"task": prepared.task, "metric": "f1", "member": member, "callbacks": [clock]}
    outcome = Trainer(made, prepared.examples, prepared.folds[0], config, **options).fit()
    return outcome.predictions.values, clock.seconds, clock.steps


def torch_side(prepared: Prepared, model: Path, config: TrainingConfig) -> tuple[np.ndarray, float, int]:
    """The plain loop."""
    import torch
    from transformers import BertModel
    from transformers.utils import logging

    from examples.packaged_minilm import model_directory
    from mlxbert.training.trainer import Member

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(config.seeds[0])
    rows = prepared.folds[0].train
    tokens, targets = prepared.examples.tokens, np.asarray(prepared.examples.targets, np.float32)
    entropy = Member(config.seeds[0], 0).entropy()
    batches = TrainingBatches(tokens, rows, batch_size=config.batch_size, seed=entropy)
    encoder = BertModel.from_pretrained(model_directory(), add_pooling_layer=False)
    head = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(encoder.config.hidden_size, 1))
    torch.nn.init.normal_(head[1].weight, std=0.02)
    torch.nn.init.zeros_(head[1].bias)

    def logits(batch: Batch) -> Any:
        ids, types, mask = torch_inputs(batch)
        hidden = encoder(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        return head((hidden * weights).sum(1) / weights.sum(1))[:, 0]

    parameters = [*encoder.named_parameters(), *head.named_parameters()]
    matrices = [p for name, p in parameters if p.ndim > 1 and "LayerNorm" not in name]
    vectors = [p for name, p in parameters if not (p.ndim > 1 and "LayerNorm" not in name)]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=_RATE, fused=True)
    steps = len(batches) * config.epochs
    schedule = Schedule(steps, config.schedule, round(config.warmup * steps))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    encoder.train()
    clock = StepClock()
    clock.start()
    for epoch in range(config.epochs):
        for batch in batches.epoch(epoch):
            truth = torch.from_numpy(targets[batch.rows[: batch.real]])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits(batch), truth)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in parameters], _MAX_NORM)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            loss.item()  # a loop that shows its loss
            clock.step()
    encoder.eval()
    head.eval()
    held_out = PredictionBatches(tokens, prepared.folds[0].valid, batch_size=config.evaluation_batch_size)
    with torch.no_grad():
        outputs = [_filled(torch.sigmoid(logits(batch)).numpy(), batch) for batch in held_out]
    return held_out.restore(outputs), clock.seconds, clock.steps


def torch_inputs(batch: Batch) -> Iterator[Any]:
    """Ids, token types and mask, (B, L) int64, of the real rows, cut to the longest of them."""
    import torch

    length = int(batch.attention_mask[: batch.real].sum(1).max())
    for array in (batch.input_ids, batch.token_type_ids, batch.attention_mask):
        yield torch.from_numpy(array[: batch.real, :length].astype(np.int64))


def _filled(values: np.ndarray, batch: Batch) -> np.ndarray:
    return np.concatenate([values, np.repeat(values[:1], len(batch.rows) - batch.real)])


SIDES = {"mlxbert": mlxbert_side, "PyTorch": torch_side}


def measure_here(side: str, data: Path, model: Path, seed: int, rows: int | None) -> None:
    """The child's part: train one side once, and print scores and seconds."""
    config = configuration(seed)
    prepared = prepared_rows(data, model, config, rows)
    values, seconds, steps = SIDES[side](prepared, model, config)
    truth = np.asarray(prepared.examples.targets)[prepared.folds[0].valid].astype(int)
    scores = {"f1": f1(truth, (values >= 0.5).astype(int)), "auc": roc_auc(truth, values)}
    print(json.dumps({**scores, "seconds": seconds, "steps": steps, "rows": len(truth)}))


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each side (default 3)")
    parser.add_argument("--rows", type=int, help="so many of the 7,613 rows, for a quick look")
    parser.add_argument("--data", type=Path, help="folder of the competitions' data (default: MLXBERT_DATA)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.seeds < 1 or (options.rows is not None and options.rows < 100):
        parser.error("--seeds must be at least 1, --rows at least 100")
    if options.side:
        measure_here(options.side, options.data, options.model, options.seed, options.rows)
        return
    print(f"machine   {machine()}\nbefore    {load()}", flush=True)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as temporary:
        try:
            file = training_file("disaster-tweets", options.data)
            model = converted_minilm(Path(temporary) / "minilm")
        except MissingInputError as error:
            print(f"skipped: {error}")
            return
        fixed = ["--data", file, "--model", model, *(["--rows", options.rows] if options.rows else [])]
        print(f"\n{'':<10}{'seed':>5}{'F1':>9}{'AUC':>9}{'seconds':>10}{'steps':>7}{'held out':>10}")
        for seed in range(options.seeds):
            for side, one in in_turns(seed, fixed).items():
                found[side].append(one)
                print(f"{line(side, str(seed), one)}{one['steps']:>7}{one['rows']:>10}", flush=True)
    verdicts(found)
    print(f"after     {load()}")


def in_turns(seed: int, fixed: list[Any]) -> dict[str, dict[str, Any]]:
    """Train both sides, a process each, of which one works at a time; what each measured."""
    children = {side: child("tweets", "--side", side, "--seed", seed, *fixed) for side in SIDES}
    answers: dict[str, dict[str, Any]] = {}
    try:
        # Both have read their data and built their model before either is timed.
        for process in children.values():
            said(process)
        while len(answers) < len(children):
            for side, process in children.items():
                if side not in answers and (words := said(process, go_on=True)) != "turn":
                    answers[side] = json.loads(words)
    finally:
        for process in children.values():
            process.kill()
    return answers


def said(process: subprocess.Popen[str], *, go_on: bool = False) -> str:
    """The next line of a child, which may first be told to go on."""
    assert process.stdin is not None
    assert process.stdout is not None
    if go_on:
        process.stdin.write("\n")
        process.stdin.flush()
    words = process.stdout.readline().strip()
    if not words:
        raise SystemExit(f"failed: {process.args!r}")
    return words


def line(side: str, seed: str, one: dict[str, Any]) -> str:
    """Scores and seconds."""
    return f"{side:<10}{seed:>5}{one['f1']:>9.4f}{one['auc']:>9.4f}{one['seconds']:>10.1f}"


def verdicts(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print the means of each side, and whether ours keep the limits."""
    mean = {side: {key: statistics.mean(one[key] for one in many) for key in many[0]} for side, many in found.items()}
    for side, one in mean.items():
        print(line(side, "mean", one))
    print()
    for name, key in (("F1", "f1"), ("AUC", "auc")):
        difference = mean["mlxbert"][key] - mean["PyTorch"][key]
        verdict = "yes" if difference >= -_WORST_LOSS else "no"
        print(f"{name} at most {_WORST_LOSS} lower: {verdict}  ({difference:+.4f})")
    pairs = zip(found["mlxbert"], found["PyTorch"], strict=True)
    ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in pairs]
    ratio = mean["mlxbert"]["seconds"] / mean["PyTorch"]["seconds"]
    verdict = "yes" if ratio <= _MOST_TIME else "no"
    print(f"time at most {_MOST_TIME}x: {verdict}  ({ratio:.2f}x; pairs {min(ratios):.2f}x to {max(ratios):.2f}x)")


if __name__ == "__main__":
    main()
