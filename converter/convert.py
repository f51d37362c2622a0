"""The conversion, from a source to a verified MLX checkpoint."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.canonical import CODES, DTYPE_SUFFIXES, output_dtype, plan_source, read
from converter.card.card import render_card
from converter.card.facts import card_facts, weight_sums
from converter.card.loaders import Reading
from converter.card.source_card import SourceCard, read_source_card, with_reachable_link
from converter.card.usage import Usage
from converter.mapping import Planned
from converter.output import check_staged, choose_layout, notes_on, output_config, with_true_labels, write_side_files
from converter.publish.leaks import refuse_secrets
from converter.quantize.recipes import quantize_settings
from converter.source import Source, TensorEntry, local_name, open_source
from heads.install import install_fix
from mlxbert.errors import MLXBertError, reason
from mlxbert.files.output_directory import OutputDirectory, check_target, recover
from mlxbert.files.reading import expand_home
from mlxbert.files.safetensors import PlannedTensor

if TYPE_CHECKING:
    from converter.parity.report import ParityReport
    from converter.quantize.allotment import Allotment
    from converter.quantize.cost import QuantizationReport

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
        dtype: of every tensor in it, packed ones aside.
        parameters: how many numbers the encoder has.
        size: bytes of `model*.safetensors`.
        heads: names of the checkpoint's own head tensors.
        dropped: source tensors that were not written, and why.
        notes: what the user should know.
        report: the parity report; None where nothing was compared.
        unverified: why not, where nothing was.
        quantization: what was packed, and what that cost; None where nothing was.
        allotment: how `auto` came to its bits.
        full_layout: whether the head lies in `model.safetensors`.
        readings: which packages load it, and what differs there.
        usage: the calls that ran on the written files.
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
    quantization: QuantizationReport | None = None
    allotment: Allotment | None = None
    full_layout: bool = False
    readings: tuple[Reading, ...] = ()
    usage: Usage = field(default_factory=Usage)


def convert(
    src: str | Path,
    out: str | Path | None = None,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    config: str | Path | None = None,
    verify: bool | None = None,
    overwrite: bool = False,
    quantize: str | None = None,
    calibration: str | Path | None = None,
    target_size: str | int | None = None,
    target_bits: float | None = None,
    target_cosine: float | None = None,
    dequantize: bool = False,
    layout: str = "encoder",
    prefix: str | None = None,
    encoder_only: bool = False,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert a PyTorch or Hugging Face checkpoint to a directory that MLX loads.

    Args:
        src: a Hub id, a directory, or one file.
        out: the directory to write; None: `default_output`.
        dtype: "float32", "float16" or "bfloat16"; None: the source's own (float64 becomes float32), or where
            `quantize` is given float16: then it is that of scales and of what is not packed.
        revision: a branch, tag or commit, where `src` is a Hub id.
        config: a `config.json`, where the source has none beside it.
        verify: compare with PyTorch; None: where torch and transformers are installed.
        overwrite: replace `out` where it is a converted model already.
        quantize: a recipe of `converter.quantize.recipes`: "4bit", "mixed", "auto", …
        calibration: a text file, "built-in" or "none"; None: the built-in texts for "mixed" and "auto", else none.
        target_size, target_bits, target_cosine: what "auto" is to reach, one of them.
        dequantize: the source is a quantized MLX checkpoint: write its numbers unpacked.
        layout: "encoder", the head in a file of its own, or "full", in `model.safetensors`: see `converter.output`.
        prefix: of the encoder's tensor names, where the source has several encoders.
        encoder_only: leave out every head, known or not.
        progress: told how far each step is.

    Raises:
        ParityFailedError: the two models differ; nothing was written.
        MLXBertError: the source, the configuration, or the output is at fault; nothing was written, nothing lost.
    """
    progress = progress or _silent
    target = (
        expand_home(out)
        if out is not None
        else default_output(
            str(src),
            quantize=quantize,
            target=target_size or target_bits or target_cosine,
            dtype=dtype,
            dequantize=dequantize,
        )
    )
    # Before anything else can fail: a model that a killed run had moved aside comes back even if this source is bad.
    recover(target)
    check_target(target, overwrite=overwrite)
    settings = quantize_settings(
        quantize,
        calibration=calibration,
        target_size=target_size,
        target_bits=target_bits,
        target_cosine=target_cosine,
        dequantize=dequantize,
    )
    source = with_true_labels(
        open_source(
            str(src),
            revision=revision,
            config=None if config is None else expand_home(config),
            dequantize=dequantize,
            prefix=prefix,
            encoder_only=encoder_only,
        )
    )
    parsed, planned = plan_source(source)
    place = choose_layout(source, layout)
    unverified = why_not_verified(source, verify, dequantize=dequantize)
    if settings is not None and dtype is None:
        dtype = "float16"
    dtype = output_dtype([source.entries[item.source].dtype for item in planned.encoder], dtype)
    source_card, card_notes = _source_card(source)
    notes = [*source.notes, *notes_on(source, planned, dtype), *_note_on_head(source), *card_notes]

    given = expand_home(src) if expand_home(src).is_file() else source.root
    with OutputDirectory(target, overwrite=overwrite, source=given) as output:
        heads = [*_to_write(source, planned.heads, dtype), *_as_they_are(source.own_head)]
        quantized = None
        if settings is None:
            tensors = _to_write(source, planned.encoder, dtype)
        else:
            from converter.quantize.pipeline import quantize as quantize_encoder

            quantized = quantize_encoder(
                source,
                planned.encoder,
                settings,
                dtype=dtype,
                other_bytes=place.other_bytes(planned.encoder, heads),
                progress=progress,
            )
            tensors = list(quantized.tensors)
            notes += quantized.notes
        total = sum(tensor.nbytes for tensor in (*tensors, *heads))
        done = Counter[str]()

        def written(tensor: PlannedTensor) -> None:
            done["bytes"] += tensor.nbytes
            progress("convert", done["bytes"], total)

        progress("convert", 0, total)
        in_model, beside = place.weights(tensors, heads)
        in_heads = sum(tensor.parameters for tensor in heads) if place.is_full else 0
        output.write_model(
            in_model,
            parameters=None if quantized is None else quantized.parameters + in_heads,
            on_tensor=written,
        )
        if beside:
            output.write_safetensors("heads.safetensors", beside, on_tensor=written)
        write_side_files(output, source, parsed.hidden_size)
        hf_config = place.config(output_config(source, planned, dtype, source_card, quantized))
        refuse_secrets(source.side_files, hf_config, src)
        check_staged(output.path, hf_config, source)
        if quantized is not None and quantized.allotment is not None:
            plots = quantized.allotment.files()
            for name, data in plots.items():
                output.write_bytes(name, data)
            notes.append(where_plotted(target, plots))

        report = None
        if unverified is None:
            from converter.verify import verify_staged

            report = verify_staged(source, output.path, hf_config, progress=progress)
            if not report.passed:
                raise ParityFailedError(_failure(src, target, report), report)
            output.write_bytes("parity.json", report.to_json().encode())
        quantization = None if report is None else report.quantization
        if quantized is not None and report is None and verify is not False:
            quantization = _describe(source, output.path, hf_config)
            from converter.parity.files import cost_json

            cost_alone = cost_json(quantization, why=str(unverified), weights=weight_sums(output.records))
            output.write_bytes("parity.json", cost_alone.encode())
        if quantized is not None and quantization is None:  # where it is measured, its table has them
            notes += quantized.kept
        facts = card_facts(
            output.path,
            hf_config,
            report,
            name=target.name,
            records=output.records,
            quantization=quantization,
        )
        output.write_bytes("README.md", render_card(facts).encode())
        output.commit(hf_config)

    return ConvertResult(
        path=target,
        dtype=dtype,
        parameters=facts.parameters,
        size=sum(tensor.nbytes for tensor in tensors),
        heads=facts.heads,
        dropped=planned.dropped,
        notes=(*notes, *facts.usage.notes),
        report=report,
        unverified=unverified,
        quantization=quantization,
        allotment=None if quantized is None else quantized.allotment,
        full_layout=facts.full_layout,
        readings=facts.readings,
        usage=facts.usage,
    )


