"""Verify a converted checkpoint against the model that it was made from: the function behind `mlxbert-verify`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.canonical import CODES, float32_core, float32_model, plan_source
from converter.export.run import read_run
from converter.mappings import mapping_for
from converter.output import with_true_labels
from converter.parity.files import write_reports
from converter.parity.gates import compare
from converter.parity.outputs import SentenceComparison, TrainedModel, compare_sentences
from converter.parity.probes import Probe, ProbeError, longest_probe, make_probes
from converter.parity.reference import Reference, build_exported, build_reference, head_choice
from converter.parity.report import OWN_HEAD, ParityReport, Part, Provenance, inherited_proof, origin_of
from converter.quantize.cost import recipe_of
from converter.quantize.report import describe_quantization
from converter.readers.encoder_fit import SeveralEncodersError
from converter.source import Source, open_source
from mlxbert.adapters.files import ADAPTER_FILE, is_adapter_directory
from mlxbert.checkpoint import load_core, read_config
from mlxbert.errors import MLXBertError, printable, reason
from mlxbert.files.output_file import manifest_problems
from mlxbert.files.reading import expand_home, require_own_files, sha256_hex
from mlxbert.files.safetensors import read_safetensors
from mlxbert.models.architecture import architecture, config_from_hf
from mlxbert.models.base import Encoder
from mlxbert.models.config_fields import EncoderConfig
from mlxbert.pretrained import HEADS_FILE, HeadChoice, PretrainedBert, attach_head, has_head, read_head_tensors
from mlxbert.tokenization.files import has_tokenizer
from mlxbert.tokenization.tokenizer import Tokenizer, TokenizerError
from mlxbert.with_head import BertWithHead

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["Progress", "VerifyError", "models_in", "verify", "verify_staged", "write_reports"]

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, the amount done, and the whole amount."""


class VerifyError(MLXBertError):
    """There is nothing to compare."""


def models_in(path: str | Path, *, reports: bool = False) -> list[Path]:
    """Return the directories to verify: the models of a run, or the directory itself.

    Args:
        path: a directory.
        reports: whether the user wants report files, which are for one model.

    Raises:
        MLXBertError: the run is unfinished or damaged, or has several models and the user wants report files.
    """
    directory = expand_home(path)
    if not (directory / "run.json").exists():
        return [directory]

    members = list(read_run(directory).members.values())
    if reports and len(members) > 1:
        raise VerifyError(f"{path}: --junit and --html are for one model, this run has several; fix: {members[0]}")
    return members


