"""run.json as a checked record: its only reader, and the rules that follow from it.

Fields that this version does not know are kept in `values`, and written back when a run goes on.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from heads.head_registry import COMPETITION_TYPES
from mlxbert.backend.device import blas_name, blas_threads, device_name, package_versions
from mlxbert.checkpoint import read_config
from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.infer_task import InferredTask
from mlxbert.data.reading import Kind
from mlxbert.data.submission import Submission
from mlxbert.data.text_columns import RowText
from mlxbert.errors import printable
from mlxbert.factory import Problem
from mlxbert.files.reading import from_json, read_json, sha256_hex
from mlxbert.runs.files import FIX, RunError
from mlxbert.runs.settings import RunSettings
from mlxbert.training.config import TrainingConfig
from mlxbert.training.parallel import current_world

FORMAT, VERSION = "mlxbert-run", 1
INFO, BLEND = "run.json", "blend.json"


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
            too_long = len(name.encode("utf-8", "replace")) > 255  # the limit of file systems
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
        """The models that predict: all; of forward-chaining folds those of the last one, trained on the most rows."""
        if self.folds.kind != "forward":
            return self.members
        last = f"-fold{self.folds.count - 1}"
        return tuple(name for name in self.members if name.endswith(last))


def is_run(root: Path) -> bool:
    """Return whether a directory holds a run.json of this project, of any version.

    Raises:
        RunError: its run.json is not a regular file, or not a JSON object.
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
# If one of these changes, sums, texts, folds, thresholds or digits may change. The others are information.
_BINDING = ("mlxbert", "device", "blas", "threads", "ranks", "machine", *(f"packages.{name}" for name in _PACKAGES))


def environment() -> dict[str, Any]:
    """Return the environment for run.json; it holds no host, user or path.

    "ranks" is the number of processes that train together, if there are several.
    """
    ranks = current_world().size
    return {
        "mlxbert": package_versions(["mlxbert"])["mlxbert"],
        "python": platform.python_version(),
        "platform": platform.system(),
        "machine": platform.machine(),
        "device": device_name(),
        "blas": blas_name(),
        "threads": blas_threads(),
        "packages": package_versions(_PACKAGES),
        **({"ranks": ranks} if ranks > 1 else {}),
    }