def default_output(
    src: str,
    *,
    quantize: str | None = None,
    target: str | float | None = None,
    dtype: str | None = None,
    dequantize: bool = False,
) -> Path:
    """`mlx_models/NAME`, and what was asked for: `bert-base-uncased-4bit`, `…-auto-14MB`, `…-bf16`, `…-dequantized`.

    NAME is the last part of a Hub id or of a directory's path; of a file, its directory's.
    """
    path = expand_home(src)
    if path.exists():
        path = path.parent.resolve() if path.is_file() else path.resolve()
        name = local_name(path).rpartition("/")[2]
    else:
        name = path.name
    asked = [quantize, target if quantize == "auto" else None, DTYPE_SUFFIXES.get(dtype or "")]
    asked.append("dequantized" if dequantize else None)
    suffixes = [re.sub(r"[^\w.]", "", str(part)) for part in asked if part]
    return Path("mlx_models") / "-".join([name or "model", *suffixes])


def why_not_verified(source: Source, verify: bool | None, *, dequantize: bool = False) -> str | None:
    """Why a conversion will not be compared with PyTorch, or None: it will be.

    Raises:
        MLXBertError: verification is demanded, and cannot be had.
    """
    if verify is False:
        return "--no-verify"
    reason = None
    if source.format == "npz":
        reason = "an .npz has no PyTorch reference; run mlxbert-verify with --reference of the original"
    elif dequantize:
        reason = "what is quantized has no PyTorch reference; run mlxbert-verify with --reference of the original"
    elif source.own_head:
        reason = "a head that mlxbert trained has no PyTorch reference"
    elif any(importlib.util.find_spec(package) is None for package in ("torch", "transformers")):
        reason = f"torch and transformers are not installed; {install_fix('torch')}"
    if reason and verify:
        raise MLXBertError(f"--verify: cannot compare with PyTorch: {reason}")
    return reason


