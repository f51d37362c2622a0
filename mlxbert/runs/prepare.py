"""Prepare and check what the models of a run share: rows, texts, targets and folds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from heads.forward_chaining import Windows
from heads.metrics import Metric, metric_of
from mlxbert.checkpoint import load_tokenizer, resolve
from mlxbert.data.competitions import FoldKind, fold_kinds
from mlxbert.data.folds import Fold, FoldError, FoldWarning, make_folds, validation_fold
from mlxbert.data.frames import DataWarning, Table, plain, shown
from mlxbert.data.infer_task import InferredTask
from mlxbert.data.text_columns import RowText, id_values, render_texts
from mlxbert.data.tokens import token_rows
from mlxbert.errors import first_ten
from mlxbert.factory import Problem, check_options, make_problem, target_of
from mlxbert.files.output_file import is_file_of, read_manifest
from mlxbert.files.reading import expand_home, read_json
from mlxbert.models.architecture import config_from_hf
from mlxbert.runs.files import RunError
from mlxbert.runs.settings import RunSettings
from mlxbert.tokenization.tokenizer import Tokenizer
from mlxbert.training.config import TrainingConfig
from mlxbert.training.held_out import Examples

_CLASSES = ("binary", "multiclass", "ordinal")
_SHOWN = 5


def check_labels(folds: Sequence[Fold], targets: np.ndarray[Any, Any], task: InferredTask, kind: str) -> None:
    """Find classes, or labels, that a side of a fold lacks.

    Plain folds can be replaced by stratified ones, so a missing class is an error there. Groups, times and a
    validation file are the choice of the user, and many labels are seldom all in each fold: there it is a warning.

    Args:
        folds: of all rows.
        targets: of all rows, as `target_values` gives them.
        task: what the targets are.
        kind: how the folds were dealt; stratified folds are checked already.

    Raises:
        FoldError: plain folds lack a class, or a fold has only one class to learn from.

    Warns:
        FoldWarning: other folds lack a class, or a label.
    """
    if kind in ("stratified", "multilabel_stratified"):
        return
    if task.task in _CLASSES:
        missing = list(_without_class(folds, targets))
        if missing and kind == "plain":
            raise FoldError(
                "plain folds leave a side without a class; fix: fold_kind='stratified', or fewer folds\n"
                + first_ten(missing)
            )
    elif task.task == "multilabel":
        missing = list(_without_label(folds, targets, task.classes or ()))
    else:
        return
    if missing:
        more = f", … and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        warnings.warn(f"not every metric is defined: {', '.join(missing[:_SHOWN])}{more}", FoldWarning, stacklevel=2)


def _sides(folds: Sequence[Fold]) -> Iterator[tuple[int, str, np.ndarray[Any, Any]]]:
    for number, fold in enumerate(folds):
        yield number, "to learn from", fold.train
        yield number, "held out", fold.valid


def _without_class(folds: Sequence[Fold], targets: np.ndarray[Any, Any]) -> Iterator[str]:
    values = [plain(value) for value in targets]
    classes = dict.fromkeys(values)
    for number, side, rows in _sides(folds):
        here = {values[row] for row in rows}
        if side == "to learn from" and len(here) == 1:
            raise FoldError(
                f"fold {number} has one class only to learn from ({shown(*here)}); fix: fewer folds, or other groups"
            )
        yield from (f"fold {number} has no {shown(label)!r} {side}" for label in classes if label not in here)


def _without_label(folds: Sequence[Fold], targets: np.ndarray[Any, Any], names: Sequence[Any]) -> Iterator[str]:
    for number, side, rows in _sides(folds):
        for column, name in enumerate(names):
            for value, what in ((1, "positive"), (0, "negative")):
                if (targets[:, column] == value).any() and not (targets[rows, column] == value).any():
                    yield f"fold {number} has no {what} of {str(name)!r} {side}"


def check_weights(directory: Path) -> None:
    """Compare the weights with the manifest, to find a damaged file before a long training.

    Raises:
        RunError: they differ.
    """
    for name, record in (read_manifest(directory) or {}).items():
        if name.endswith(".safetensors") and not is_file_of(directory / name, record):
            raise RunError(
                f"{directory}: {name} is not the file that manifest.json lists; fix: convert or download it again"
            )


# Limit of the probabilities of all rows and classes (4 GB in float32), and of the rows of a confusion matrix.
_MOST_PROBABILITIES, _MOST_CLASSES = 1 << 30, 1 << 14


def check_size(task: InferredTask, rows: int) -> None:
    """Refuse so many classes that their predictions do not fit in memory.

    Raises:
        RunError: says how much memory they need.
    """
    count = len(task.classes or ())
    if count * rows > _MOST_PROBABILITIES or count > _MOST_CLASSES:
        raise RunError(
            f"target {', '.join(task.target)!r} has {count} classes in {rows} rows: their probabilities alone take "
            f"{count * rows * 4 / 1e9:.1f} GB; fix: merge or drop rare classes (is it free text, or an id?)"
        )


def warn_of_numbers(frame: Any, text: RowText) -> None:
    """Warn of a text column that holds only numbers."""
    for part in (text.first, text.second):
        if not isinstance(part, str) or "{" in part:
            continue
        values = Table(frame).column(part, "text column").present
        if values and all(_is_number(value) for value in values):
            warnings.warn(
                f"the text is column {part!r}, which holds numbers alone, such as {values[0]}: a language model reads "
                "their digits; fix: --text with the column of the text, or several columns",
                DataWarning,
                stacklevel=3,
            )


def _is_number(value: Any) -> bool:
    if not isinstance(value, str):
        return isinstance(value, int | float)
    try:
        float(value)
    except ValueError:
        return False
    return True


def check_columns(frame: Any, settings: RunSettings, what: str) -> None:
    """Refuse a frame that lacks a named column; `what` names the frame in the message.

    Raises:
        DataError: it gives the nearest names.
    """
    table = Table(frame, what)
    roles = {
        "target column": settings.target,
        "text column": () if settings.text is None else settings.text.columns,
        "id column": _one(settings.id),
        "group column": _one(settings.group),
        "time column": _one(settings.time),
        "ignored column": settings.ignore,
    }
    for role, names in roles.items():
        for name in names:
            table.find(name, role)


def _one(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)


@dataclass(frozen=True, eq=False)
class Prepared:
    """The data that the models of a run share.

    Attributes:
        directory: the converted encoder.
        tokenizer: its tokenizer.
        problem: how a frame is read.
        metric: the metric to optimize.
        examples: N rows.
        folds: the folds of these rows.
        fold_kind: how they were dealt.
        rows: (N,) number of each row in the data (those of a validation file follow those of the training file).
        id_column: column that names a row; None: there is none.
        ids: id of each row.
        texts: text of each row, for the table of the worst rows; `pairs`: the second texts; None: no pairs.
        held_out: a frame of the rows held out of everything; None: there are none.
        history: of a time series with rows held out: the rows before them.
    """

    directory: Path
    tokenizer: Tokenizer
    problem: Problem
    metric: Metric
    examples: Examples
    folds: tuple[Fold, ...]
    fold_kind: str
    rows: np.ndarray
    id_column: str | None
    ids: list[str] | None
    texts: list[str]
    pairs: list[str] | None
    held_out: Any = None
    history: Any = None

    @property
    def task(self) -> str:
        """The competition type."""
        return self.problem.task.task

    @property
    def limit(self) -> int:
        """Longest text in tokens; longer texts are cut."""
        return self.examples.tokens.limit


def prepare(
    frame: Any, settings: RunSettings, config: TrainingConfig, valid: Any = None, what: str = "the frame"
) -> Prepared:
    """Make the examples and folds of a pandas frame (and of one of validation rows); `what` names it in messages.

    The same arguments give the same result.

    Raises:
        MLXBertError: a column is missing, nothing can be learned from the target, ids repeat, folds cannot be made,
            the checkpoint was never converted, … (each in one line with the fix).
    """
    directory = resolve(settings.model, settings.revision)
    check_weights(directory)
    check_columns(frame, settings, what)
    count = len(frame)
    frame, rows = _with_targets(frame, np.arange(count), settings)
    problem = _problem(frame, settings)
    task = problem.task.task
    if task != "multilabel":  # only a multilabel head learns from rows that lack some targets
        frame, rows = _with_targets(frame, rows, settings, whole=True)
    check_size(problem.task, len(frame))
    warn_of_numbers(frame, problem.text)
    metric = metric_of(config.metric or problem.head_class.default_metric, task)
    held_out = history = None
    if settings.id is not None:
        id_values(frame, settings.id, what)  # also for the rows that are held out
    if settings.hold_out is not None:
        frame, rows, held_out, history = _hold_out(frame, rows, problem, settings, config)
    if valid is not None:
        valid, numbers = _with_targets(valid, np.arange(len(valid)) + count, settings, whole=task != "multilabel")
        frame, rows = _joined(frame, valid), np.concatenate([rows, numbers])
    ids = None if settings.id is None else id_values(frame, settings.id, what)
    tokenizer = load_tokenizer(directory, config_from_hf(read_json(directory / "config.json", RunError) or {}))
    rendered = render_texts(frame, problem.text, what)
    texts, pairs, windows = rendered.texts, rendered.pairs, None
    if task == "time_series":
        windows = problem.cut_windows(frame, window=settings.window, horizon=settings.horizon)
        first = max(settings.window, 1) - 1
        chosen = slice(first, first + len(windows.made_at))
        texts, pairs, rows, ids = texts[chosen], pairs and pairs[chosen], rows[chosen], ids and ids[chosen]
    targets = problem.targets(frame) if windows is None else windows.targets
    tokens = token_rows(
        tokenizer, texts, pairs, max_length=config.max_length, directory=directory, cache=_token_cache()
    )
    kind = cast(FoldKind, "file") if valid is not None else _fold_kind(task, settings, config)
    if valid is not None:
        folds: tuple[Fold, ...] = (_validation_fold(texts, pairs, len(valid), windows),)
    else:
        folds = make_folds(
            kind,
            texts,
            pairs=pairs,
            targets=targets if kind in ("stratified", "multilabel_stratified", "binned") else None,
            groups=_column(frame, settings.group, "group column"),
            times=windows.made_at if windows else _column(frame, settings.time, "time column"),
            known_at=None if windows is None else windows.known_at,
            folds=config.folds,
            valid_size=config.valid_size,
            seed=config.fold_seed,
            label_names=_label_names(problem),
        )
    check_labels(folds, targets, problem.task, kind)
    return Prepared(
        directory=directory,
        tokenizer=tokenizer,
        problem=problem,
        metric=metric,
        examples=Examples(tokens, targets, windows, ids or [str(row) for row in rows]),
        folds=folds,
        fold_kind=kind,
        rows=rows,
        id_column=settings.id,
        ids=ids,
        texts=texts,
        pairs=pairs,
        held_out=held_out,
        history=history,
    )


def _problem(frame: Any, settings: RunSettings) -> Problem:
    """Return the problem to learn from the frame; refuse options that the head does not have."""
    problem = make_problem(
        frame,
        target=settings.target,
        text=settings.text,
        task=settings.task,
        time=settings.time,
        classes=settings.classes,
        ignore=_named(settings.id, settings.group, *settings.ignore),
        decimal=settings.decimal,
        label_separator=settings.label_separator,
    )
    check_options(problem.head_class, settings.head)
    return problem


def _with_targets(frame: Any, rows: np.ndarray, settings: RunSettings, whole: bool = False) -> tuple[Any, np.ndarray]:
    """Leave out, with `drop_missing`, the rows that have no target, or (`whole`) lack one of the targets."""
    if not settings.drop_missing:
        return frame, rows
    columns = target_of(Table(frame), settings.target)
    enough = all if whole else any
    there = _is_target if whole else _is_present
    keep = np.array([enough(map(there, cells)) for cells in zip(*(c.values for c in columns), strict=True)])
    if keep.all() or not keep.any():
        return frame, rows
    what = "have no target"
    if len(columns) > 1:
        what = "lack one of the targets" if whole else "have none of the targets"
    warnings.warn(f"{(~keep).sum()} of {len(keep)} rows {what} and are left out", DataWarning, stacklevel=2)
    return frame[keep].reset_index(drop=True), rows[keep]


def _is_present(value: Any) -> bool:
    return value is not None


def _is_target(value: Any) -> bool:
    """Return whether a cell is not blank; of several labels in a cell, a blank one means that the row has none."""
    return value is not None and not (isinstance(value, str) and not value.strip())


def _hold_out(
    frame: Any, rows: np.ndarray, problem: Problem, settings: RunSettings, config: TrainingConfig
) -> tuple[Any, np.ndarray, Any, Any]:
    """Return frame and row numbers to learn from, the frame held out of everything, and the history of a series."""
    size = settings.hold_out
    assert size is not None
    if problem.task.task == "time_series":
        horizon = settings.horizon
        count = round(size * len(frame)) if isinstance(size, float) and size < 1 else int(size)
        if not 0 < count <= horizon:
            raise RunError(
                f"hold_out is {count} steps of a series; fix: from 1 to the {horizon} of the forecast (horizon)"
            )
        return frame.iloc[:-count], rows[:-count], frame.iloc[-count:], frame.iloc[:-count]
    if not 0 < size < 1 and not (size == int(size) and 1 <= size < len(frame)):
        raise RunError(f"hold_out must be a share between 0 and 1, or fewer than {len(frame)} rows, not {size:g}")
    rendered = problem.text.render(frame)
    kind = _fold_kind(problem.task.task, settings, config)
    (fold,) = make_folds(
        "plain" if kind == "group" else kind,
        rendered.texts,
        pairs=rendered.pairs,
        targets=problem.targets(frame),
        groups=_column(frame, settings.group, "group column"),
        times=_column(frame, settings.time, "time column"),
        folds=1,
        valid_size=size if size < 1 else int(size),
        seed=config.fold_seed,
        label_names=_label_names(problem),
    )
    learn, out = frame.iloc[fold.train].reset_index(drop=True), frame.iloc[fold.valid].reset_index(drop=True)
    return learn, rows[fold.train], out, None


def _fold_kind(task: str, settings: RunSettings, config: TrainingConfig) -> FoldKind:
    """Return the requested fold kind; else forward if there are times, else the default of the task."""
    kind = cast(FoldKind, config.fold_kind or fold_kinds(task, settings.time)[0])
    if task == "time_series" and kind != "forward":
        raise RunError(
            f"fold_kind {kind!r} puts overlapping windows of a series on both sides; fix: leave it out (forward)"
        )
    return kind


def _label_names(problem: Problem) -> list[str] | None:
    return [str(label) for label in problem.task.classes or ()] or None


def _validation_fold(texts: Sequence[str], pairs: Sequence[str] | None, valid: int, windows: Windows | None) -> Fold:
    """Return the fold that holds out the last `valid` rows; of a series, the windows that forecast only these rows.

    Raises:
        RunError: a series has fewer validation rows than a forecast has steps.
    """
    learned = begin = len(texts) - valid
    if windows is not None:
        horizon = 1 if windows.targets.ndim == 1 else windows.targets.shape[1]
        if valid < horizon:
            raise RunError(
                f"the validation file has {valid} rows, and a forecast is of {horizon}; fix: give {horizon} or more"
            )
        # A window between both files forecasts rows of both: it is on neither side.
        begin, learned = len(texts) - valid + horizon - 1, max(len(texts) - valid, 0)
    seconds = (None, None) if pairs is None else (pairs[:learned], pairs[begin:])
    fold = validation_fold(texts[:learned], texts[begin:], train_pairs=seconds[0], valid_pairs=seconds[1])
    return Fold(fold.train, fold.valid + begin - learned)


def _joined(frame: Any, valid: Any) -> Any:
    import pandas

    missing = [name for name in frame.columns if name not in valid.columns]
    if missing:
        raise RunError(f"the validation file has no column {missing[0]!r}; fix: the same columns as the training file")
    return pandas.concat([frame, valid[list(frame.columns)]], ignore_index=True)


def _column(frame: Any, name: str | None, role: str) -> list[Any] | None:
    return None if name is None else list(Table(frame).column(name, role).values)


def _named(*names: str | None) -> Sequence[str]:
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _token_cache() -> Path:
    """Return the folder of token caches: below MLXBERT_CACHE, else XDG_CACHE_HOME/mlxbert, else ~/.cache/mlxbert."""
    folder = os.environ.get("MLXBERT_CACHE")
    if folder:
        return expand_home(folder) / "tokens"
    return expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mlxbert" / "tokens"
