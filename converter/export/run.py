"""What `inference.json` says: how a row becomes a text, what the submission looks like, which members are averaged.

`export_directory`: whatever mlxbert wrote (a converted checkpoint, a trained model, a run) for PyTorch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.export.checkpoint import ExportError, export
from converter.export.member import SEQUENCE, MemberExport, read_member, write_member
from heads.base import Head
from heads.metrics import get_metric
from mlxbert.errors import first_ten
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.reading import expand_home, read_bytes, read_json, require_inside, require_own_files
from mlxbert.runs.record import INFO, SCORES, RunRecord, is_run, read_record
from mlxbert.tokenization.files import TOKENIZER_FILES
from mlxbert.tokenization.tokenizer import Tokenizer

FORMAT, VERSION = "mlxbert-inference", 1


@dataclass(frozen=True)
class ExportedRun:
    """A run whose models are exported.

    Attributes:
        record: `run.json`.
        members: the directories of its models, by name.
    """

    record: RunRecord
    members: dict[str, Path]


def read_run(directory: Path) -> ExportedRun:
    """Return the finished run in `directory`.

    Raises:
        RunError: `run.json` is damaged, or none of ours.
        ExportError: the run is unfinished, or a member is gone.
    """
    record = read_record(directory)
    if not (directory / SCORES).is_file():
        raise ExportError(
            f"{directory}: the run is not finished; fix: mlxbert train --resume {shlex.quote(str(directory))}"
        )
    members = {name: directory / "members" / name for name in record.prediction_members}
    missing = [name for name, member in members.items() if not (member / "config.json").is_file()]
    if missing:
        raise ExportError(f"{directory}: member {missing[0]!r} is missing; fix: train again")
    return ExportedRun(record, members)


def run_of(member: Path) -> ExportedRun | None:
    """Return the run that a member's directory lies in; None where it stands alone.

    Raises:
        RunError: the run's `run.json` is damaged.
    """
    run = member.resolve().parent.parent
    if member.resolve().parent.name != "members" or not is_run(run):
        return None
    record = read_record(run)
    return ExportedRun(record, {member.name: member}) if member.resolve().name in record.members else None


def inference_settings(run: ExportedRun | None, members: list[str], head: Head, limit: int | None) -> dict[str, Any]:
    """`inference.json`.

    Args:
        run: None for a model that stands alone: its column is then to be named when it predicts.
        members: their directories, relative to the export.
        head: of one of them.
        limit: tokens that the encoder and its tokenizer take.

    Raises:
        ExportError: the submission's format does not fit the head.
    """
    record = None if run is None else run.record
    classes = getattr(head, "classes", None)
    submission = _usual_submission(head) if record is None else asdict(record.submission)
    _check_submission(submission, head)
    longest = None if record is None else record.data.max_length
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": head.head_name,
        "target": ["target"] if record is None else list(record.task.target),
        "classes": None if classes is None else list(classes),
        "text": None if record is None else record.data.text.to_dict(),
        "kinds": {} if record is None else dict(record.data.kinds),
        "quoting": None if record is None else record.data.quoting,
        "id": None if record is None else record.data.id,
        "time": None if record is None else record.data.time,
        "max_length": min((n for n in (longest, limit) if n is not None), default=512),
        "submission": submission,
        "known_columns": record is not None,
        **({} if record is None else _rules(record)),
        "members": members,
    }


def _rules(record: RunRecord) -> dict[str, Any]:
    """What decides how a submission is written where a sample leaves that open, and how a table is read."""
    asked = record.config.metric
    wanted = None if asked is None else "labels" if get_metric(asked).needs == "labels" else "probabilities"
    own = record.settings.submission
    ready = own is not None and record.settings.values in (None, own.values)
    return {"id_found": record.data.id_found, "wanted": wanted, "ready": ready, "values": record.settings.values}


def _usual_submission(head: Head) -> dict[str, Any]:
    """For a model without its run: the columns that its head has, the ids row numbers."""
    name = head.head_name
    values = {"binary": "probabilities", "multilabel": "probabilities", "multiclass": "labels", "ordinal": "labels"}
    columns = ["target"]
    if name == "multilabel":
        columns = [str(label) for label in head.classes]
    elif name == "regression" and head.num_targets > 1:
        columns = [f"target_{i}" for i in range(head.num_targets)]
    return {"id_column": "id", "columns": columns, "values": values.get(name, "values")}


def _check_submission(submission: dict[str, Any], head: Any) -> None:
    """The run's format has a column for everything that inference.py will write, and nothing else."""
    name, values, columns = head.head_name, submission["values"], submission["columns"]
    widths = {
        ("binary", "labels"): 1,
        ("binary", "probabilities"): 1,
        ("multiclass", "labels"): 1,
        ("multiclass", "probabilities"): head.num_outputs,
        ("ordinal", "labels"): 1,
        ("ordinal", "probabilities"): head.num_outputs + 1,
        ("multilabel", "labels"): head.num_outputs,
        ("multilabel", "probabilities"): head.num_outputs,
        ("regression", "values"): getattr(head, "num_targets", 1),
        ("time_series", "values"): 1,
    }
    width = widths.get((name, str(values)))
    if (name, values) == ("ordinal", "probabilities") and len(columns) == 1:
        width = 1  # the expected rank
    if width is None:
        raise ExportError(f"run.json: a submission of {values!r} does not fit the head {name!r}; fix: train again")
    if len(columns) != width:
        raise ExportError(
            f"run.json: the submission has {len(columns)} columns, and {name} gives {width} of {values}; "
            "fix: train again"
        )


