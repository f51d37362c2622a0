"""Scores of short fine-tunings over learning rates, warm-up, head rates and layer decays: evidence for the defaults.

    python -m benchmarks.defaults --table                    # print the tables of the recorded runs
    python -m benchmarks.defaults --write                    # put them into docs/tuning.md
    python -m benchmarks.defaults --runs runs.jsonl          # train what is missing there: two hours
    python -m benchmarks.defaults --runs runs.jsonl --grid warmup --seeds 1 --sets tweets

all-MiniLM-L6-v2 (or all-mpnet-base-v2) on four data sets, at most 2,000 rows each, with a head of the usual kind.
Every run has batches of 32 rows and the default settings of `mlxbert train`, except the one setting that its grid
varies, and except these: texts have at most 32 tokens, the weights are those of the last epoch instead of the best
evaluation's, and nothing is calibrated. A seed chooses the rows, the held-out part, the
order of the rows, the head's first weights and dropout. All values of a setting get the same seeds, so their
differences are paired.

A finished run is one line of the file. A second start skips the runs that are there.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import math
import os
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inputs import PACKAGED, MissingInputError, packaged_source
from converter.convert import convert
from heads.metrics import kendall
from mlxbert.data.text_columns import RowText
from mlxbert.runs.inputs import read_frame
from mlxbert.runs.members import new_model
from mlxbert.runs.prepare import Prepared, prepare
from mlxbert.runs.settings import RunSettings
from mlxbert.training.callbacks import EvaluationEvent
from mlxbert.training.config import TrainingConfig
from mlxbert.training.trainer import Member, Trainer

RECORDED = Path(__file__).parent / "results" / "defaults.jsonl"
NOTES = Path(__file__).parent.parent / "docs" / "tuning.md"
BATCH, LENGTH = 32, 32
_BEGIN, _END = "<!-- python -m benchmarks.defaults --write: {} -->", "<!-- end -->"
_MARKED = re.compile(_BEGIN.format("(.*?)") + r"\n(.*?)" + _END, re.DOTALL)


@dataclass(frozen=True)
class DataSet:
    """A sample of a data set.

    Attributes:
        file: below the folder of the data.
        task: the competition type.
        target: columns.
        text: the column of the texts.
        rows: rows to learn from and held-out rows together.
        held_out: number of the latter; equal texts stay on one side, so it can be missed by some.
        metric: of the tables; if possible, one that needs no threshold.
        title: of its column.
    """

    file: str
    task: str
    target: tuple[str, ...]
    text: str
    rows: int
    held_out: int
    metric: str
    title: str


SETS = {
    "tweets": DataSet(
        file="disaster-tweets/train.csv",
        task="binary",
        target=("target",),
        text="text",
        rows=880,
        held_out=400,
        metric="roc_auc",
        title="tweets: ROC AUC",
    ),
    "banking77": DataSet(
        file="banking77/train.csv",
        task="multiclass",
        target=("category",),
        text="text",
        rows=1200,
        held_out=400,
        metric="accuracy",
        title="banking77: accuracy",
    ),
    "alexa": DataSet(
        file="alexa-reviews/amazon_alexa.tsv",
        task="ordinal",
        target=("rating",),
        text="verified_reviews",
        rows=1040,
        held_out=400,
        metric="mean_kendall",
        title="alexa: Kendall τ",
    ),
    # The other three labels of this small sample have fewer than ten positives.
    "jigsaw": DataSet(
        file="jigsaw-toxic/train.csv",
        task="multilabel",
        target=("toxic", "obscene", "insult"),
        text="comment_text",
        rows=282,
        held_out=112,
        metric="roc_auc_macro",
        title="jigsaw: ROC AUC",
    ),
}


@dataclass(frozen=True)
class Setting:
    """What a run is trained with.

    Attributes:
        rate: peak learning rate of the encoder.
        warmup: share of the steps.
        head: rate of the head, as a multiple of the encoder's.
        decay: rate of a layer, as a multiple of that of the layer above it.
    """

    rate: float
    warmup: float = 0.1
    head: float = 1.0
    decay: float = 1.0


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        varied: the field of `Setting` that tells its lines apart.
        title: of that column.
        settings: a line each; the first one is what the others are compared with.
    """

    varied: str
    title: str
    settings: tuple[Setting, ...]


