"""The conversion, from a source to a verified MLX checkpoint."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from converter.canonical import plan_source, read
from converter.card import render_card
from converter.dtypes import CODES, output_dtype
from converter.facts import TOKENIZER_FILES, card_facts
from converter.mapping import Plan, Planned
from converter.mappings import mapping_for
from converter.source import Source, open_source
from converter.source_card import SourceCard, read_source_card
from mlxbert.errors import MLXBertError
from mlxbert.home import expand_home
from mlxbert.writer.output_directory import OutputDirectory
from mlxbert.writer.recovery import recover
from mlxbert.writer.safetensors_writer import PlannedTensor
from mlxbert.writer.target import check_target

if TYPE_CHECKING:
    from converter.parity.report import ParityReport

FORMAT_VERSION = 1

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class ParityFailedError(MLXBertError):
    """The conversion is not the same model as its source; nothing was written."""

    def __init__(self, message: str, report: ParityReport):
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class ConvertResult:
    """What a conversion did.

    Attributes:
        path: the converted directory.
        dtype: of every tensor in it.
        parameters: how many numbers the encoder has.
        size: bytes of `model*.safetensors`.
        heads: names of the checkpoint's own head tensors, kept in `heads.safetensors`.
        dropped: source tensors that were not written, and why.
        notes: what the user should know.
        report: the parity report; None where nothing was compared.
        unverified: why not, where nothing was.
    """

    path: Path
    dtype: str
    parameters: int
    size: int
    heads: tuple[str, ...]
    dropped: Mapping[str, str]
    notes: tuple[str, ...]
    report: ParityReport | None
    unverified: str | None


def convert(
    src: str | Path,
    out: str | Path | None = None,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    config: str | Path | None = None,
    verify: bool | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert a PyTorch or Hugging Face checkpoint to a directory that MLX loads.

    Args:
        src: a Hub id, a directory, or one file.
        out: the directory to write; None: `mlx_models/` and the last part of `src`.
        dtype: "float32", "float16" or "bfloat16"; None: the source's own (float64 becomes float32).
        revision: a branch, tag or commit, where `src` is a Hub id.
        config: a `config.json`, where the source has none beside it.
        verify: compare with PyTorch; None: where torch and transformers are installed.
        overwrite: replace `out` where it is a converted model already.
        progress: told how far each step is.

    Raises:
        ParityFailedError: the two models differ; nothing was written.
        MLXBertError: the source, the configuration, or the output is at fault; nothing was written, nothing lost.
    """
    progress = progress or _silent
    target = expand_home(out) if out is not None else default_output(str(src))
    # Before anything else can fail: a model that a killed run had moved aside comes back even if this source is bad.
    recover(target)
    check_target(target, overwrite=overwrite)
    source = open_source(str(src), revision=revision, config=None if config is None else expand_home(config))
    _, planned = plan_source(source)
    unverified = why_not_verified(source, verify)
    dtype = output_dtype([source.entries[item.source].dtype for item in planned.encoder], dtype)
    source_card, card_notes = _source_card(source)
    notes = [*source.notes, *_notes(source, planned, dtype), *card_notes]

    given = expand_home(src) if expand_home(src).is_file() else source.directory
    with OutputDirectory(target, overwrite=overwrite, source=given) as output:
        tensors = _to_write(source, planned.encoder, dtype)
        heads = _to_write(source, planned.heads, dtype)
        total = sum(tensor.nbytes for tensor in (*tensors, *heads))
        done = Counter[str]()

        def written(tensor: PlannedTensor) -> None:
            done["bytes"] += tensor.nbytes
            progress("convert", done["bytes"], total)

        progress("convert", 0, total)
        output.write_model(tensors, on_tensor=written)
        if heads:
            output.write_safetensors("heads.safetensors", heads, on_tensor=written)
        for name, file in source.side_files.items():
            output.copy(name, file)
        hf_config = _output_config(source, planned, dtype, source_card)

        report = None
        if unverified is None:
            from converter.verify import verify_staged

            report = verify_staged(source, output.path, hf_config, progress=progress)
            if not report.passed:
                raise ParityFailedError(
                    f"{src}: parity FAILED ({report.failures[0]}); nothing was written to {target}; "
                    "fix: report it, or write it all the same with --no-verify",
                    report,
                )
            output.write_bytes("parity.json", report.to_json().encode())
        facts = card_facts(output.path, hf_config, report, name=target.name, records=output.records)
        output.write_bytes("README.md", render_card(facts).encode())
        output.commit(hf_config)

    return ConvertResult(
        path=target,
        dtype=dtype,
        parameters=facts.parameters,
        size=sum(tensor.nbytes for tensor in tensors),
        heads=facts.heads,
        dropped=planned.dropped,
        notes=tuple(notes),
        report=report,
        unverified=unverified,
    )