def _failure(src: str | Path, target: Path, report: ParityReport) -> str:
    """What failed, and what to do: a wrong mapping is ours to mend, a packing that costs too much the user's."""
    first = report.failures[0]
    if first.startswith("cost "):
        return (
            f"{src}: the quantization costs too much ({first}); nothing was written to {target}; fix: more bits, "
            "--calibration built-in, or write it all the same with --no-verify"
        )
    return (
        f"{src}: parity FAILED ({first}); nothing was written to {target}; "
        "fix: report it, or write it all the same with --no-verify"
    )


def _note_on_head(source: Source) -> list[str]:
    """What is said where the class of the source's head was not plain from its configuration."""
    from converter.parity.reference import head_choice
    from mlxbert.pretrained.labels import HeadClassError

    try:
        choice = head_choice(source)
    except HeadClassError as error:
        return [reason(error)]
    return [choice.note] if choice is not None and choice.note else []


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _to_write(source: Source, items: tuple[Planned, ...], dtype: str) -> list[PlannedTensor]:
    return [PlannedTensor(item.target, item.shape, CODES[dtype], partial(read, source, item, dtype)) for item in items]


def _as_they_are(entries: Mapping[str, TensorEntry]) -> list[PlannedTensor]:
    """A head that mlxbert trained, in its own dtypes: a conversion is about its encoder."""
    return [PlannedTensor(name, entry.shape, entry.dtype, entry.read) for name, entry in entries.items()]


def where_plotted(target: Path, plots: Mapping[str, bytes]) -> str:
    """Where the plot of `auto` is, or why there is none."""
    missing = f"no plot: matplotlib is not installed; {install_fix('kaggle')}"
    return f"size against quality: {', '.join(str(target / name) for name in plots) or missing}"


def _describe(source: Source, directory: Path, hf_config: dict[str, Any]) -> QuantizationReport:
    """The cost of a quantization where there is no PyTorch to verify with: it takes MLX alone."""
    from converter.canonical import float32_core, float32_model
    from converter.parity.reference import head_choice
    from converter.quantize.report import describe_quantization
    from converter.verify import written_model
    from mlxbert.checkpoint import CheckpointError
    from mlxbert.pretrained.labels import HeadClassError

    try:
        head = head_choice(source)
        exact = float32_core(source) if head is None else float32_model(source, head)
    except (HeadClassError, CheckpointError):  # half a head: the encoder's cost can be told all the same
        head, exact = None, float32_core(source)
    return describe_quantization(directory, hf_config, exact, written_model(directory, hf_config, head))


def _source_card(source: Source) -> tuple[SourceCard, list[str]]:
    """What the card takes over from the source's; of our own output as SRC, what that took over from its own."""
    earlier = source.config.get("mlxbert")
    if isinstance(earlier, dict):
        return with_reachable_link(SourceCard.from_block(earlier), source.root, None)
    url = f"https://huggingface.co/{source.name}/blob/{source.revision}" if source.revision else None
    return read_source_card(source.root, url=url)
