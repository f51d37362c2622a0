"""run.json and scores.json as checked records: the only reader of these files, and the rules that follow from them.

Fields that this version does not know are kept in `values`, and written back when a run goes on.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from heads.head_registry import COMPETITION_TYPES
from mlxbert.backend.device import blas_name, blas_threads, device_name, package_versions
from mlxbert.data.competitions import Submission
from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.frames import Kind
from mlxbert.data.infer_task import InferredTask
from mlxbert.data.text_columns import RowText
from mlxbert.errors import printable
from mlxbert.files.reading import from_json, read_json
from mlxbert.runs.files import FIX, RunError
from mlxbert.runs.settings import RunSettings
from mlxbert.training.config import TrainingConfig

FORMAT, VERSION = "mlxbert-run", 1
INFO, SCORES, BLEND = "run.json", "scores.json", "blend.json"


@dataclass(frozen=True)
class InputFile:
    """A file that the run has read: its path as it was given (None: a frame), SHA-256, bytes and rows."""

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
        max_length: longest text in tokens; longer texts are cut.
        examples_sha256: of the encoded rows and their targets.
        size: bytes of the file.
        quoting: how cells of a text table are quoted.
        id: the column that names a row; likewise `group` and `time`.
        id_found: whether the id column was found by its name.
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
    """The encoder that the run began with: its path, the digests of its files, and its source."""

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
    """A later sitting of a run in another environment than the sitting before."""

    at: str
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json: everything needed to repeat a run.

    Attributes:
        task: what the target is.
        metric: the metric to optimize; `metrics`: all that are reported.
        settings: columns and files; `config`: the settings of the training.
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
        """Refuse an unknown task, and members that are not names of folders in the run."""
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
        """Return the record of a JSON object; `place` begins the message of an error.

        Raises:
            RunError: a field is missing or of the wrong type; it is named.
        """
        record = from_json(cls, {**values, "values": {}}, place=str(place), fix=FIX, error=RunError)
        return replace(record, values=dict(values))

    @property
    def prediction_members(self) -> tuple[str, ...]:
        """The models that predict: all; with forward-chaining folds those of the last fold, which saw most rows."""
        if self.folds.kind != "forward":
            return self.members
        last = f"-fold{self.folds.count - 1}"
        return tuple(name for name in self.members if name.endswith(last))


def is_run(root: Path) -> bool:
    """Return whether a directory holds a run.json of this project, of any version.

    Raises:
        RunError: its run.json is no regular file, or no JSON object.
    """
    return (read_json(root / INFO, RunError) or {}).get("format") == FORMAT


def read_values(root: Path) -> dict[str, Any]:
    """Return the JSON object in run.json; only its format and version are checked.

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


_PACKAGES = ("mlx", "numpy", "pandas", "scikit-learn", "scipy", "tokenizers", "scipy-openblas32")
# If one of these changes, sums, texts, folds, thresholds or digits may change. The others are for the record.
_BINDING = ("mlxbert", "device", "blas", "threads", "machine", *(f"packages.{name}" for name in _PACKAGES))


def environment() -> dict[str, Any]:
    """Return the environment for run.json; it holds no host, user or path."""
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
    """Refuse to resume a run in an environment that gives other bits.

    Raises:
        RunError: names what has changed, and how to resume all the same.
    """
    now = environment()
    both = {name: (_get(then, name), _get(now, name)) for name in _BINDING}
    changed = [f"{name} was {was}, is {value}" for name, (was, value) in both.items() if was != value]
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


def check_known_settings(record: RunRecord, file: Path) -> None:
    """Refuse to train with settings that this version does not know.

    Raises:
        RunError: names them.
    """
    for part, kind in (("settings", RunSettings), ("config", TrainingConfig)):
        unknown = [name for name in record.values[part] if name not in {setting.name for setting in fields(kind)}]
        if unknown:
            names = ", ".join(printable(name, 60) for name in unknown[:10])
            raise RunError(f"{file}: {part} has {names}, which this mlxbert does not know; fix: update mlxbert")


@dataclass(frozen=True)
class MemberScores:
    """A finished model on the rows that its fold held out; `step` and `epoch` are those of the kept weights."""

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
        metric: the metric that was optimized.
        members: each model on its own held-out rows.
        spread: each metric over the models.
        pooled: metrics of all out-of-fold rows together; NaN: undefined.
        seconds: duration of the run, all sittings together.
        hold_out: scores of the rows held out of everything; None: there are none.
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