_HIGH, _CHOSEN = Setting(3e-4), Setting(1.5e-4, head=10.0)
_HEAD = "rate of the head / encoder"
GRIDS = {
    "rate": Grid("rate", "rate", tuple(Setting(rate) for rate in (6e-5, 1.5e-4, 3e-4, 6e-4, 1e-3))),
    "head": Grid("head", _HEAD, (_HIGH, Setting(3e-4, head=3.0), Setting(3e-4, head=10.0), Setting(3e-4, head=30.0))),
    "head-lower": Grid("head", _HEAD, (Setting(1.5e-4), _CHOSEN)),
    "rate-head": Grid("rate", "rate of the encoder", (_CHOSEN, Setting(3e-4, head=10.0))),
    "warmup": Grid("warmup", "warm-up", (_HIGH, Setting(3e-4, warmup=0.0), Setting(3e-4, warmup=0.2))),
    "decay": Grid("decay", "layer decay", (_HIGH, Setting(3e-4, decay=0.9), Setting(3e-4, decay=0.8))),
}
"""The tables."""


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        model: of `PACKAGED`.
        data: of `SETS`.
        epochs, seed, setting: its arguments.
    """

    model: str
    data: str
    epochs: int
    seed: int
    setting: Setting


@functools.lru_cache(maxsize=8)
def prepared_rows(name: str, seed: int, data: Path, model: Path) -> Prepared:
    """Return tokens, targets and the one fold of a seed's sample."""
    about = SETS[name]
    file = data / about.file
    if not file.is_file():
        raise MissingInputError(f"{file} is not there")
    settings = run_settings(name, model)
    frame, _, _ = read_frame(file, text=settings.text, id_column=None, encoding=None, kinds=None)
    frame = frame[[*about.target, about.text]].sample(min(about.rows, len(frame)), random_state=seed)
    return prepare(frame.reset_index(drop=True), settings, configuration(name, 1, seed, GRIDS["rate"].settings[0]))


def run_settings(name: str, model: Path) -> RunSettings:
    """Return the settings of a run that do not concern the training."""
    about = SETS[name]
    return RunSettings(model=str(model), target=about.target, text=RowText(about.text), task=about.task)


def configuration(name: str, epochs: int, seed: int, setting: Setting) -> TrainingConfig:
    """Return the training's configuration."""
    return TrainingConfig(
        epochs=epochs,
        batch_size=BATCH,
        max_length=LENGTH,
        rate=setting.rate,
        head_rate=setting.rate * setting.head,
        warmup=setting.warmup,
        layer_decay=setting.decay,
        keep="last",
        calibrate=False,
        folds=1,
        valid_size=SETS[name].held_out,
        fold_seed=seed,
        seeds=(seed,),
    )


class _LastEvaluation(Trainer):
    """Evaluates at the end only: the weights of the last epoch are kept whatever the others' scores."""

    def evaluate(self) -> EvaluationEvent:
        event = {**self._member_and_epoch(), "step": self.step.step, "loss": math.nan}
        return EvaluationEvent(**event, metrics={self.metric.name: math.nan}, best=True)


