"""A 12-step forecast of airline passengers: mlxbert, two naive forecasts, and mlxbert without its BERT.

    python -m benchmarks.airline

The last year is held out of everything. Of the rest, four forward-chaining folds: each model learns from forecasts
whose twelve months were all known when the first of its held-out forecasts is made. The held-out year is forecast by
the last fold's model, as `mlxbert predict` does it. Settings are those of `--competition airline-passengers`.

    seasonal naive    the value of the same month a year before
    x growth          that, times the last twelve months' sum over that of the twelve before
    zeroed            the same head, seeds and training, but the text's vector is zeros
    zeroed, tuned     that, trained as it likes best: 60 epochs at a rate of 3e-3, chosen like ours on the folds

What BERT adds is judged against the better of the last two: a head that reads a vector of zeros learns more slowly,
which is no skill of BERT's. The settings of both were chosen on the folds, never on the held-out year.

MAE in thousands of passengers; several seeds are averaged before they are scored. A benchmark shows, and asserts
nothing: the exit code is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.inputs import MissingInputError, converted_minilm, training_file
from benchmarks.machine import machine
from mlxbert.data.competitions import get_competition
from mlxbert.data.tokens import token_rows
from mlxbert.models.base import BertOutput
from mlxbert.runs.inputs import read_frame
from mlxbert.runs.members import new_model
from mlxbert.runs.prepare import Prepared, prepare
from mlxbert.runs.settings import RunSettings
from mlxbert.training.config import TrainingConfig
from mlxbert.training.held_out import predict_logits
from mlxbert.training.trainer import Member, Trainer
from mlxbert.with_head import BertWithHead

_SEASON = 12
_ALONE = {"epochs": 60, "head_rate": 3e-3}  # of the head without an encoder
_MATTERS = 0.02  # of the MAE; less than two per cent is not called a difference


class Nothing(nn.Module):
    """A pooling that tells the head nothing; no gradient reaches the encoder."""

    def __call__(self, output: BertOutput, mask: mx.array | None = None) -> mx.array:
        """(B, D) zeros."""
        hidden = output.last_hidden_state
        return mx.zeros((hidden.shape[0], hidden.shape[2]))


@dataclass(frozen=True, eq=False)
class Block:
    """Forecasts made one after the other: where they begin, how many there are, what came and what went before."""

    name: str
    truth: np.ndarray  # (n, 12)
    history: np.ndarray  # (n, window)


def blocks(prepared: Prepared) -> list[Block]:
    """The held-out forecasts of each fold, and the held-out year."""
    windows = prepared.examples.windows
    assert windows is not None
    made = []
    for fold in prepared.folds:
        rows = fold.valid
        name = f"{windows.made_at[rows[0]]} to {windows.made_at[rows[-1]]} ({len(rows)})"
        made.append(Block(name, prepared.examples.targets[rows], windows.history[rows]))
    values = prepared.problem.targets(prepared.history)[None, -windows.history.shape[1] :]
    return [*made, Block("the held-out year (1)", prepared.problem.targets(prepared.held_out)[None], values)]


def naive(block: Block) -> np.ndarray:
    """(n, 12): the same months a year before."""
    return block.history[:, -_SEASON:]


def growing(block: Block) -> np.ndarray:
    """(n, 12): these, grown as the last twelve months have over the twelve before."""
    before = block.history[:, -2 * _SEASON : -_SEASON].sum(axis=1, keepdims=True)
    return naive(block) * naive(block).sum(axis=1, keepdims=True) / before


def trained(
    prepared: Prepared, settings: RunSettings, config: TrainingConfig, seed: int, zeroed: bool
) -> list[np.ndarray]:
    """One seed's forecasts, (n, 12) of each block."""
    made = []
    for number in range(len(prepared.folds)):
        member = Member(seed, number)
        model = new_model(prepared, settings, config, member)
        if zeroed:
            model.pooling = Nothing()  # type: ignore[assignment]
        options: dict[str, Any] = {"task": prepared.task, "metric": prepared.metric.name, "member": member}
        outcome = Trainer(model, prepared.examples, prepared.folds[number], config, **options).fit()
        made.append(outcome.predictions.values)
    return [*made, last_year(prepared, model, config)]


def last_year(prepared: Prepared, model: BertWithHead, config: TrainingConfig) -> np.ndarray:
    """(1, 12): the forecast made at the end of what is known, as `mlxbert.runs.predict.forecast` makes it."""
    history, head = prepared.history, model.head
    series = np.asarray(prepared.problem.targets(history), np.float64)
    assert prepared.problem.time is not None
    times = np.array(list(history[prepared.problem.time]), "datetime64[M]")
    tokens = token_rows(
        prepared.tokenizer, prepared.problem.text.render(history.iloc[-1:]).texts, max_length=config.max_length
    )
    extra = head.inputs(history=series[None, -head.window :], made_at=times[-1:])  # type: ignore[attr-defined]
    return np.asarray(head.predict(predict_logits(model, tokens, batch_size=1, extra=extra))).reshape(1, -1)


