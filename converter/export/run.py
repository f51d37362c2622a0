"""`export_directory`: export a checkpoint, a trained model or a run for a place without MLX."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from converter.export.checkpoint import ExportError, export
from converter.export.member import MemberExport, read_member, write_member
from mlxbert.adapters.files import is_adapter_directory
from mlxbert.errors import first_ten
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.reading import expand_home, read_bytes, read_json, require_inside, require_own_files
from mlxbert.runs.inputs import compared_values
from mlxbert.runs.record import INFO, RunRecord, is_run, read_record
from mlxbert.runs.scores import SCORES
from mlxbert.tokenization.build import missing_tokenizer
from mlxbert.tokenization.files import TOKENIZER_FILES, has_tokenizer
from mlxbert.tokenization.tokenizer import Tokenizer

FORMAT, VERSION = "mlxbert-inference", 1
SCRIPT, SETTINGS, CODE = "inference.py", "inference.json", "inference_modules"

SHARED = (
    "heads.errors",
    "heads.forward_chaining",
    "mlxbert.data.frames",
    "mlxbert.data.submission",
    "mlxbert.data.text_columns",
    "mlxbert.errors",
)
"""Modules that an exported `inference.py` needs, beside those in `inference_modules`: Python and NumPy alone."""


@dataclass(frozen=True)
class ExportedRun:
    """A run whose models are exported.

    Attributes:
        record: `run.json`.
        members: the directories of its models, by name.
    """

    record: RunRecord
    members: dict[str, Path]


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        path: the exported directory.
        what: how many models, as which class, and why.
        use: how to use it, in lines.
    """

    path: Path
    what: str
    use: tuple[str, ...]


def export_directory(
    source: str | Path, out: str | Path, *, base: str | Path | None = None, overwrite: bool = False
) -> Exported:
    """Write `source` for a place without MLX.

    A converted checkpoint becomes the Hugging Face directory that it came from. A trained model, or each member of a
    run, becomes a Hugging Face directory too, with `inference.py` beside them all.

    Args:
        source: a converted directory, one of `BertWithHead.save`, or a finished run.
        out: the directory to write.
        base: the base of a model's adapters, which are merged; None: the recorded place.
        overwrite: replace an exported one that is there already.

    Raises:
        ExportError: it is none of these, is unfinished or quantized, or has a head that inference.py does not know.
        MLXBertError: it is damaged, or `out` cannot be written; nothing was written, nothing lost.
    """
    source, out = expand_home(source), expand_home(out)
    if (source / INFO).exists():
        run = read_run(source)
        return _export_models(source, out, run, run.members, base, overwrite=overwrite)
    if source.is_dir():
        require_own_files(source, ExportError)
    if _is_trained(source):
        return _export_models(source, out, run_of(source), {source.name: source}, base, overwrite=overwrite)
    path = export(source, out, overwrite=overwrite)
    return Exported(
        path,
        "the checkpoint it was converted from",
        (f"transformers.AutoModel.from_pretrained({json.dumps(str(path))})",),
    )


def read_run(directory: Path) -> ExportedRun:
    """Return the finished run in `directory`.

    Raises:
        RunError: `run.json` is damaged, or not ours.
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
    """Return the run that a member's directory lies in; None if it stands alone.

    Raises:
        RunError: the run's `run.json` is damaged.
    """
    run = member.resolve().parent.parent
    if member.resolve().parent.name != "members" or not is_run(run):
        return None
    record = read_record(run)
    return ExportedRun(record, {member.name: member}) if member.resolve().name in record.members else None


def _is_trained(directory: Path) -> bool:
    """Return whether the model in a directory has a head that mlxbert trained; refuse one that is quantized."""
    config = read_json(directory / "config.json", ExportError) if directory.is_dir() else None
    ours = (config or {}).get("mlxbert")
    if not isinstance(ours, dict) or not isinstance(ours.get("head"), dict):
        return False
    if config and ("quantization" in config or "quantization_config" in config):
        fix = (
            "--peft exports its adapters alone" if is_adapter_directory(directory) else "export the unquantized model"
        )
        raise ExportError(f"{directory}: is quantized, which has no PyTorch form; fix: {fix}")
    return True


def _export_models(
    source: Path,
    out: Path,
    run: ExportedRun | None,
    members: Mapping[str, Path],
    base: str | Path | None,
    *,
    overwrite: bool,
) -> Exported:
    is_alone = len(members) == 1
    folders = {name: "" if is_alone else f"members/{name}/" for name in members}
    for directory in members.values():
        require_inside(directory, source, ExportError)
        require_own_files(directory, ExportError)
        _is_trained(directory)
    _check_tokenizers(list(members.values()))
    with OutputDirectory(out, overwrite=overwrite, source=source) as output:
        config: dict[str, Any] = {}
        for name, directory in members.items():  # one model in memory at a time
            member = read_member(directory, base=base)
            member_config = write_member(output, member, folders[name])
            if not is_alone:
                output.write_json(f"{folders[name]}config.json", member_config)
            config = config or member_config
        settings = inference_settings(
            run, [folder or "." for folder in folders.values()], member, _tokenizer(directory, member, run)
        )
        output.write_json(SETTINGS, settings)
        for name, text in code_files():
            output.write_bytes(name, text.encode())
        if not is_alone:  # lists the encoder's files, which are not at this place
            config = {key: value for key, value in config.items() if key != "architectures"}
        path = output.commit(config)
    models = f"{len(members)} model{'' if is_alone else 's, each'}"
    return Exported(path, f"{models} as {member.why}", _use(path, settings, member))


def _check_tokenizers(members: list[Path]) -> None:
    """Refuse members with different tokenizers: texts are tokenized once for all."""

    def files(directory: Path) -> dict[str, bytes]:
        contents = {name: read_bytes(directory / name, ExportError) for name in TOKENIZER_FILES}
        return {name: data for name, data in contents.items() if data is not None}

    first = files(members[0])
    if not has_tokenizer(first):
        raise ExportError(missing_tokenizer(members[0]))
    others = [str(member) for member in members[1:] if files(member) != first]
    if others:
        raise ExportError(
            f"{len(others)} members have another tokenizer than {members[0].name}; fix: train again\n"
            + first_ten(others)
        )


def _tokenizer(directory: Path, member: MemberExport, run: ExportedRun | None) -> Tokenizer:
    """Return the tokenizer, with the length of the model, or of a run, as the longest of a call."""
    config = member.model.core.config
    wanted = config.max_length if run is None else min(run.record.data.max_length, config.longest_input)
    return Tokenizer.from_directory(directory, max_length=wanted)


def inference_settings(
    run: ExportedRun | None, members: list[str], member: MemberExport, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return `inference.json`: how a row becomes a text, the format of the submission, which members are averaged.

    Args:
        run: None for a single model, whose user names the text column.
        members: the directories of the models, relative to the export.
        member: one of them.
        tokenizer: of the member, with the encoder's length as its limit where it has none.

    Raises:
        ExportError: the submission's format does not fit the head.
    """
    head, config = member.model.head, member.model.core.config
    limit = tokenizer.max_length or config.max_length
    classes = getattr(head, "classes", None)
    settings: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "task": head.head_name,
        "target": ["target"],
        "classes": None if classes is None else list(classes),
        "text": None,
        "kinds": {},
        "quoting": None,
        "id": None,
        "time": None,
        "max_length": limit,
        "submission": _usual_submission(member),
        "known_columns": run is not None,
        # The types that the model was trained with: the tokenizer may give none, the model may have none.
        "token_types": tokenizer.type_limit != 0 and "token_type_ids" in config.table_rows,
    }
    if run is not None:
        settings |= _run_settings(run.record)
    _check_submission(settings["submission"], member)
    return {**settings, "members": members}


