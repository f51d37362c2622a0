"""`RunSettings`: columns and files of a run. Its fields and those of `TrainingConfig` are the arguments of `train`."""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields
from typing import Any, Self, TypeVar, get_args

from heads.labels import Label
from heads.losses import Loss
from mlxbert.data.competitions import Competition
from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.submission import VALUES, Submission
from mlxbert.data.text_columns import RowText
from mlxbert.runs.files import RunError
from mlxbert.training.config import TrainingConfig, argument

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The arguments of `mlxbert.train` that are not in `TrainingConfig`; run.json keeps both.

    Each field's `metadata["help"]` says what it is. A table that was given as a frame has the name "<frame>".

    Attributes:
        submission: format of the submissions, if a competition fixes it; not an argument.
    """

    model: str = argument(MISSING, "Model", "Converted directory, or id of a converted repository on the Hub.")
    revision: str | None = argument(None, "Model", "Branch, tag or commit of a model on the Hub.")
    target: tuple[str, ...] = argument((), "Data", "Column to predict.")
    text: RowText | None = argument(  # noqa: RUF009 - a field
        None,
        "Data",
        'Column with the text, or a template: "{Sex}, age {Age}".  [default: every column, as "column: value"]',
    )
    task: str | None = argument(
        None, "Data", "binary, multiclass, multilabel, regression, ordinal, time_series.  [default: inferred]"
    )
    id: str | None = argument(
        None,
        "Data",
        "Column that names a row; it is never read as text.  [default: the first column of the sample submission, or "
        "a column with an id's name and a different value in every row]",
    )
    group: str | None = argument(None, "Folds", "Column of groups: rows of one group are in the same fold.")
    time: str | None = argument(None, "Folds", "Column of times: for a time series, or for forward-chaining folds.")
    ignore: tuple[str, ...] = argument((), "Data", "Column to leave out of the text, if no text column is named.")
    classes: tuple[Label, ...] | None = argument(
        None, "Data", "Label, in order; needed if the data lack a label.", flag="class"
    )
    head: Mapping[str, Any] = argument(
        {},
        "Model",
        "Option of the head, such as horizon=12 or objective=NAME; NAME may be a registered loss.",
        metavar="NAME=VALUE",
    )
    competition: str | None = argument(None, "Data", "Ready configuration: titanic, house-prices, disaster-tweets, ….")
    encoding: str | None = argument(None, "Data", "Text encoding of the files, such as cp1252.  [default: detected]")
    quoting: Quoting | None = argument(  # noqa: RUF009 - a field
        None,
        "Data",
        'Quotes in CSV and TSV: none (ordinary characters), minimal ("" is a quote), escaped (\\").  '
        "[default: detected]",
        choices=get_args(Quoting),
    )
    decimal: str | None = argument(
        None, "Data", "Decimal mark of the target.  [default: detected]", choices=(".", ",")
    )
    label_separator: str | None = argument(
        None, "Data", "Separator of several labels in one cell: ';' or '[]'.  [default: detected]"
    )
    valid: str | None = argument(None, "Folds", "File of rows to evaluate on, instead of folds.")
    hold_out: float | None = argument(
        None, "Folds", "Rows that no model sees, predicted and scored at the end: a share, or a number."
    )
    test: str | None = argument(None, "Data", "File to predict at the end.")
    sample_submission: str | None = argument(
        None, "Output", "Sample submission whose ids, columns and order the predictions must match."
    )
    values: str | None = argument(
        None,
        "Output",
        "Content of a submission.  [default: as in the sample submission, else what the metric compares]",
        choices=VALUES,
    )
    submission: Submission | None = None
    drop_missing: bool = argument(False, "Data", "Leave out rows without a target.", switch=True)
    escape_formulas: bool = argument(
        False, "Output", "Write ' before CSV cells that begin with = + - @; numbers stay as they are.", switch=True
    )

    def __post_init__(self) -> None:
        """Convert the arguments to the types of the fields, and refuse contradictions."""
        for name in ("model", "id", "group", "time"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(getattr(self, name)))
        for name in ("target", "ignore"):
            object.__setattr__(self, name, as_columns(getattr(self, name)))
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "head", {name: _plain(value) for name, value in self.head.items()})
        if not self.target:
            raise RunError("no target is named; fix: --target COLUMN, or --competition NAME")
        if self.valid is not None and self.hold_out is not None:
            raise RunError("valid and hold_out are both given; fix: leave one out")
        if self.hold_out is not None and not 0 < self.hold_out < math.inf:
            raise RunError(f"hold_out must be a share of the rows or their number, not {self.hold_out}; fix: 0.2")
        if self.hold_out is not None and self.test is not None:
            raise RunError("hold_out and test are both given; fix: predict the test file afterwards")
        if self.sample_submission is not None and self.test is None:
            raise RunError("sample_submission is given without test; fix: give the file to predict too")

    @property
    def horizon(self) -> int:
        """Number of steps that a time series is forecast.

        Raises:
            RunError: the option of the head is not a whole number of at least 1.
        """
        return self._steps("horizon", 1)

    @property
    def window(self) -> int:
        """Number of steps of a time series that a forecast reads as numbers.

        Raises:
            RunError: the option of the head is not a whole number of at least 0.
        """
        return self._steps("window", 0)

    def _steps(self, name: str, least: int) -> int:
        steps = self.head.get(name, least)
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < least:
            raise RunError(f"{name} must be a whole number from {least}, not {steps!r}; fix: --head {name}=12")
        return steps

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The target column, and its labels that look like missing values, such as NA.

        Empty if rows without a target are refused anyway, with the same advice.
        """
        words = tuple(label for label in self.classes or () if isinstance(label, str))
        if len(self.target) > 1 or self.task == "multilabel" or not (words or self.drop_missing):
            return {}
        return {self.target[0]: words}

    @classmethod
    def for_competition(cls, competition: Competition, **given: Any) -> Self:
        """Return the settings of a ready configuration; `given` ones (not None) replace its own."""
        head = dict(competition.head)
        ready: dict[str, Any] = {
            "model": competition.converted,
            "target": competition.target,
            "text": competition.text,
            "task": competition.task,
            "id": competition.id,
            "group": competition.group,
            "time": competition.time,
            "classes": head.pop("classes", None),
            "competition": competition.name,
            "submission": competition.submission,
        }
        changes = {name: value for name, value in given.items() if value is not None and value != ()}
        changes["head"] = {**head, **(given.get("head") or {})}
        return cls(**{**ready, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values, as run.json has them."""
        return {
            **{setting.name: getattr(self, setting.name) for setting in fields(self)},
            "target": list(self.target),
            "ignore": list(self.ignore),
            "classes": None if self.classes is None else list(self.classes),
            "text": None if self.text is None else self.text.to_dict(),
            "submission": None if self.submission is None else asdict(self.submission),
            "head": {name: list(value) if isinstance(value, tuple) else value for name, value in self.head.items()},
        }


def competition_numbers(competition: Competition) -> dict[str, Any]:
    """Return the fields of `TrainingConfig` that a ready configuration has."""
    return {
        "metric": competition.metric,
        "folds": competition.folds,
        "fold_kind": competition.fold_kind,
        "pooling": competition.pooling,
        **competition.training,
    }


def as_columns(value: str | int | Sequence[str | int] | None) -> tuple[str, ...]:
    """Return one or several names as a tuple of text; pandas numbers the columns of a file without a header."""
    names = () if value is None else (value,) if isinstance(value, str | int) else tuple(value)
    return tuple(str(name) for name in names)


def arguments() -> tuple[Field[Any], ...]:
    """Return the fields that are arguments of `mlxbert.train` and options of `mlxbert train`, in their order."""
    return tuple(setting for kind in (RunSettings, TrainingConfig) for setting in fields(kind) if setting.metadata)


def flag_of(argument: Field[Any]) -> str:
    """Return the option of `mlxbert train` for an argument: `--batch-size` for batch_size."""
    return "--" + argument.metadata.get("flag", argument.name).replace("_", "-")


def takes_arguments(function: _Function) -> _Function:
    """Put every argument into the signature and the documentation of a function of `**settings`; a decorator."""
    signature = inspect.signature(function)
    stated = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(setting.name, keyword, default=default_of(setting)) for setting in arguments()]
    function.__signature__ = signature.replace(parameters=[*stated, *more])  # type: ignore[attr-defined]
    if function.__doc__ is not None:  # python -OO has none
        lines = [f"{setting.name}: {setting.metadata['help']}" for setting in arguments()]
        wrapped = [
            textwrap.fill(line, 116, initial_indent=" " * 8, subsequent_indent=" " * 12, break_on_hyphens=False)
            for line in lines
        ]
        function.__doc__ = function.__doc__.replace("        (settings)", "\n".join(wrapped))
    return function


def default_of(argument: Field[Any]) -> Any:
    """Return the default of an argument; None for the model, which must be given."""
    if argument.default is not MISSING:
        return argument.default
    return None if argument.default_factory is MISSING else argument.default_factory()


def _plain(option: Any) -> Any:
    """Return an option of a head as it is in run.json: a loss by its name and settings, a tuple instead of a list."""
    if isinstance(option, Loss):
        return option.option()
    return tuple(option) if isinstance(option, list) else option