def check_environment(then: Mapping[str, Any]) -> None:
    """Refuse to resume a run in an environment that computes other bits.

    Raises:
        RunError: names the changes, and how to resume nevertheless.
    """
    now = environment()
    both = {name: (_get(then, name), _get(now, name)) for name in _BINDING}
    changed = [f"{name} was {was}, is {value}" for name, (was, value) in both.items() if was != value]
    if changed:
        ranks = then.get("ranks", 1)
        start = (
            ""
            if ranks == now.get("ranks", 1)
            else f"mlx.launch -n {ranks}, or "
            if ranks != 1
            else "no mlx.launch, or "
        )
        raise RunError(
            f"the run was begun elsewhere ({'; '.join(changed)}), and would not end in the same bytes; "
            f"fix: {start}--allow-changes to go on all the same"
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


def new_record(
    settings: RunSettings,
    config: TrainingConfig,
    problem: Problem,
    *,
    metric: str,
    members: Sequence[str],
    data: Mapping[str, Any],
    folds: FoldsRecord,
    directory: Path,
    form: Submission,
) -> RunRecord:
    """Return the run.json of a run that begins now.

    Args:
        settings: of the run.
        config: of the training.
        problem: what is learned.
        metric: the metric to optimize.
        members: names of the models, in the order of training.
        data: the fields of `DataRecord` beside those that follow from the other arguments.
        folds: kind, number and digest of the folds.
        directory: the converted encoder.
        form: the format of the submissions.

    Raises:
        RunError: UTF-8, and so run.json, cannot hold a path.
    """
    tables = {"data": data, "validation data": data.get("valid"), "test data": data.get("test")}
    paths = {"model": settings.model, **{what: table["path"] for what, table in tables.items() if table is not None}}
    for what, path in paths.items():
        if path is not None and any("\ud800" <= character <= "\udfff" for character in path):
            raise RunError(
                f"{path}: the {what}'s path is no text in UTF-8, so run.json cannot name it; fix: rename it"
            )
    source = read_config(directory, other_tools=True).get("mlxbert") or {}  # other tools write none
    values = {
        "format": FORMAT,
        "version": VERSION,
        "created": _now(),
        "competition": settings.competition,
        "task": asdict(problem.task),
        "metric": metric,
        "metrics": list(dict.fromkeys((metric, *problem.head_class.metrics))),
        "data": {
            **data,
            "text": problem.text.to_dict(),
            "id": settings.id,
            "group": settings.group,
            "time": settings.time,
        },
        "model": {
            "checkpoint": settings.model,
            "manifest_sha256": sha256_hex(directory / "manifest.json", RunError),
            "config_sha256": sha256_hex(directory / "config.json", RunError),
            "source": source.get("source"),
            "revision": source.get("revision"),
        },
        "settings": settings.to_dict(),
        "config": config.to_dict(),
        "folds": asdict(folds),
        "members": list(members),
        "submission": asdict(form),
        "environment": environment(),
    }
    return RunRecord.of(json.loads(json.dumps(values)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_same(now: RunRecord, before: RunRecord) -> None:
    """Refuse to resume with other data, folds or another encoder than the run began with.

    Raises:
        RunError: names what has changed.
    """
    data, encoder = now.data.path or "the frame", now.model.checkpoint
    test, earlier = now.data.test, before.data.test
    if test and earlier and test.sha256 != earlier.sha256:
        raise RunError(
            f"{test.path or 'the test frame'} has changed since the run began; fix: put back what it was, or train "
            "anew"
        )
    put_back = "put the checkpoint back that the run began with"
    for what, is_now, was_then, fix in (
        (
            f"{data}: the data have",
            now.data.examples_sha256,
            before.data.examples_sha256,
            "give what the run began with",
        ),
        ("the folds have", now.folds.sha256, before.folds.sha256, "use the package versions of run.json"),
        (f"{encoder}: the encoder has", now.model.manifest_sha256, before.model.manifest_sha256, put_back),
        (f"{encoder}: config.json has", now.model.config_sha256, before.model.config_sha256, put_back),
        ("run.json: the members have", now.members, before.members, "restore run.json from a copy of the run"),
    ):
        if is_now != was_then:
            raise RunError(f"{what} changed since the run began; fix: {fix}, or train anew")


def compared(record: RunRecord) -> dict[str, Any]:
    """Return the facts of a run in which processes that train it together must not differ, by name.

    No paths: a machine may have the same files at another place.
    """
    values = record.values
    paths = ("model", "valid", "test", "sample_submission")
    settings = {name: value for name, value in values["settings"].items() if name not in paths}
    facts: dict[str, Any] = {
        "the data's digest": record.data.examples_sha256,
        "the checkpoint's digest": record.model.manifest_sha256,
        "the checkpoint's config digest": record.model.config_sha256,
        "the folds' digest": record.folds.sha256,
        "members": list(record.members),
    }
    now = environment()
    facts |= {name: _get(now, name) for name in ("python", *_BINDING)}
    facts |= {f"config.{name}": value for name, value in values["config"].items()}
    return facts | {f"settings.{name}": value for name, value in settings.items()}


# What may differ between machines that train models of one run: when, and under which paths they see its files.
_OF_MACHINE = re.compile(
    r"created|resumed(\..*)?|environment\..*|data\.((valid|test)\.)?path|model\.checkpoint|"
    r"settings\.(model|valid|test|sample_submission)"
)


def check_joined(now: RunRecord, there: RunRecord, file: Path) -> None:
    """Refuse to train a model of a run that another process began with other data, settings or encoder.

    Args:
        now: what this process would have written.
        there: what is in `file`.
        file: for the message.

    Raises:
        RunError: names the first differences.
    """
    here, begun = _flat(now.values), _flat(there.values)
    different = [
        f"{name} is {printable(_shown(begun, name), 60)} there and {printable(_shown(here, name), 60)} here"
        for name in dict.fromkeys((*begun, *here))
        if not _OF_MACHINE.fullmatch(name) and begun.get(name, _ABSENT) != here.get(name, _ABSENT)
    ]
    if different:
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        raise RunError(
            f"{file}: another process began another run ({'; '.join(different[:3])}{more}); fix: the data and options "
            "of that run, or another -o DIRECTORY"
        )


_ABSENT = "absent"


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Return the values of nested objects by their dotted names."""
    if not isinstance(value, Mapping) or not value:
        return {place: value}
    inner = (_flat(value[name], f"{place}.{name}" if place else name) for name in value)
    return {name: leaf for leaves in inner for name, leaf in leaves.items()}


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else _ABSENT


def going_on(before: RunRecord, environment: Mapping[str, Any]) -> RunRecord:
    """Return the record of a resumed run; an environment that differs from the last one is added to `resumed`."""
    last = before.resumed[-1].environment if before.resumed else before.environment
    if environment == last:
        return before
    resumed = [*before.values.get("resumed", ()), {"at": _now(), "environment": dict(environment)}]
    return RunRecord.of({**before.values, "resumed": resumed})
