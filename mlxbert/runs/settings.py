"""`RunSettings`: what is learned from which columns, beside the numbers of `TrainingConfig`; saved with the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from heads.labels import Label
from mlxbert.data.data_file import Quoting
from mlxbert.factory.competition import Competition, Submission
from mlxbert.factory.text_columns import RowText
from mlxbert.runs.files import RunError


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
        head: options of the head.
        competition: the ready configuration that the rest comes from.
        encoding: of the data's text.
        quoting: of text tables; None: found out.
        decimal: the decimal mark of a target that is written as text, "." or ","; None: found out.
        label_separator: what stands between several labels of a cell; None: found out.
        valid: a file of held-out rows, with one fold.
        hold_out: rows held out of everything and predicted at the end: a share, or their number.
        test: a file to predict at the end.
        sample_submission: that the predictions must fit.
        values: what a submission holds: "labels", "probabilities" or "values"; None: what the metric needs.
        submission: the format, where a competition fixes it.
        drop_missing: leave out rows without a target.
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

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if not self.target:
            raise RunError("no target is named; fix: --target COLUMN, or --competition NAME")
        if self.valid is not None and self.hold_out is not None:
            raise RunError("valid and hold_out are both given; fix: leave one out")
        if self.hold_out is not None and self.test is not None:
            raise RunError("hold_out and test are both given; fix: predict the test file afterwards")
        if self.sample_submission is not None and self.test is None:
            raise RunError("sample_submission is given without test; fix: give the file to predict too")

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The target's column, and the words that are labels in it though they look missing, such as NA."""
        if len(self.target) > 1 or self.task == "multilabel":
            return {}
        return {self.target[0]: tuple(one for one in self.classes or () if isinstance(one, str))}

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
        """JSON-able; `from_dict` reads it."""
        return {
            **{one.name: getattr(self, one.name) for one in fields(self)},
            "target": list(self.target),
            "ignore": list(self.ignore),
            "classes": None if self.classes is None else list(self.classes),
            "text": None if self.text is None else self.text.to_dict(),
            "submission": None if self.submission is None else asdict(self.submission),
            "head": {name: list(one) if isinstance(one, tuple) else one for name, one in self.head.items()},
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """What `to_dict` gave.

        Raises:
            RunError: it is something else.
        """
        try:
            made = dict(saved)
            for name in ("target", "ignore"):
                made[name] = tuple(made[name])
            made["classes"] = None if made["classes"] is None else tuple(made["classes"])
            made["text"] = None if made["text"] is None else RowText.from_dict(made["text"])
            if made["submission"] is not None:
                made["submission"] = Submission(
                    **{**made["submission"], "columns": tuple(made["submission"]["columns"])}
                )
            made["head"] = {name: tuple(one) if isinstance(one, list) else one for name, one in made["head"].items()}
            return cls(**made)
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"run.json: its settings cannot be read ({error!r}); fix: train again") from error

    def with_text(self, text: RowText) -> Self:
        """With the text that `text=None` came to."""
        return replace(self, text=text)


def as_columns(value: str | int | Sequence[str | int] | None) -> tuple[str, ...]:
    """One name, or several, as a tuple; pandas numbers the columns of a file without a header."""
    names = () if value is None else (value,) if isinstance(value, str | int) else tuple(value)
    return tuple(str(name) for name in names)