def error(forecasts: list[np.ndarray], truths: list[Block]) -> float:
    """MAE over all forecasts."""
    pairs = zip(forecasts, truths, strict=True)
    return float(np.concatenate([np.abs(made - block.truth) for made, block in pairs]).mean())


def verdict(with_bert: list[float], without: list[float], better: int, count: int) -> str:
    """What BERT adds, from the folds' pooled MAE of each seed, and in how many of the folds it is better."""
    gains = [1 - ours / zeroed for ours, zeroed in zip(with_bert, without, strict=True)]
    numbers = ", ".join(f"{gain:+.1%}" for gain in gains)
    seeds = "one seed" if len(gains) == 1 else f"{len(gains)} seeds"
    said = f"the encoder improves the folds' MAE by {numbers} ({seeds}), and is better in {better} of {count} folds"
    one_series = "One series is no proof; its text also tells level and year, which the head is told nowhere else."
    if min(gains) > _MATTERS:
        return f"BERT helps here: {said}. {one_series}"
    if max(gains) < -_MATTERS:
        return f"BERT does harm here: {said}. The skill is the head's: history, season and calendar."
    return f"BERT adds nothing here that can be told from chance: {said}. The skill is the head's."


def main(argv: list[str] | None = None) -> None:
    """Train, and print the table and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="models of each fold (default 3, as the configuration)")
    parser.add_argument("--epochs", type=int, help="fewer, for a quick look")
    parser.add_argument("--data", type=Path, help="folder of the competitions' data (default: MLXBERT_DATA)")
    parser.add_argument("--model", type=Path, help="a converted directory (default: the packaged MiniLM, converted)")
    options = parser.parse_args(argv)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    ready = get_competition("airline-passengers")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            file = training_file(ready.name, options.data)
            model = options.model or converted_minilm(Path(temporary) / "minilm")
        except MissingInputError as missing:
            print(f"skipped: {missing}")
            return
        numbers = {"metric": ready.metric, "folds": ready.folds, "fold_kind": ready.fold_kind, **ready.training}
        config = TrainingConfig.make({**numbers, **({"epochs": options.epochs} if options.epochs else {})})
        settings = RunSettings.for_competition(ready, model=str(model), hold_out=_SEASON)
        frame, _, _ = read_frame(file, text=ready.text, id_column=ready.id, encoding=None, kinds=None)
        prepared = prepare(frame, settings, config)
        alone = TrainingConfig.make({**config.to_dict(), **({} if options.epochs else _ALONE)})
        seeds = range(options.seeds)
        found = {
            "mlxbert": [trained(prepared, settings, config, seed, zeroed=False) for seed in seeds],
            "zeroed": [trained(prepared, settings, config, seed, zeroed=True) for seed in seeds],
            "zeroed, tuned": [trained(prepared, settings, alone, seed, zeroed=True) for seed in seeds],
        }
    truths = blocks(prepared)
    sides = {
        **{side: averaged(several) for side, several in found.items()},
        "seasonal naive": [naive(block) for block in truths],
        "x growth": [growing(block) for block in truths],
    }
    show(sides, truths)
    ratio = error(sides["mlxbert"][:-1], truths[:-1]) / error(sides["seasonal naive"][:-1], truths[:-1])
    print(f"MAE over seasonal naive's below 1: {'yes' if ratio < 1 else 'no'}  ({ratio:.2f} over the folds)")
    each = {side: [error(one[:-1], truths[:-1]) for one in several] for side, several in found.items()}
    alone_best = min(("zeroed", "zeroed, tuned"), key=lambda side: sum(each[side]))
    pairs = zip(sides["mlxbert"][:-1], sides[alone_best][:-1], truths[:-1], strict=True)
    better = sum(error([ours], [block]) < error([zeroed], [block]) for ours, zeroed, block in pairs)
    print(verdict(each["mlxbert"], each[alone_best], better, len(truths) - 1))
    print(machine())


def averaged(seeds: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The mean forecast of several seeds, block by block."""
    return [np.mean(several, axis=0) for several in zip(*seeds, strict=True)]


def show(sides: dict[str, list[np.ndarray]], truths: list[Block]) -> None:
    """Each block's MAE, that over all folds, and over seasonal naive's."""
    table = Table(title="MAE of the 12 months ahead, thousand passengers")
    table.add_column("made (how many)", no_wrap=True)
    for side in sides:
        table.add_column(side, justify="right")
    for number, block in enumerate(truths):
        if number == len(truths) - 1:
            table.add_section()
        table.add_row(block.name, *(f"{error([made[number]], [block]):.1f}" for made in sides.values()))
        if number == len(truths) - 2:
            pooled = [error(made[:-1], truths[:-1]) for made in sides.values()]
            naively = error(sides["seasonal naive"][:-1], truths[:-1])
            table.add_section()
            table.add_row("all folds", *(f"{one:.1f}" for one in pooled))
            table.add_row("… over seasonal naive", *(f"{one / naively:.2f}" for one in pooled))
    Console().print(table)


if __name__ == "__main__":
    main()