def verify(
    converted: str | Path,
    reference: str | Path | None = None,
    *,
    revision: str | None = None,
    config: str | Path | None = None,
    prefix: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ParityReport:
    """Run both parity gates on a converted directory, or on one trained model.

    Args:
        converted: a directory that `mlxbert-convert` wrote, or a member of a run of `mlxbert train`.
        reference: the original: a Hub id, a directory, or one file. None: the Hub id in its config.json; for a trained
            model its own export to PyTorch.
        revision: a branch, tag or commit, if `reference` is a Hub id.
        config: a `config.json`, if the reference has none beside it.
        prefix: beginning of the encoder's tensor names, if the reference has several encoders; None: as converted.
        seed: seed of the random probes.
        progress: called while the probes are compared.

    Raises:
        MLXBertError: one of the two cannot be read, or PyTorch is not installed; nothing was compared.
    """
    directory = expand_home(converted)
    if directory.exists() and not directory.is_dir():
        raise VerifyError(f"{converted}: is a file; fix: give the directory that mlxbert-convert wrote")
    if not directory.is_dir():
        raise VerifyError(f"{converted}: no such directory; fix: mlxbert-convert {reference or 'SRC'} -o {converted}")
    require_own_files(directory, VerifyError)
    hf_config = read_config(directory, other_tools=True)
    block = hf_config.get("mlxbert") or {}  # quantized files of other tools have none
    notes = [f"manifest: {problem}" for problem in manifest_problems(directory)]
    if isinstance(block.get("head"), dict):
        if reference is not None:
            raise VerifyError(
                f"{converted}: was fine-tuned, so it is in no other checkpoint; fix: leave --reference out, and it is "
                "compared with its own export to PyTorch"
            )
        return _verify_trained(directory, hf_config, seed=seed, notes=notes, progress=progress)
    if reference is None:
        if not (isinstance(block.get("source"), str) and block.get("revision")):
            raise VerifyError(f"{converted}: was made from no Hub model; fix: give --reference what it was made from")
        reference = block["source"]
    if revision is None and reference == block.get("source"):
        revision = block.get("revision")  # the commit that was converted: the branch may have moved on
    source = _open_reference(reference, block, revision=revision, config=config, prefix=prefix)
    if source.root.resolve() == directory.resolve():
        raise VerifyError(f"{converted}: is compared with itself; fix: give --reference what it was converted from")
    _check_sizes(hf_config, source, converted, reference)
    return verify_staged(source, directory, hf_config, seed=seed, notes=notes, progress=progress)


def _open_reference(
    reference: str | Path,
    block: Mapping[str, Any],
    *,
    revision: str | None,
    config: str | Path | None,
    prefix: str | None,
) -> Source:
    """Return the reference; if it has several encoders, the one that was converted."""
    open_encoder = partial(
        open_source,
        str(reference),
        revision=revision,
        config=None if config is None else expand_home(config),
        encoder_only=block.get("encoder_only") is True,
    )
    try:
        source = open_encoder(prefix=prefix)
    except SeveralEncodersError:
        converted_prefix = block.get("prefix")
        if not isinstance(converted_prefix, str):
            raise
        source = open_encoder(prefix=converted_prefix)
    return with_true_labels(source)


def _check_sizes(hf_config: Mapping[str, Any], source: Source, converted: str | Path, reference: str | Path) -> None:
    """Refuse a reference whose tensors have other shapes."""

    ours, theirs = config_from_hf(hf_config), config_from_hf(source.config)
    if theirs.model_type != ours.model_type:
        raise VerifyError(
            f"{reference}: is another model than {converted}: its model_type is {theirs.model_type!r}, not "
            f"{ours.model_type!r}; fix: give --reference what it was converted from"
        )
    dimensions = [size for rule in mapping_for(hf_config).encoder for size in rule.shape]
    fields = dict.fromkeys(
        ["hidden_size", "num_hidden_layers", *(size for size in dimensions if isinstance(size, str))]
    )
    sizes = [(name, getattr(theirs, name, None), getattr(ours, name)) for name in fields]
    differing = [f"{name} {size}, not {expected}" for name, size, expected in sizes if size != expected]
    if differing:
        block = hf_config.get("mlxbert")
        origin = block.get("source") if isinstance(block, dict) else None
        raise VerifyError(
            f"{reference}: is another model than {converted}: its {'; its '.join(differing)}; fix: give --reference "
            f"what it was converted from{f', {printable(origin)}' if origin else ''}"
        )


def verify_staged(
    source: Source,
    directory: Path,
    hf_config: dict[str, Any],
    *,
    seed: int = 0,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> ParityReport:
    """Run both gates on an open source and a directory whose `config.json` may not be written yet.

    The MLX side of the mapping gate is the written weights if writing them lost nothing, else the source through the
    mapping: the precision gate then measures what the lossy cast cost.

    Raises:
        MLXBertError: as `verify`.
    """
    weights = sorted(directory.glob("model*.safetensors"))
    quantized = hf_config.get("quantization") is not None
    dtype = recipe_of(hf_config) if quantized else _written_dtype(directory, weights)
    reference = build_reference(source)
    head, left_out = _compared_head(source, directory, hf_config, reference)
    written = written_model(directory, hf_config, head)
    exact, exact_name = _exact_model(source, directory, hf_config, head, written, None if quantized else dtype)
    sentences = compare_sentences(source, reference, directory, hf_config, exact, None if quantized else written)
    if head is not None and (directory / HEADS_FILE).is_file():
        weights.append(directory / HEADS_FILE)
    probes, probe_notes = directory_probes(directory, written.config, seed, hf_config)
    report = compare(
        reference,
        exact,
        None if quantized else written,
        probes,
        written_dtype=dtype,
        provenance=Provenance(
            source=source.name,
            revision=source.revision,
            weights=_digests(weights),
            float32_core=exact_name,
            seed=seed,
            notes=(*notes, *probe_notes),
            origin=origin_of(source),
            proof=inherited_proof(source),
        ),
        sentences=sentences if isinstance(sentences, SentenceComparison) else None,
        progress=_of_probes(progress),
    )
    not_compared = [part for part in (left_out, sentences) if isinstance(part, Part)]
    report = replace(report, scope=(*report.scope, *not_compared))
    if not quantized:
        return report

    return replace(report, quantization=describe_quantization(directory, hf_config, exact, written))


def _verify_trained(
    directory: Path,
    hf_config: dict[str, Any],
    *,
    seed: int,
    notes: Sequence[str],
    progress: Progress | None,
) -> ParityReport:
    """Run both gates on a model that mlxbert fine-tuned, against its own export to PyTorch.

    Raises:
        MLXBertError: it is quantized or damaged, its head has no PyTorch form, or PyTorch is not installed.
    """

    import mlx.core as mx  # imported here, because importing mlxbert first explains which backend to install

    if hf_config.get("quantization") is not None:
        raise VerifyError(f"{directory}: is quantized, which has no PyTorch form; fix: verify the unquantized model")
    weights = sorted(directory.glob("model*.safetensors"))
    if is_adapter_directory(directory):
        if hf_config.get("dtype") != "float32":
            raise VerifyError(
                f"{directory}: has adapters on a base in {hf_config.get('dtype')}, and its export rounds their sum; "
                "fix: verify its base, or train on one in float32"
            )
        weights = [directory / ADAPTER_FILE]
    dtype = _written_dtype(directory, weights)
    if (directory / HEADS_FILE).is_file():
        weights.append(directory / HEADS_FILE)
    with tempfile.TemporaryDirectory() as scratch:
        reference = build_exported(directory, Path(scratch))
        model = BertWithHead.load(directory, dtype=mx.float32)
        model.set_dtype(mx.float32)  # a head may be stored in another dtype than its encoder
        exact = TrainedModel(model, folded=reference.folded)
        written = exact if dtype == "float32" else TrainedModel(BertWithHead.load(directory), folded=reference.folded)
        probes, probe_notes = directory_probes(directory, exact.core.config, seed, hf_config)
        return compare(
            reference,
            exact,
            written,
            probes,
            written_dtype=dtype,
            provenance=Provenance(
                source=_trained_name(directory),
                revision=None,
                weights=_digests(weights),
                float32_core=f"the written {dtype} weights in float32",
                seed=seed,
                notes=(*notes, *probe_notes),
                own_export=True,
            ),
            progress=_of_probes(progress),
        )


def _of_probes(progress: Progress | None) -> Callable[[int, int, str], None] | None:
    return None if progress is None else lambda done, total, _: progress("verify", done, total)


def _digests(files: Sequence[Path]) -> dict[str, str]:
    return {file.name: sha256_hex(file, VerifyError) or "" for file in files}


def _exact_model(
    source: Source,
    directory: Path,
    hf_config: dict[str, Any],
    head: HeadChoice | None,
    written: Encoder | PretrainedBert,
    dtype: str | None,
) -> tuple[Encoder | PretrainedBert, str]:
    """Return the float32 model of the mapping gate and what it is; `dtype` is None for a quantized checkpoint."""

    import mlx.core as mx

    if dtype is not None and _is_lossless(source, dtype):
        model = written if dtype == "float32" else written_model(directory, hf_config, head, mx.float32)
        return model, f"the written {dtype} weights in float32"
    model = float32_core(source) if head is None else float32_model(source, head)
    return model, f"the source's weights through the mapping in float32, before they became {dtype or 'packed'}"


def _compared_head(
    source: Source, directory: Path, hf_config: dict[str, Any], reference: Reference
) -> tuple[HeadChoice | None, Part | None]:
    """Return the class whose head is compared, and the part of a written head that cannot be compared."""
    is_written = has_head(directory, hf_config)
    heads = architecture(hf_config.get("model_type")).heads
    if reference.class_name not in heads:
        # transformers could not build the model with its head: both sides are compared as encoders.
        if not is_written:
            return None, None
        why = reference.left_out or "it is none of a class of transformers"
        try:  # mlxbert's error is the better reason, because it names the tensors
            if (choice_of_source := head_choice(source)) is not None:
                written_model(directory, hf_config, choice_of_source)
        except MLXBertError as error:
            why = reason(error, directory)
        return None, Part(OWN_HEAD, False, why)
    choice = HeadChoice(reference.class_name)
    if not is_written:
        return choice, None  # each output of the head then fails, because the MLX model does not have it
    try:
        written_model(directory, hf_config, choice)
    except MLXBertError as error:  # the encoder can still be compared
        return None, Part(OWN_HEAD, False, reason(error, directory))
    tensors = read_head_tensors(directory, hf_config)
    unused = [name for name in tensors if not name.startswith(heads[choice.name].all_prefixes)]
    if unused:
        return choice, Part("other head tensors", False, f"{choice.name} has no use for {', '.join(unused[:3])}")
    return choice, None


def _trained_name(directory: Path) -> str:
    """Return RUN/MEMBER for a member of a run, else the name of the directory."""
    path = directory.resolve()
    run = path.parent.parent
    is_member = path.parent.name == "members" and (run / "run.json").is_file()
    return printable(f"{run.name}/{path.name}" if is_member else path.name)


def written_model(
    directory: Path, hf_config: dict[str, Any], head: HeadChoice | None, dtype: mx.Dtype | None = None
) -> Encoder | PretrainedBert:
    """Return the written checkpoint with its head, or the encoder alone if there is none."""
    core = load_core(directory, config=hf_config, dtype=dtype, dequantize=True)
    if head is None or not has_head(directory, hf_config):
        return core
    return attach_head(
        core, read_head_tensors(directory, hf_config), head, hf_config, place=str(directory), dtype=dtype
    )


def _written_dtype(directory: Path, weights: list[Path]) -> str:
    """Return the dtype on disk; `config.json` may be wrong."""
    contents = [content[0] for file in weights if (content := read_safetensors(file, VerifyError)) is not None]
    dtypes = {str(tensor.dtype).removeprefix("mlx.core.") for tensors in contents for tensor in tensors.values()}
    if len(dtypes) != 1:
        names = ", ".join(sorted(dtypes)) or "no tensors"
        raise VerifyError(f"{directory}: one dtype expected in model*.safetensors, found {names}; fix: convert again")
    return dtypes.pop()


def _is_lossless(source: Source, dtype: str) -> bool:
    """Return whether every tensor of the source has this dtype."""

    _, planned = plan_source(source)
    return {source.entries[item.source].dtype for item in (*planned.encoder, *planned.heads)} == {CODES[dtype]}


def directory_probes(
    directory: Path, config: EncoderConfig, seed: int, hf_config: Mapping[str, Any]
) -> tuple[tuple[Probe, ...], tuple[str, ...]]:
    """Return probes, with sentences if the directory has a tokenizer that fits the model, and notes on limits."""
    longest = longest_probe(config)
    notes: tuple[str, ...] = ()
    if longest < config.max_length:
        notes = (
            f"the longest probe has {longest} of the {config.max_length} tokens that the model takes: attention "
            "needs memory with the square of the length",
        )
    if not has_tokenizer(file.name for file in directory.iterdir()):
        return make_probes(config, seed=seed), (*notes, "no tokenizer, so the probes are random ids alone")
    try:
        tokenizer = Tokenizer.from_directory(directory, max_length=config.max_length, hf_config=hf_config)

        def tokenize(text: str, pair: str | None) -> tuple[list[int], list[int]]:
            (encoded,) = tokenizer.encode([text], None if pair is None else [pair])
            return list(encoded.ids), list(encoded.type_ids)

        return make_probes(config, seed=seed, tokenize=tokenize), notes
    except (TokenizerError, ProbeError) as error:
        # The weights can still be compared; the report names the tokenizer's fault.
        note = f"the tokenizer gives no probes ({type(error).__name__}), so they are random ids alone"
        return make_probes(config, seed=seed), (*notes, note)
