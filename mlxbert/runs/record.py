"""run.json and scores.json as checked records: the only readers of these files.

Fields that this version does not know are kept in `values`, and written back when a run goes on.

The command line that repeats a run, made of its record.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from heads.head_registry import COMPETITION_TYPES
from mlxbert.data.competitions import CompetitionError, get_competition
from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.infer_task import InferredTask
from mlxbert.data.reading import Kind
from mlxbert.data.submission import Submission
from mlxbert.data.text_columns import RowText
from mlxbert.errors import printable
from mlxbert.files.reading import from_json, read_json
from mlxbert.runs.files import RunError
from mlxbert.runs.inputs import FRAME
from mlxbert.runs.settings import RunSettings, competition_numbers, head_options, labels
from mlxbert.training.config import TrainingConfig

FORMAT, VERSION = "mlxbert-run", 1
INFO, SCORES, BLEND = "run.json", "scores.json", "blend.json"
FIX = "fix: restore the file from a copy of the run, or train again"


@dataclass(frozen=True)
class InputFile:
    """A file that the run read: its path as it was given (None: a frame), SHA-256, bytes and rows."""

    path: str | None
    sha256: str | None
    size: int | None = None
    rows: int | None = None
    quoting: Quoting | None = None


@dataclass(frozen=True)
class DataRecord:
    """The training data, and how rows of other files are read like them.

    Attributes:
        path: as it was given; None: a frame.
        sha256: of the file, or of the frame's cells.
        rows: of the file.
        kinds: what each column holds.
        text: how a row becomes a text.
        max_length: tokens that a text is cut to.
        examples_sha256: of the encoded rows and their targets.
        size: bytes of the file.
        quoting: how cells of a text table are quoted.
        id: the column that names a row; likewise `group` and `time`.
        id_found: whether the id column was found by its name, not told.
        valid: the validation table; `test`: the one that is predicted at the end.
    """

    path: str | None
    sha256: str | None
    rows: int
    kinds: Mapping[str, Kind]
    text: RowText
    max_length: int
    examples_sha256: str | None
    size: int | None = None
    quoting: Quoting | None = None
    id: str | None = None
    group: str | None = None
    time: str | None = None
    id_found: bool = False
    valid: InputFile | None = None
    test: InputFile | None = None


@dataclass(frozen=True)
class ModelRecord:
    """The encoder that the run began with: where it lay, the digests of its files, and where it is from."""

    checkpoint: str
    manifest_sha256: str | None = None
    config_sha256: str | None = None
    source: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class FoldsRecord:
    """How rows were dealt into folds, how many there are, and the digest of their rows."""

    kind: str
    count: int
    sha256: str | None = None


@dataclass(frozen=True)
class Sitting:
    """A later sitting of a run in another environment than the one before: when, and in which."""

    at: str
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json: everything needed to repeat a run.

    Attributes:
        task: what the target is.
        metric: that is optimized; `metrics`: all that are reported.
        settings: what is learned from which columns; `config`: the numbers of the training.
        members: the names of the models, in the order of training.
        submission: the format of its predictions.
        environment: versions, device and threads of the first sitting; `resumed`: those of later ones, where they
            differ.
        values: the whole JSON object as it was read.
    """

    task: InferredTask
    metric: str
    metrics: tuple[str, ...]
    data: DataRecord
    model: ModelRecord
    settings: RunSettings
    config: TrainingConfig
    folds: FoldsRecord
    members: tuple[str, ...]
    submission: Submission
    environment: Mapping[str, Any]
    created: str | None = None
    competition: str | None = None
    resumed: tuple[Sitting, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse a task that there is not, and members that are no names of folders of the run."""
        if self.task.task not in COMPETITION_TYPES:
            raise RunError(f"task.task {self.task.task!r} is none of {', '.join(COMPETITION_TYPES)}")
        if not self.members:
            raise RunError("members is empty")
        for name in self.members:
            too_long = len(name.encode("utf-8", "replace")) > 255  # no file system takes more
            if Path(name).name != name or name.startswith(".") or "\0" in name or too_long:
                raise RunError(f"members: {name!r} is not the name of a folder of the run")
        if not self.prediction_members:
            raise RunError(f"members has none of fold {self.folds.count - 1}, the last of folds.count")

    @classmethod
    def of(cls, values: Mapping[str, Any], place: str | Path = INFO) -> Self:
        """Return the record that a JSON object describes; `place` begins the message of an error.

        Raises:
            RunError: a field is missing or of the wrong type; it is named.
        """
        record = from_json(cls, {**values, "values": {}}, place=str(place), fix=FIX, error=RunError)
        return replace(record, values=dict(values))

    @property
    def prediction_members(self) -> tuple[str, ...]:
        """The members that predict: all; of forward-chaining folds those of the last, which have seen the most."""
        if self.folds.kind != "forward":
            return self.members
        last = f"-fold{self.folds.count - 1}"
        return tuple(name for name in self.members if name.endswith(last))


def is_run(root: Path) -> bool:
    """Return whether a directory holds a run.json of this project, of whatever version.

    Raises:
        RunError: its run.json is no regular file, or no JSON object.
    """
    return (read_json(root / INFO, RunError) or {}).get("format") == FORMAT


def read_values(root: Path) -> dict[str, Any]:
    """Return the JSON object in a run's run.json, after a look at its format and version only.

    Raises:
        RunError: no such directory, no run.json, damaged JSON, another format or a newer version.
    """
    if not root.is_dir():
        what = "a file, not a directory" if root.exists() else "no such directory"
        raise RunError(f"{root}: {what}; fix: give a run that `mlxbert train -o` made")
    values = read_json(root / INFO, RunError)
    if values is None and (root / BLEND).exists():
        raise RunError(f"{root} is a blend, not a run; fix: give one of its runs, or mlxbert predict for the blend")
    if values is None or values.get("format") != FORMAT:
        raise RunError(f"{root} is not a run (no run.json of mlxbert in it); fix: give what `mlxbert train -o` made")
    if values.get("version") != VERSION:
        version = printable(repr(values.get("version")), 40)
        raise RunError(f"{root / INFO}: version {version}, and this mlxbert reads {VERSION}; fix: update mlxbert")
    return values


def read_record(root: Path) -> RunRecord:
    """Return the run.json of a run.

    Raises:
        RunError: as `read_values`, or a field is missing or of the wrong type.
    """
    return RunRecord.of(read_values(root), root / INFO)


def check_known_settings(record: RunRecord, file: Path) -> None:
    """Refuse to train with settings that this version would leave out.

    Raises:
        RunError: names them.
    """
    for part, kind in (("settings", RunSettings), ("config", TrainingConfig)):
        unknown = [name for name in record.values[part] if name not in {one.name for one in fields(kind)}]
        if unknown:
            names = ", ".join(printable(name, 60) for name in unknown[:10])
            raise RunError(f"{file}: {part} has {names}, which this mlxbert does not know; fix: update mlxbert")


@dataclass(frozen=True)
class MemberScores:
    """A finished model on the rows that its fold held out: `step` and `epoch` are those of the weights it keeps."""

    member: str
    seed: int
    fold: int
    rows: int
    step: int
    epoch: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Spread:
    """A metric over the models."""

    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class HoldOutScores:
    """The scores of the rows that no model saw."""

    rows: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Scores:
    """The content of scores.json.

    Attributes:
        metric: that was optimized.
        members: each on its own held-out rows.
        spread: of each metric over the models.
        pooled: metrics of all out-of-fold rows together; NaN where one is undefined.
        seconds: that the run took, all sittings together.
        hold_out: of the rows held out of everything; None without them.
        values: the whole JSON object as it was read.
    """

    metric: str
    greater_is_better: bool
    members: tuple[MemberScores, ...]
    spread: Mapping[str, Spread]
    pooled: Mapping[str, float]
    seconds: float
    hold_out: HoldOutScores | None = None
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)


def read_scores(root: Path) -> Scores | None:
    """Return the scores.json of a run; None: the run is not finished.

    Raises:
        RunError: it is damaged; the field is named.
    """
    file = root / SCORES
    values = read_json(file, RunError)
    if values is None:
        return None
    scores = from_json(Scores, {**values, "values": {}}, place=str(file), fix=FIX, error=RunError, null_is_nan=True)
    return replace(scores, values=values)


# Settings that have options of their own form, or none: a competition brings its submission with it.
_SPECIAL = ("target", "text", "classes", "head", "ignore", "submission", "drop_missing", "escape_formulas")


def repeating_command(record: RunRecord, out: str) -> str:
    """Return the shell line of `mlxbert train` that repeats a run into `out`, an option a line.

    Where no command line can say it (a run on a frame, a label that only looks like a number), it is the call of
    `mlxbert.train` in Python.
    """
    try:
        words = list(_words(record, out))
    except _NoWordsError:
        return _call(record, out)
    lines, start = [], 0
    for place in [i for i, word in enumerate(words) if i > 2 and _is_flag(words, i)]:
        lines.append(words[start:place])
        start = place
    lines.append(words[start:])
    return " \\\n  ".join(shlex.join(line) for line in lines)


class _NoWordsError(Exception):
    """A setting that no command line says."""


class _Flag(str):
    """The name of an option, to tell it from a value that begins with dashes too."""


def _is_flag(words: list[str], place: int) -> bool:
    return isinstance(words[place], _Flag)


def _words(record: RunRecord, out: str) -> Iterator[str]:
    path = record.data.path
    if path is None:
        raise _NoWordsError
    yield from ("mlxbert", "train", f"./{path}" if path.startswith("-") else path)
    settings, config = _beside_competition(record)
    for name, value in settings.items():
        yield from _setting(name, value)
    for name, value in config.items():
        flag = _Flag(f"--{name.replace('_', '-')}")
        if name == "seeds":
            for seed in value:
                yield from (_Flag("--seed"), str(seed))
        elif isinstance(value, bool):
            yield flag if value else _Flag(f"--no-{flag[2:]}")
        elif value is None:
            raise _NoWordsError
        else:
            yield from (flag, str(value))
    yield from (_Flag("-o"), out)


def _beside_competition(record: RunRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and numbers that differ from the defaults, or from what the run's competition brings."""
    settings, config = record.settings, record.config
    usual: dict[str, Any] = {one.name: one.default for one in fields(RunSettings) if one.default is not MISSING} | {
        "head": {}
    }
    numbers = TrainingConfig()
    if settings.competition is not None:
        try:
            ready = get_competition(settings.competition)
        except CompetitionError:
            raise _NoWordsError from None
        brought = RunSettings.for_competition(ready)
        usual = {one.name: getattr(brought, one.name) for one in fields(RunSettings)} | {"competition": None}
        numbers = TrainingConfig.make(competition_numbers(ready))
    given = {
        one.name: getattr(settings, one.name)
        for one in fields(RunSettings)
        if one.name not in usual or getattr(settings, one.name) != usual[one.name]
    }
    own = {
        one.name: getattr(config, one.name)
        for one in fields(TrainingConfig)
        if getattr(config, one.name) != getattr(numbers, one.name)
    }
    return given, own


def _setting(name: str, value: Any) -> Iterator[str]:
    if name not in _SPECIAL:
        if value is None or value == FRAME:
            raise _NoWordsError
        yield from (_Flag(f"--{name.replace('_', '-')}"), str(value))
    elif name in ("target", "ignore"):
        for column in value:
            yield from (_Flag(f"--{name}"), column)
    elif name == "text":
        yield from _text(value)
    elif name == "classes":
        words = [str(label) for label in value or ()]
        # 1 and 1.0 are equal and not the same label: compared as they are written.
        if repr(labels(words)) != repr(value):
            raise _NoWordsError
        for word in words:
            yield from (_Flag("--class"), word)
    elif name == "head":
        yield from _head(value)
    elif name in ("drop_missing", "escape_formulas") and value:
        yield _Flag(f"--{name.replace('_', '-')}")
    else:
        raise _NoWordsError


def _text(text: RowText | None) -> Iterator[str]:
    if text is None or text.missing != RowText("a").missing:
        raise _NoWordsError
    for flag, part in (("--text", text.first), ("--pair", text.second)):
        if isinstance(part, tuple) and len(part) == 1:
            raise _NoWordsError  # a list of one column; one --text is the column as it is
        for word in () if part is None else (part,) if isinstance(part, str) else part:
            yield from (_Flag(flag), word)


def _head(options: Any) -> Iterator[str]:
    for name, value in options.items():
        plain = isinstance(value, str) and head_options([f"{name}={value}"])[name] == value
        word = f"{name}={value if plain else json.dumps(value, ensure_ascii=False)}"
        try:
            same = head_options([word]) == {name: value}
        except RunError:
            same = False
        if not same:
            raise _NoWordsError
        yield from (_Flag("--head"), word)


def _call(record: RunRecord, out: str) -> str:
    """The call of `mlxbert.train`; what a competition brings is written out."""
    given = {
        one.name: getattr(record.settings, one.name)
        for one in fields(RunSettings)
        if one.name not in ("submission", "competition")
    }
    defaults = {one.name: one.default for one in (*fields(RunSettings), *fields(TrainingConfig))}
    values = {**given, **{one.name: getattr(record.config, one.name) for one in fields(TrainingConfig)}, "out": out}
    data = "frame" if record.data.path is None else repr(record.data.path)
    said = [
        f"{name}={'frame' if value == FRAME else repr(value)}"
        for name, value in values.items()
        if value not in (defaults.get(name), {}, ())
    ]
    return "mlxbert.train(\n    " + ",\n    ".join([data, *said]) + ",\n)"