def measure(plan: Plan, data: Path, model: Path) -> dict[str, Any]:
    """Train once; return the record of the run."""
    config = configuration(plan.data, plan.epochs, plan.seed, plan.setting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of texts that are cut to `LENGTH`, and of rare labels
        prepared = prepared_rows(plan.data, plan.seed, data, model)
        member = Member(plan.seed, 0)
        trainer = _LastEvaluation(
            new_model(prepared, run_settings(plan.data, model), config, member),
            prepared.examples,
            prepared.folds[0],
            config,
            task=prepared.task,
            member=member,
        )
        begin = time.perf_counter()
        outcome = trainer.fit()
    metrics = dict(outcome.metrics)
    if prepared.task == "ordinal":
        # The usual metrics compare labels, and a weak model gives every row the commonest label.
        truth = trainer.model.head.metric_targets(prepared.examples.targets[prepared.folds[0].valid])
        values = outcome.predictions.values
        metrics["mean_kendall"] = kendall(truth, values @ np.arange(values.shape[1]))
    return {
        "model": plan.model,
        "data": plan.data,
        "epochs": plan.epochs,
        "seed": plan.seed,
        **vars(plan.setting),
        "metrics": {name: round(value, 5) for name, value in metrics.items() if value == value},
        "loss": round(trainer.held_out.loss(outcome.logits), 5),
        "steps": trainer.steps,
        "train": len(prepared.folds[0].train),
        "held_out": len(prepared.folds[0].valid),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def plan_of(record: dict[str, Any]) -> Plan:
    """Return the plan that a record is of."""
    setting = Setting(*(record[name] for name in ("rate", "warmup", "head", "decay")))
    return Plan(record["model"], record["data"], record["epochs"], record["seed"], setting)


def records(file: Path) -> list[dict[str, Any]]:
    """Return the records of the finished runs in a file; none if it is not there."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.strip()]


def plans(
    model: str, grids: Sequence[str], sets: Sequence[str], epochs: Sequence[int], seeds: Sequence[int]
) -> Iterator[Plan]:
    """Yield every run, those of a seed together: one that is cut off leaves whole tables of fewer seeds."""
    for seed, grid, number in itertools.product(seeds, grids, epochs):
        for setting, data in itertools.product(GRIDS[grid].settings, sets):
            yield Plan(model, data, number, seed, setting)


def train_missing(wanted: Iterable[Plan], file: Path, data: Path, models: Path) -> None:
    """Train what the file lacks; add a line for each run when it is finished."""
    for plan in wanted:
        # Another process may write other runs into the same file.
        if plan in {plan_of(record) for record in records(file)}:
            continue
        line = json.dumps(measure(plan, data, converted(plan.model, models)))
        gc.collect()  # a trainer and its compiled step refer to each other
        with file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        print(line, flush=True)


def converted(model: str, models: Path) -> Path:
    """Return the directory of a packaged model, converted if it is not there.

    Raises:
        MissingInputError: its package is not installed.
    """
    out = models / model
    return out if out.is_dir() else convert(packaged_source(model), out, verify=False).path


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        setting: what the runs were trained with.
        scores: by data set and seed.
        differences: to the base line, by data set: the mean over the seeds that both have.
    """

    setting: Setting
    scores: dict[str, dict[int, float]]
    differences: dict[str, float]


def rows(grid: Grid, epochs: int, found: Iterable[dict[str, Any]]) -> list[Row]:
    """Return the lines of MiniLM's table, in the order of the setting that the grid varies."""
    scores: dict[Setting, dict[str, dict[int, float]]] = {}
    for record in found:
        plan = plan_of(record)
        if plan.setting in grid.settings and (plan.model, plan.epochs) == ("minilm", epochs):
            of_setting = scores.setdefault(plan.setting, {name: {} for name in SETS})
            of_setting[plan.data][plan.seed] = record["metrics"][SETS[plan.data].metric]
    base = scores.get(grid.settings[0], {})
    lines = []
    for setting in sorted(scores, key=lambda setting: getattr(setting, grid.varied)):
        differences = {}
        for name, of_seeds in scores[setting].items():
            shared = sorted(set(of_seeds) & set(base.get(name, {})))
            if shared:
                differences[name] = statistics.mean(of_seeds[seed] - base[name][seed] for seed in shared)
        lines.append(Row(setting, scores[setting], differences))
    return lines


def table(grid: Grid, found: Sequence[dict[str, Any]]) -> str:
    """Return a grid's table in Markdown, a line for each value and number of epochs; "" if it compares nothing."""
    lines: list[tuple[str, ...]] = []
    for epochs in sorted({record["epochs"] for record in found}):
        block = rows(grid, epochs, found)
        for row in block if len(block) > 1 else ():
            value = getattr(row.setting, grid.varied)
            lines.append(
                (
                    str(epochs),
                    f"{value:.1e}" if grid.varied == "rate" else f"{value:g}",
                    *(_cell(list(row.scores[name].values())) for name in SETS),
                    "(base)" if row.setting == grid.settings[0] else _difference(row),
                )
            )
    if not lines:
        return ""
    head = ("epochs", grid.title, *(about.title for about in SETS.values()), "to the base")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *lines))