SCRIPT = "inference.py"
SETTINGS = "inference.json"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: where.
        what: how many models, as which class, and why.
        use: how it is used next, a line each.
    """

    path: Path
    what: str
    use: tuple[str, ...]


def export_directory(source: str | Path, out: str | Path, *, overwrite: bool = False) -> Exported:
    """Write `source` for a place without MLX.

    A converted checkpoint becomes the Hugging Face directory that it came from. A trained model, or
    each member of a run, becomes a Hugging Face directory too, with `inference.py` beside them all.

    Args:
        source: a converted directory, one of `BertWithHead.save`, or a finished run.
        out: the directory to write.
        overwrite: replace an exported one that is there already.

    Raises:
        ExportError: it is none of these, is unfinished or quantized, or has a head that inference.py does not know.
        MLXBertError: it is damaged, or `out` cannot be written; nothing was written, nothing lost.
    """
    source, out = expand_home(source), expand_home(out)
    if (source / INFO).exists():
        run = read_run(source)
        return _export_models(source, out, run, run.members, overwrite=overwrite)
    if source.is_dir():
        require_own_files(source, ExportError)
    if _is_trained(source):
        return _export_models(source, out, run_of(source), {source.name: source}, overwrite=overwrite)
    path = export(source, out, overwrite=overwrite)
    return Exported(
        path,
        "the checkpoint it was converted from",
        (f"transformers.AutoModel.from_pretrained({json.dumps(str(path))})",),
    )


def _is_trained(directory: Path) -> bool:
    """Whether it has a head that mlxbert trained."""
    config = read_json(directory / "config.json", ExportError) if directory.is_dir() else None
    ours = (config or {}).get("mlxbert")
    if not isinstance(ours, dict) or not isinstance(ours.get("head"), dict):
        return False
    if config and ("quantization" in config or "quantization_config" in config):
        raise ExportError(f"{directory}: is quantized, which has no PyTorch form; fix: export the unquantized model")
    return True


def _export_models(
    source: Path, out: Path, run: ExportedRun | None, members: Mapping[str, Path], *, overwrite: bool
) -> Exported:
    alone = len(members) == 1
    folders = {name: "" if alone else f"members/{name}/" for name in members}
    for directory in members.values():
        require_inside(directory, source, ExportError)
        require_own_files(directory, ExportError)
        _is_trained(directory)
    _check_tokenizers(list(members.values()))
    with OutputDirectory(out, overwrite=overwrite, source=source) as output:
        config: dict[str, Any] = {}
        for name, directory in members.items():  # one model in memory at a time
            member = read_member(directory)
            own = write_member(output, member, folders[name])
            if not alone:
                output.write_json(f"{folders[name]}config.json", own)
            config = config or own
        settings = inference_settings(
            run, [folder or "." for folder in folders.values()], member.model.head, _limit(directory, member)
        )
        output.write_json(SETTINGS, settings)
        output.copy(SCRIPT, Path(__file__).with_name(SCRIPT))
        if not alone:  # of the encoder that the members share: no model lies here
            config = {key: value for key, value in config.items() if key != "architectures"}
        path = output.commit(config)
    return Exported(path, _what(member, len(members)), _use(path, settings, member))


def _limit(directory: Path, member: MemberExport) -> int:
    """Tokens that the encoder and its tokenizer take."""
    positions = member.model.core.config.max_length
    return Tokenizer.from_directory(directory, max_length=positions).max_length or positions


def _check_tokenizers(members: list[Path]) -> None:
    """Members of a run share their encoder's tokenizer: texts are tokenized once for all."""

    def files(directory: Path) -> dict[str, bytes]:
        found = {name: read_bytes(directory / name, ExportError) for name in TOKENIZER_FILES}
        return {name: data for name, data in found.items() if data is not None}

    first = files(members[0])
    if not {"tokenizer.json", "vocab.txt"} & set(first):
        raise ExportError(f"{members[0]}: has neither tokenizer.json nor vocab.txt; fix: train again")
    other = [str(member) for member in members[1:] if files(member) != first]
    if other:
        raise ExportError(
            f"{len(other)} members have another tokenizer than {members[0].name}; fix: train again\n{first_ten(other)}"
        )


def _what(member: MemberExport, count: int) -> str:
    return f"{count} model{'s, each' if count > 1 else ''} as {member.why}"


def _use(path: Path, settings: Mapping[str, Any], member: MemberExport) -> tuple[str, ...]:
    column = "" if settings["text"] is not None else " --text COLUMN"
    lines = [
        f"python {shlex.quote(str(path / SCRIPT))} test.csv -o submission.csv{column}",
        "upload the folder as a Kaggle dataset; in the notebook, without internet: "
        f"!python /kaggle/input/NAME/{SCRIPT} test.csv -o submission.csv{column}",
    ]
    if member.class_name == SEQUENCE and len(settings["members"]) == 1:
        lines.append(f"transformers.AutoModelForSequenceClassification.from_pretrained({json.dumps(str(path))})")
    return tuple(lines)
