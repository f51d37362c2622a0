"""What a run's bits depend on beside its data and settings: versions, device, BLAS, threads.

Options of a head and labels as a command line gives them: words that stand for numbers, truth values and lists.

`RunSettings`: what is learned from which columns, beside the numbers of `TrainingConfig`; saved with the run.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from heads.labels import Label
from heads.losses import Loss
from mlxbert.backend.device import blas_name, blas_threads, device_name, package_versions
from mlxbert.data.competitions import Competition
from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.submission import Submission
from mlxbert.data.text_columns import RowText
from mlxbert.runs.files import RunError

_PACKAGES = ("mlx", "numpy", "pandas", "scikit-learn", "scipy", "tokenizers", "scipy-openblas32")
# A change of these may change sums, texts, folds, thresholds or digits: the rest is for the record.
_BINDING = ("mlxbert", "device", "blas", "threads", "machine", *(f"packages.{name}" for name in _PACKAGES))


def environment() -> dict[str, Any]:
    """For run.json; no host, user or path in it."""
    return {
        "mlxbert": package_versions(["mlxbert"])["mlxbert"],
        "python": platform.python_version(),
        "platform": platform.system(),
        "machine": platform.machine(),
        "device": device_name(),
        "blas": blas_name(),
        "threads": blas_threads(),
        "packages": package_versions(_PACKAGES),
    }


def check_environment(then: Mapping[str, Any]) -> None:
    """Refuse to go on where the bits would come out otherwise.

    Raises:
        RunError: names what has changed, from what to what, and how to go on all the same.
    """
    now = environment()
    both = {name: (_get(then, name), _get(now, name)) for name in _BINDING}
    changed = [f"{name} was {was}, is {found}" for name, (was, found) in both.items() if was != found]
    if changed:
        threads = f"OPENBLAS_NUM_THREADS={then.get('threads')}, or " if _get(then, "threads") != now["threads"] else ""
        raise RunError(
            f"the run was begun elsewhere ({'; '.join(changed)}), and would not end in the same bytes; "
            f"fix: {threads}--allow-changes to go on all the same"
        )


def _get(facts: Any, name: str) -> Any:
    for part in name.split("."):
        facts = facts.get(part) if isinstance(facts, Mapping) else None
    return facts


def head_options(words: Sequence[str]) -> dict[str, Any]:
    """ "objective=focal", "horizon=12", "log_targets=true", "calendar=[\"year\"]" by name.

    Raises:
        RunError: a word without "=", or a name twice.
    """
    made: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise RunError(f"--head {word!r}: give NAME=VALUE, such as objective=focal")
        if name in made:
            raise RunError(f"--head {name} is given twice; fix: leave one out")
        parsed = _value(value)
        made[name] = tuple(parsed) if isinstance(parsed, list) else parsed
    return made


def labels(words: Sequence[str]) -> tuple[Label, ...] | None:
    """Labels, numbers where all of them are; None: none are given."""
    if not words:
        return None
    parsed = [_value(word) for word in words]
    # JSON's NaN is a float; as a label it is a word.
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) and one == one for one in parsed)
    return tuple(parsed) if numbers else tuple(words)


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The arguments of `mlxbert.train` that are not numbers of the training; JSON-able by `to_dict`.

    Attributes:
        model: a converted directory, or the id of a converted repository on the Hub.
        revision: of that repository.
        target: the column to predict, or several.
        text: how a row becomes a text; None: every column as "column: value".
        task: a competition type or a head's name; None: inferred.
        id: the column that names a row.
        group: rows of one value never lie on both sides of a fold.
        time: the column of times.
        ignore: columns that `text=None` leaves out.
        classes: the labels, where the data do not tell.
        head: options of the head; a registered loss as its name, or a mapping of its name and settings.
        competition: the ready configuration that the rest comes from.
        encoding: of the data's text.
        quoting: of text tables; None: found out.
        decimal: the decimal mark of a target that is written as text, "." or ","; None: found out.
        label_separator: what stands between several labels of a cell; None: found out.
        valid: a file of held-out rows, with one fold; "<frame>" for a frame, and likewise below.
        hold_out: rows held out of everything and predicted at the end: a share, or their number.
        test: a file to predict at the end.
        sample_submission: that the predictions must fit.
        values: what a submission holds: "labels", "probabilities" or "values"; None: what the metric needs.
        submission: the format, where a competition fixes it.
        drop_missing: leave out rows without a target.
        escape_formulas: put a ' before cells of the CSV files that a spreadsheet would compute.
    """

    model: str
    revision: str | None = None
    target: tuple[str, ...] = ()
    text: RowText | None = None
    task: str | None = None
    id: str | None = None
    group: str | None = None
    time: str | None = None
    ignore: tuple[str, ...] = ()
    classes: tuple[Label, ...] | None = None
    head: Mapping[str, Any] = field(default_factory=dict, hash=False)
    competition: str | None = None
    encoding: str | None = None
    quoting: Quoting | None = None
    decimal: str | None = None
    label_separator: str | None = None
    valid: str | None = None
    hold_out: float | None = None
    test: str | None = None
    sample_submission: str | None = None
    values: str | None = None
    submission: Submission | None = None
    drop_missing: bool = False
    escape_formulas: bool = False

    def __post_init__(self) -> None:
        """Refuse what contradicts itself; make the head's options plain: tuples for lists, a loss by its name."""
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
        """The steps that a time series is forecast for.

        Raises:
            RunError: the head's option is no whole number from 1 on.
        """
        return self._steps("horizon", 1)

    @property
    def window(self) -> int:
        """The steps of a time series that a forecast reads as numbers.

        Raises:
            RunError: the head's option is no whole number from 0 on.
        """
        return self._steps("window", 0)

    def _steps(self, name: str, least: int) -> int:
        steps = self.head.get(name, least)
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < least:
            raise RunError(f"{name} must be a whole number from {least}, not {steps!r}; fix: --head {name}=12")
        return steps

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The target's column, and the words that are labels in it though they look missing, such as NA.

        Nothing where rows without a target are refused anyway, with the same advice.
        """
        words = tuple(one for one in self.classes or () if isinstance(one, str))
        if len(self.target) > 1 or self.task == "multilabel" or not (words or self.drop_missing):
            return {}
        return {self.target[0]: words}

    @classmethod
    def for_competition(cls, competition: Competition, **given: Any) -> Self:
        """A ready configuration's settings, with those that are `given` (not None) in their place."""
        head = dict(competition.head)
        classes = head.pop("classes", None)
        made: dict[str, Any] = {
            "model": competition.converted,
            "target": competition.target,
            "text": competition.text,
            "task": competition.task,
            "id": competition.id,
            "group": competition.group,
            "time": competition.time,
            "classes": classes,
            "head": head,
            "competition": competition.name,
            "submission": competition.submission,
        }
        own = {name: value for name, value in given.items() if value is not None and value != ()}
        own["head"] = {**head, **(given.get("head") or {})}
        return cls(**{**made, **own})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; run.json has it."""
        return {
            **{one.name: getattr(self, one.name) for one in fields(self)},
            "target": list(self.target),
            "ignore": list(self.ignore),
            "classes": None if self.classes is None else list(self.classes),
            "text": None if self.text is None else self.text.to_dict(),
            "submission": None if self.submission is None else asdict(self.submission),
            "head": {name: list(one) if isinstance(one, tuple) else one for name, one in self.head.items()},
        }

    def with_id(self, column: str) -> Self:
        """Return the settings with an id column that was found."""
        return replace(self, id=column)


def competition_numbers(competition: Competition) -> dict[str, Any]:
    """Return the fields of `TrainingConfig` that a ready configuration brings."""
    return {
        "metric": competition.metric,
        "folds": competition.folds,
        "fold_kind": competition.fold_kind,
        "pooling": competition.pooling,
        **competition.training,
    }


def as_columns(value: str | int | Sequence[str | int] | None) -> tuple[str, ...]:
    """One name, or several, as a tuple; pandas numbers the columns of a file without a header."""
    names = () if value is None else (value,) if isinstance(value, str | int) else tuple(value)
    return tuple(str(name) for name in names)


def _plain(option: Any) -> Any:
    if isinstance(option, Loss):
        return option.option()
    return tuple(option) if isinstance(option, list) else option