def _run_settings(record: RunRecord) -> dict[str, Any]:
    data, metric, ready = record.data, record.config.metric, record.settings.submission
    return {
        "target": list(record.task.target),
        "text": data.text.to_dict(),
        "kinds": dict(data.kinds),
        "quoting": data.quoting,
        "id": data.id,
        "time": data.time,
        "submission": asdict(record.submission),
        # These decide the format if a sample does not.
        "id_found": data.id_found,
        "wanted": None if metric is None else compared_values(metric),
        "ready": ready is not None and record.settings.values in (None, ready.values),
        "values": record.settings.values,
    }


def _usual_submission(member: MemberExport) -> dict[str, Any]:
    """Return the format of a model without its run: the columns of its head; the ids are row numbers."""
    head: Any = member.model.head
    values, (count, *_) = next(iter(member.exported.columns(head).items()))
    columns = [str(label) for label in getattr(head, "classes", ())]
    if len(columns) != count:
        columns = ["target"] if count == 1 else [f"target_{i}" for i in range(count)]
    return {"id_column": "id", "columns": columns, "values": values}


def _check_submission(submission: dict[str, Any], member: MemberExport) -> None:
    """Refuse a format with fewer or more columns than inference.py writes."""
    name, values, columns = member.model.head.head_name, submission["values"], submission["columns"]
    counts = member.exported.columns(member.model.head).get(str(values))
    if counts is None:
        raise ExportError(f"run.json: a submission of {values!r} does not fit the head {name!r}; fix: train again")
    if len(columns) not in counts:
        raise ExportError(
            f"run.json: the submission has {len(columns)} columns, and {name} gives {counts[0]} of {values}; "
            "fix: train again"
        )


def code_files() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every file of code in an exported directory.

    The modules are copies; where they import each other, they do so inside the folder.
    """
    here = Path(__file__).parent
    yield SCRIPT, (here / SCRIPT).read_text(encoding="utf-8")
    for file in sorted((here / CODE).glob("*.py")):
        yield f"{CODE}/{file.name}", _inside_folder(file)
    for module in SHARED:
        spec = find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        is_package = spec.submodule_search_locations is not None
        name = module.replace(".", "/") + ("/__init__.py" if is_package else ".py")
        yield f"{CODE}/{name}", _inside_folder(Path(spec.origin))


def _inside_folder(file: Path) -> str:
    """Return a module's text; its imports of our modules lead to the folder of the exported code."""
    text = file.read_text(encoding="utf-8")
    text = re.sub(rf"^(\s*from )converter\.export\.{CODE}\b", rf"\1{CODE}", text, flags=re.MULTILINE)
    return re.sub(r"^(\s*from )(heads|mlxbert)\b", rf"\1{CODE}.\2", text, flags=re.MULTILINE)


def _use(path: Path, settings: Mapping[str, Any], member: MemberExport) -> tuple[str, ...]:
    column = "" if settings["text"] is not None else " --text COLUMN"
    lines = [
        f"python {shlex.quote(str(path / SCRIPT))} test.csv -o submission.csv{column}",
        "upload the folder as a Kaggle dataset; in the notebook, without internet: "
        f"!python /kaggle/input/NAME/{SCRIPT} test.csv -o submission.csv{column}",
    ]
    if member.is_whole and len(settings["members"]) == 1:
        lines.append(f"transformers.AutoModelForSequenceClassification.from_pretrained({json.dumps(str(path))})")
    return tuple(lines)
