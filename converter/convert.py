"""Convert a source to a verified MLX checkpoint: the function behind `mlxbert-convert`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from converter.canonical import CODES, DTYPE_SUFFIXES, float32_core, float32_model, output_dtype, plan_source, read
from converter.card.card import Usage, render_card
from converter.card.facts import CardFacts, card_facts, weight_sums
from converter.card.loaders import Reading
from converter.card.source_card import SourceCard, read_source_card, with_reachable_link
from converter.mapping import Planned
from converter.output import (
    check_staged,
    choose_layout,
    notes_on,
    output_config,
    with_true_labels,
    write_side_files,
)
from converter.parity.files import cost_json
from converter.parity.reference import head_choice
from converter.parity.report import NAME as PARITY
from converter.parity.report import ParityReport
from converter.peft.adapter import open_peft
from converter.peft.merge import with_adapter
from converter.publish.leaks import refuse_secrets
from converter.quantize.allotment import Allotment
from converter.quantize.cost import QuantizationReport
from converter.quantize.pipeline import Quantized
from converter.quantize.pipeline import quantize as quantize_encoder
from converter.quantize.recipes import QuantizeSettings, quantize_settings
from converter.quantize.report import PLOT, describe_quantization, plot_sizes
from converter.source import Source, local_name, open_source
from converter.tokenizer_json import with_tokenizer_json
from converter.verify import Progress, verify_staged, written_model
from heads.command_line import install_fix
from mlxbert.checkpoint import CheckpointError
from mlxbert.errors import MLXBertError, reason
from mlxbert.files.output_directory import OutputDirectory, check_target, recover
from mlxbert.files.reading import expand_home
from mlxbert.files.safetensors import PlannedTensor
from mlxbert.pretrained import HEADS_FILE, HeadClassError


class ParityFailedError(MLXBertError):
    """The conversion is not the same model as its source; nothing was written."""

    def __init__(self, message: str, report: ParityReport):
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class ConvertResult:
    """The result of a conversion.

    Attributes:
        path: the converted directory.
        dtype: dtype of every unpacked tensor in it.
        parameters: number of parameters of the encoder.
        size: bytes of the encoder's tensors.
        heads: names of the checkpoint's own head tensors.
        dropped: source tensors that were not written, with the reason.
        notes: notes for the user.
        report: the parity report; None if nothing was compared.
        unverified: why nothing was compared; None if something was.
        quantization: what was packed, and its cost; None without quantization.
        allotment: how `auto` chose its bits.
        full_layout: whether the head lies in `model.safetensors`.
        readings: the packages that load the directory, and what differs in each.
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
    base: str | Path | None = None,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert a PyTorch or Hugging Face checkpoint to a directory that MLX loads.

    Args:
        src: a Hub id, a directory, or one file; with `base`, an adapter in PEFT's format.
        out: the directory to write; None: `default_output`.
        dtype: "float32", "float16" or "bfloat16"; None: the source's dtype (float64 becomes float32), or float16 with
            `quantize`, for the scales and the unpacked tensors.
        revision: a branch, tag or commit, if `src` is a Hub id.
        config: a `config.json`, if the source has none beside it.
        verify: compare with PyTorch; None: if torch and transformers are installed.
        overwrite: replace `out` if it is a converted model.
        quantize: a recipe of `converter.quantize.recipes`: "4bit", "mixed", "auto", …
        calibration: a text file, "built-in" or "none"; None: the built-in texts for "mixed" and "auto", else none.
        target_size, target_bits, target_cosine: the target of "auto", one of them.
        dequantize: unpack the source, which is a quantized MLX checkpoint.
        layout: "encoder", the head in a file of its own, or "full", in `model.safetensors`: see `converter.output`.
        prefix: beginning of the encoder's tensor names, if the source has several encoders.
        encoder_only: leave out every head, known or unknown.
        base: the model that the adapter `src` is merged into: a converted directory, or any source of a conversion.
            `config`, `prefix`, `dequantize` and `encoder_only` then concern the base.
        progress: called while the steps go on.

    Raises:
        ParityFailedError: the two models differ; nothing was written.
        MLXBertError: the source, the configuration, or the output is at fault; nothing was written, nothing lost.
    """
    if out is None:
        goal = target_size or target_bits or target_cosine
        target = default_output(str(src), quantize=quantize, target=goal, dtype=dtype, dequantize=dequantize)
    else:
        target = expand_home(out)
    # First of all: restore a model that a killed run had moved aside, even if this source is bad.
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
    adapter = None if base is None else open_peft(src, revision)
    source = open_source(
        str(src if base is None else base),
        revision=revision if adapter is None else None,
        config=None if config is None else expand_home(config),
        dequantize=dequantize,
        prefix=prefix,
        encoder_only=encoder_only,
    )
    if adapter is not None:
        source = with_adapter(source, adapter)
    with with_tokenizer_json(with_true_labels(source)) as source:
        conversion = _Conversion(
            source,
            src=src,
            target=target,
            layout=layout,
            dtype=dtype,
            settings=settings,
            verify=verify,
            dequantize=dequantize,
            progress=progress or _no_progress,
        )
        origin = expand_home(src) if expand_home(src).is_file() else source.root
        with OutputDirectory(target, overwrite=overwrite, source=origin) as output:
            size = conversion.write_weights(output)
            hf_config = conversion.write_files(output)
            conversion.compare(output, hf_config)
            facts = conversion.write_card(output, hf_config)
            output.commit(hf_config)
    return conversion.result(size, facts)


class _Conversion:
    """One conversion; its steps are called in the order of the methods."""

    def __init__(
        self,
        source: Source,
        *,
        src: str | Path,
        target: Path,
        layout: str,
        dtype: str | None,
        settings: QuantizeSettings | None,
        verify: bool | None,
        dequantize: bool,
        progress: Progress,
    ):
        """Decide everything that can be decided before a tensor is read; the arguments are those of `convert`."""
        self.source, self.src, self.target = source, src, target
        self.settings, self.verify, self.progress = settings, verify, progress
        config, self.planned = plan_source(source)
        self.hidden_size = config.hidden_size
        self.layout = choose_layout(source, layout)
        self.unverified = why_not_verified(source, verify, dequantize=dequantize)
        if settings is not None and dtype is None:
            dtype = "float16"
        self.dtype = output_dtype([source.entries[item.source].dtype for item in self.planned.encoder], dtype)
        self.card, card_notes = _source_card(source)
        self.notes = [
            *source.notes,
            *notes_on(source, self.planned, self.dtype),
            *_notes_on_head(source),
            *card_notes,
        ]
        self.quantized: Quantized | None = None
        self.report: ParityReport | None = None
        self.quantization: QuantizationReport | None = None

    def write_weights(self, output: OutputDirectory) -> int:
        """Write encoder and heads, and return the bytes of the encoder's tensors."""
        # A head that mlxbert trained keeps its own dtypes: the dtype of a conversion is the encoder's.
        own_head = [
            PlannedTensor(name, entry.shape, entry.dtype, entry.read) for name, entry in self.source.own_head.items()
        ]
        heads = [*self._tensors(self.planned.heads), *own_head]
        if self.settings is None:
            encoder = self._tensors(self.planned.encoder)
        else:
            encoder = self._quantize(self.settings, self.layout.other_bytes(self.planned.encoder, heads))
        total = sum(tensor.nbytes for tensor in (*encoder, *heads))
        written = 0

        def show_progress(tensor: PlannedTensor) -> None:
            nonlocal written
            written += tensor.nbytes
            self.progress("convert", written, total)

        self.progress("convert", 0, total)
        in_model, in_heads_file = self.layout.weights(encoder, heads)
        parameters = None
        if self.quantized is not None:
            heads_in_model = heads if self.layout.is_full else []
            parameters = self.quantized.parameters + sum(tensor.parameters for tensor in heads_in_model)
        output.write_model(in_model, parameters=parameters, on_tensor=show_progress)
        if in_heads_file:
            output.write_safetensors(HEADS_FILE, in_heads_file, on_tensor=show_progress)
        return sum(tensor.nbytes for tensor in encoder)

    def _tensors(self, items: Iterable[Planned]) -> list[PlannedTensor]:
        return [
            PlannedTensor(item.target, item.shape, CODES[self.dtype], partial(read, self.source, item, self.dtype))
            for item in items
        ]

    def _quantize(self, settings: QuantizeSettings, other_bytes: int) -> list[PlannedTensor]:
        self.quantized = quantize_encoder(
            self.source,
            self.planned.encoder,
            settings,
            dtype=self.dtype,
            other_bytes=other_bytes,
            progress=self.progress,
        )
        self.notes += self.quantized.notes
        return list(self.quantized.tensors)

    def write_files(self, output: OutputDirectory) -> dict[str, Any]:
        """Write the files beside the weights, check that the whole can be loaded, and return the `config.json`."""
        write_side_files(output, self.source, self.hidden_size)
        config = output_config(self.source, self.planned, self.dtype, self.card, self.quantized)
        config = self.layout.config(config)
        refuse_secrets(self.source.side_files, config, self.src)
        check_staged(output.path, config, self.source)
        if self.quantized is not None and self.quantized.allotment is not None:
            data = plot_sizes(self.quantized.allotment)
            plots = {} if data is None else {PLOT: data}
            for name, content in plots.items():
                output.write_bytes(name, content)
            self.notes.append(where_plotted(self.target, plots))
        return config

    def compare(self, output: OutputDirectory, config: dict[str, Any]) -> None:
        """Compare the written weights with PyTorch, or measure what a quantization cost, and write the report.

        Raises:
            ParityFailedError: the two models differ.
        """
        if self.unverified is None:
            self.report = verify_staged(self.source, output.path, config, progress=self.progress)
            if not self.report.passed:
                raise ParityFailedError(_failure(self.src, self.target, self.report), self.report)
            output.write_bytes(PARITY, self.report.to_json().encode())
            self.quantization = self.report.quantization
        elif self.quantized is not None and self.verify is not False:
            self.quantization = _measured_cost(self.source, output.path, config)
            cost = cost_json(self.quantization, why=self.unverified, weights=weight_sums(output.records))
            output.write_bytes(PARITY, cost.encode())
        if self.quantized is not None and self.quantization is None:  # else the table of the cost lists them
            self.notes += self.quantized.kept

    def write_card(self, output: OutputDirectory, config: dict[str, Any]) -> CardFacts:
        """Write the model card, and return its facts."""
        facts = card_facts(
            output.path,
            config,
            self.report,
            name=self.target.name,
            records=output.records,
            quantization=self.quantization,
        )
        output.write_bytes("README.md", render_card(facts).encode())
        return facts

    def result(self, size: int, facts: CardFacts) -> ConvertResult:
        """Return the result, once all is written."""
        return ConvertResult(
            path=self.target,
            dtype=self.dtype,
            parameters=facts.parameters,
            size=size,
            heads=facts.heads,
            dropped=self.planned.dropped,
            notes=(*self.notes, *facts.usage.notes),
            report=self.report,
            unverified=self.unverified,
            quantization=self.quantization,
            allotment=None if self.quantized is None else self.quantized.allotment,
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
    """Return `mlx_models/NAME` with the options in its name: `bert-base-uncased-4bit`, `…-auto-14MB`, `…-bf16`.

    NAME is the last part of a Hub id or of a directory's path; for a file, the name of its directory.
    """
    path = expand_home(src)
    if path.exists():
        path = path.parent.resolve() if path.is_file() else path.resolve()
        name = local_name(path).rpartition("/")[2]
    else:
        name = path.name
    options = [quantize, target if quantize == "auto" else None, DTYPE_SUFFIXES.get(dtype or "")]
    options.append("dequantized" if dequantize else None)
    suffixes = [re.sub(r"[^\w.]", "", str(option)) for option in options if option]
    return Path("mlx_models") / "-".join([name or "model", *suffixes])


def why_not_verified(source: Source, verify: bool | None, *, dequantize: bool = False) -> str | None:
    """Return why a conversion is not compared with PyTorch; None if it is.

    Raises:
        MLXBertError: the user asked for a comparison that is not possible.
    """
    if verify is False:
        return "--no-verify"
    reason = None
    if source.format == "npz":
        reason = "an .npz has no PyTorch reference; run mlxbert-verify with --reference of the original"
    elif dequantize:
        reason = "a quantized source has no PyTorch reference; run mlxbert-verify with --reference of the original"
    elif source.own_head:
        reason = "a head that mlxbert trained has no PyTorch reference"
    elif any(importlib.util.find_spec(package) is None for package in ("torch", "transformers")):
        reason = f"torch and transformers are not installed; {install_fix('torch')}"
    elif source.unmerged and importlib.util.find_spec("peft") is None:
        reason = f"peft, whose own merge is the reference, is not installed; {install_fix('peft')}"
    if reason and verify:
        raise MLXBertError(f"--verify: cannot compare with PyTorch: {reason}")
    return reason


def where_plotted(target: Path, plots: Mapping[str, bytes]) -> str:
    """Return a note that says where the plot of `auto` is, or why there is none."""
    missing = f"no plot: matplotlib is not installed; {install_fix('kaggle')}"
    return f"size against quality: {', '.join(str(target / name) for name in plots) or missing}"


def _failure(src: str | Path, target: Path, report: ParityReport) -> str:
    """Return the message of a failed comparison: the fix depends on whether the mapping or the cost failed."""
    first = report.failures[0]
    if first.startswith("cost "):
        return (
            f"{src}: the quantization costs too much ({first}); nothing was written to {target}; fix: more bits, "
            "--calibration built-in, or write it anyway with --no-verify"
        )
    return (
        f"{src}: parity FAILED ({first}); nothing was written to {target}; "
        "fix: report it, or write it anyway with --no-verify"
    )


def _notes_on_head(source: Source) -> list[str]:
    """Return a note if the configuration does not name the class of the source's head."""
    try:
        choice = head_choice(source)
    except HeadClassError as error:
        return [reason(error)]
    return [choice.note] if choice is not None and choice.note else []


def _measured_cost(source: Source, directory: Path, config: dict[str, Any]) -> QuantizationReport:
    """Return the cost of a quantization that cannot be compared with PyTorch; MLX alone measures it."""
    try:
        head = head_choice(source)
        exact = float32_core(source) if head is None else float32_model(source, head)
    except (HeadClassError, CheckpointError):  # an incomplete head: the encoder's cost can still be measured
        head, exact = None, float32_core(source)
    return describe_quantization(directory, config, exact, written_model(directory, config, head))


def _source_card(source: Source) -> tuple[SourceCard, list[str]]:
    """Return what the model card takes over from the source's card, and notes.

    If the source is our own output, this is what its card took over from its own source.
    """
    earlier = source.config.get("mlxbert")
    if isinstance(earlier, dict):
        return with_reachable_link(SourceCard.from_block(earlier), source.root, None)
    url = f"https://huggingface.co/{source.name}/blob/{source.revision}" if source.revision else None
    return read_source_card(source.root, url=url)


def _no_progress(step: str, done: int, total: int) -> None:
    pass
