"""`export_directory`: whatever mlxbert wrote (a converted checkpoint, a trained model, a run) for PyTorch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.export import ExportError, export
from converter.run_export.member import SEQUENCE, MemberExport, read_member, write_member
from converter.run_export.run_settings import ExportedRun, inference_settings, read_run, run_of
from mlxbert.errors import first_ten
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.reading import read_bytes, read_json, require_inside, require_own_files
from mlxbert.home import expand_home
from mlxbert.runs.record import INFO
from mlxbert.tokenization import Tokenizer
from mlxbert.with_head import TOKENIZER_FILES

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

    A converted checkpoint becomes the Hugging Face directory that it came from (`converter.export.export`). A trained
    model, or each member of a run, becomes a Hugging Face directory too, with `inference.py` beside them all.

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
    positions = member.model.core.config.max_position_embeddings
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