def default_output(src: str) -> Path:
    """`mlx_models/NAME`: the last part of a Hub id or a directory's path; of a file, that of its directory."""
    path = expand_home(src)
    name = path.parent.resolve().name if path.is_file() else path.resolve().name if path.exists() else path.name
    return Path("mlx_models") / (name or "model")


def why_not_verified(source: Source, verify: bool | None) -> str | None:
    """Why a conversion will not be compared with PyTorch, or None: it will be.

    Raises:
        MLXBertError: verification is demanded, and cannot be had.
    """
    if verify is False:
        return "--no-verify"
    reason = None
    if source.format == "npz":
        reason = "an .npz has no PyTorch reference; run mlxbert-verify with --reference of the original"
    elif any(importlib.util.find_spec(package) is None for package in ("torch", "transformers")):
        reason = 'torch and transformers are not installed; pip install "mlxbert[torch]"'
    if reason and verify:
        raise MLXBertError(f"--verify: cannot compare with PyTorch: {reason}")
    return reason


def converter_version() -> str:
    """The installed version of mlxbert."""
    try:
        return version("mlxbert")
    except PackageNotFoundError:
        return "0+uninstalled"


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _to_write(source: Source, items: tuple[Planned, ...], dtype: str) -> list[PlannedTensor]:
    return [PlannedTensor(item.target, item.shape, CODES[dtype], partial(read, source, item, dtype)) for item in items]


def _notes(source: Source, planned: Plan, dtype: str) -> list[str]:
    notes = []
    kinds = Counter(source.entries[item.source].dtype for item in planned.encoder)
    if "F64" in kinds and dtype == "float32":
        notes.append(f"{kinds['F64']} float64 tensors become float32: MLX has no float64 on a GPU")
    elif len(kinds) > 1:
        notes.append(f"the source mixes {', '.join(sorted(kinds))}: all become {dtype}")
    if not any(item.target.startswith("pooler.") for item in planned.encoder):
        notes.append("the source has no pooler, so neither has the output")
    if not any(name in source.side_files for name in TOKENIZER_FILES):
        notes.append(
            "the source has no tokenizer (tokenizer.json or vocab.txt): copy one into the output to encode text"
        )
    return notes


def _source_card(source: Source) -> tuple[SourceCard, list[str]]:
    """What the card takes over from the source's; of our own output as SRC, what that took over from its own."""
    earlier = source.config.get("mlxbert")
    return (SourceCard.from_block(earlier), []) if isinstance(earlier, dict) else read_source_card(source.directory)


def _output_config(source: Source, planned: Plan, dtype: str, card: SourceCard) -> dict[str, Any]:
    """The source's `config.json`, its keys kept, with `dtype` and `architectures` made true."""
    mapping = mapping_for(source.config)
    config = {**source.config, "architectures": [mapping.base_class], "dtype": dtype}
    if "torch_dtype" in config:  # what transformers < 4.56 reads
        config["torch_dtype"] = dtype
    origin = config.get("_name_or_path")
    if isinstance(origin, str) and (origin.startswith(("/", "~")) or "\\" in origin):
        config["_name_or_path"] = PurePath(origin.replace("\\", "/")).name  # a path tells who trained it, and where
    # Our own output as SRC, to change its dtype: its class is "BertModel" now, and the first one is in its block.
    earlier = source.config.get("mlxbert")
    classes = (earlier if isinstance(earlier, dict) else {}).get("original_architectures")
    config["mlxbert"] = {
        "format_version": FORMAT_VERSION,
        "source": source.name,
        "revision": source.revision,
        "converter_version": converter_version(),
        "original_architectures": classes or source.config.get("architectures"),
        "dropped": planned.dropped,
        "source_card": card.as_block(),
    }
    return config
