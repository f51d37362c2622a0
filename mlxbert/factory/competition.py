"""`Competition`: all that turns a competition's files into a model and a submission, as data; and their registry.

The ready ones are in `mlxbert.factory.competitions`; `register_competition` adds another, which is all there is to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from heads.errors import HeadError, unknown_name
from heads.head_registry import COMPETITION_TYPES
from heads.metrics import get_metric
from mlxbert.errors import MLXBertError
from mlxbert.factory.text_columns import RowText

FoldKind = Literal["plain", "stratified", "binned", "multilabel_stratified", "group", "forward"]
FOLD_KINDS: Mapping[str, tuple[FoldKind, ...]] = MappingProxyType(
    {
        "binary": ("stratified", "plain", "group"),
        "multiclass": ("stratified", "plain", "group"),
        "multilabel": ("multilabel_stratified", "plain", "group"),
        "regression": ("binned", "plain", "group"),
        "ordinal": ("stratified", "plain", "group"),
        "time_series": ("forward",),
    }
)
"""How rows are dealt into folds, by competition type, the usual one first. "binned": stratified by quantiles."""


def fold_kinds(task: str, time: str | None) -> tuple[FoldKind, ...]:
    """Likewise where rows may have times: what comes later is then held out, whatever the task."""
    kinds = FOLD_KINDS[task]
    return kinds if time is None or "forward" in kinds else ("forward", *kinds)


class CompetitionError(MLXBertError):
    """A configuration that contradicts itself, an unknown name, or one that is taken."""


@dataclass(frozen=True)
class Submission:
    """The file to hand in.

    Attributes:
        id_column: the name of its first column; its values are the test file's id column, or the row number from 0
            where the data have none.
        columns: the prediction columns.
        values: "labels" (decided ones), "probabilities" (of the positive class, or of each label), or "values" in
            the target's units.
    """

    id_column: str
    columns: tuple[str, ...]
    values: Literal["labels", "probabilities", "values"]


@dataclass(frozen=True)
class Competition:
    """A ready configuration.

    Attributes:
        name: what it is looked up by.
        title: for people.
        task: the competition type, which chooses the head.
        target: the target's column, or columns.
        text: how a row becomes a text.
        metric: what is optimized and reported, of `heads.metrics.METRICS`: the competition's own where there is one.
        submission: the format.
        train: the name of the training file.
        test: that of the file to predict; None: there is none, hold rows out.
        id: the column that names a row; None: there is none.
        group: rows of one value never lie on both sides of a fold.
        time: the column of times, for forward-chaining folds.
        folds: how many.
        fold_kind: how; None: the usual one (`fold_kinds`).
        head: options of the head: classes, horizon, log_targets, …: the target's transform is one of them.
        pooling: of `mlxbert.pooling.spec.CHOICES`.
        training: settings of `mlxbert.training.config.TrainingConfig` that these data need, in place of its defaults.
        checkpoint: the default encoder's id on the Hub, to be converted once.
        url: where the data come from.
        license: of the data, as their page has it.
        note: what else one must know about the data.
    """

    name: str
    title: str
    task: str
    target: tuple[str, ...]
    text: RowText
    metric: str
    submission: Submission
    url: str
    license: str
    train: str = "train.csv"
    test: str | None = "test.csv"
    id: str | None = None
    group: str | None = None
    time: str | None = None
    folds: int = 5
    fold_kind: FoldKind | None = None
    head: Mapping[str, Any] = field(default_factory=dict, hash=False)
    pooling: str = "mean"
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)
    checkpoint: str = "sentence-transformers/all-MiniLM-L6-v2"
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be: see `CompetitionError`."""
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise CompetitionError(f"competition name {self.name!r}: give lower case words joined by '-'")
        try:
            if self.task not in COMPETITION_TYPES:
                raise unknown_name("competition type", self.task, COMPETITION_TYPES)
            metric = get_metric(self.metric)
        except HeadError as error:
            raise CompetitionError(f"competition {self.name!r}: {error}") from error
        kinds = fold_kinds(self.task, self.time)
        if self.fold_kind is None:
            object.__setattr__(self, "fold_kind", kinds[0])
        object.__setattr__(self, "head", dict(self.head))
        object.__setattr__(self, "training", dict(self.training))
        leaked = [name for name in self.target if name in self.text.columns and self.task != "time_series"]
        labels_of_one = self.task in ("binary", "multiclass", "ordinal")
        problems = {
            f"metric {self.metric!r} is for {', '.join(metric.competition_types)}, not for {self.task}": (
                self.task not in metric.competition_types
            ),
            f"folds must be a whole number from 2 on, not {self.folds!r}": (
                isinstance(self.folds, bool) or not isinstance(self.folds, int) or self.folds < 2
            ),
            f"fold_kind {self.fold_kind!r} does not fit {self.task}; fitting: {', '.join(kinds)}": (
                self.fold_kind not in kinds
            ),
            "fold_kind 'group' needs group='column'": self.fold_kind == "group" and self.group is None,
            "fold_kind 'forward' needs time='column'": self.fold_kind == "forward" and self.time is None,
            "there is no target": not self.target,
            f"{self.task} has one target column, not {len(self.target)}": (
                len(self.target) > 1 and (labels_of_one or self.task == "time_series")
            ),
            f"the text has the target column {leaked[0] if leaked else None!r}, which gives the answer away": bool(
                leaked
            ),
            f"a submission of {self.submission.values} does not fit {self.task}": (
                (self.submission.values == "values") != (self.task in ("regression", "time_series"))
            ),
            "the submission has no prediction columns, or one twice": (
                not self.submission.columns
                or len({self.submission.id_column, *self.submission.columns}) <= len(self.submission.columns)
            ),
        }
        for problem, found in problems.items():
            if found:
                raise CompetitionError(f"competition {self.name!r}: {problem}")

    @property
    def converted(self) -> str:
        """Where `mlxbert-convert` puts the default checkpoint unless told otherwise."""
        return f"mlx_models/{self.checkpoint.rsplit('/', 1)[-1]}"

    @property
    def converted_places(self) -> tuple[str, ...]:
        """Where the converted default checkpoint may lie: `converted`, or where `make demo` puts all-MiniLM-L6-v2."""
        demo = ("mlx_models/minilm",) if self.checkpoint == "sentence-transformers/all-MiniLM-L6-v2" else ()
        return (self.converted, *demo)


_COMPETITIONS: dict[str, Competition] = {}


def register_competition(competition: Competition) -> Competition:
    """Make a configuration known under its name; returns it.

    Raises:
        CompetitionError: the name is taken by another one.
    """
    if _COMPETITIONS.setdefault(competition.name, competition) != competition:
        raise CompetitionError(
            f"competition {competition.name!r} is registered already ({_COMPETITIONS[competition.name].title}); "
            "fix: give one another name, or unregister_competition it first"
        )
    return competition


def unregister_competition(name: str) -> None:
    """Forget a configuration; for notebooks, where a cell that registers one is changed and run again."""
    get_competition(name)
    del _COMPETITIONS[name]


def get_competition(name: str) -> Competition:
    """The configuration of this name.

    Raises:
        CompetitionError: there is none; the nearest names are given.
    """
    found = registered_competitions()
    if name not in found:
        raise CompetitionError(str(unknown_name("competition", name, found)))
    return found[name]


def registered_competitions() -> Mapping[str, Competition]:
    """Every configuration by name, in the order of registration; a copy."""
    from mlxbert.factory import competitions  # noqa: F401 - importing it registers the ready ones

    return dict(_COMPETITIONS)