def _difference(row: Row) -> str:
    """Return the mean difference over the data sets, with their number if it is not all."""
    if not row.differences:
        return "not compared"
    few = len(row.differences) < len(row.scores)
    count = f", {len(row.differences)} of {len(row.scores)} sets" if few else ""
    return f"{statistics.mean(row.differences.values()):+.3f}{count}"


def _cell(scores: list[float]) -> str:
    """Return mean, deviation and number of scores."""
    if not scores:
        return "not run"
    deviation = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.3f}{deviation} ({len(scores)})"


def tables(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return every table that compares something, by the name of its grid."""
    made = {name: table(grid, found) for name, grid in GRIDS.items()}
    return {name: content for name, content in made.items() if content}


def with_tables(text: str, found: Sequence[dict[str, Any]]) -> str:
    """Return the text of the notes with the tables of these runs between their markers.

    Raises:
        ValueError: a table has no marker; it is named.
    """
    made = tables(found)
    parts = _MARKED.split(text)  # text, name, old table, text, name, …
    names = parts[1::3]
    if missing := sorted(set(made) - set(names)):
        raise ValueError(f"{NOTES.name} has no place for {', '.join(missing)}; fix: add {_BEGIN.format(missing[0])}")
    for place, name in enumerate(names):
        content = f"{made[name]}\n" if name in made else ""
        parts[3 * place + 1 : 3 * place + 3] = [f"{_BEGIN.format(name)}\n{content}{_END}", ""]
    return "".join(parts)


def main(argv: list[str] | None = None) -> None:
    """Train what is missing, or print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the tables; train nothing")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {NOTES.name}; train nothing")
    parser.add_argument(
        "--runs", type=Path, help="JSON lines of finished runs; needed to train (tables: default the recorded ones)"
    )
    parser.add_argument(
        "--model", choices=PACKAGED, default="minilm", help="the encoder; the tables show minilm, the default"
    )
    parser.add_argument("--grid", choices=GRIDS, nargs="+", default=list(GRIDS), help="settings to vary")
    parser.add_argument("--sets", choices=SETS, nargs="+", default=list(SETS), help="data sets")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3], help="lengths of the runs (default: 1 3)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: MLXBERT_DATA)")
    parser.add_argument("--models", type=Path, help="folder of converted encoders (default: convert for this call)")
    options = parser.parse_args(argv)
    if options.runs is None:
        if not (options.write or options.table):
            parser.error("training needs --runs FILE; --table and --write show what is recorded")
        options.runs = RECORDED
    if options.write:
        NOTES.write_text(with_tables(NOTES.read_text(encoding="utf-8"), records(options.runs)), encoding="utf-8")
    elif options.table:
        for name, content in tables(records(options.runs)).items():
            print(f"{name}\n\n{content}\n")
    else:
        wanted = plans(options.model, options.grid, options.sets, options.epochs, options.seeds)
        data = options.data or os.environ.get("MLXBERT_DATA")
        with tempfile.TemporaryDirectory() as temporary:
            try:
                if not data:
                    raise MissingInputError("no data; fix: --data or MLXBERT_DATA, a folder with the data sets")
                train_missing(wanted, options.runs, Path(data), options.models or Path(temporary))
            except MissingInputError as error:
                print(f"skipped: {error}")


if __name__ == "__main__":
    main()
