"""Verify a converted checkpoint against the model that it was made from: the function behind `mlxbert-verify`."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.parity.files import write_reports
from mlxbert.errors import MLXBertError, printable, reason
from mlxbert.files.output_file import manifest_problems
from mlxbert.files.reading import expand_home, require_own_files
from mlxbert.files.safetensors import read_safetensors

__all__ = ["VerifyError", "models_in", "verify", "verify_staged", "write_reports"]

if TYPE_CHECKING:
    import mlx.core as mx

    from converter.parity.probes import Probe
    from converter.parity.reference import Reference
    from converter.parity.report import ParityReport, Part
    from converter.source import Source
    from mlxbert.models.base import Encoder
    from mlxbert.models.config_fields import EncoderConfig
    from mlxbert.pretrained.labels import HeadChoice
    from mlxbert.pretrained.model import PretrainedBert

Progress = Callable[[str, int, int], None]
"""Called with "verify", probes done, probes in all."""


# Fields of a configuration that its tensors' shapes follow from.
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)


class VerifyError(MLXBertError):
    """There is nothing to verify."""


def models_in(path: str | Path, *, reports: bool = False) -> list[Path]:
    """Return what `verify` is to be called with: a run's models; of anything else itself.

    Args:
        path: a directory.
        reports: whether a file for one model alone is wanted.

    Raises:
        MLXBertError: the run is not finished or damaged, or has several models and one report is wanted.
    """
    directory = expand_home(path)
    if not (directory / "run.json").exists():
        return [directory]
    from converter.export.run import read_run

    members = list(read_run(directory).members.values())
    if reports and len(members) > 1:
        raise VerifyError(f"{path}: --junit and --html are of one model, and this run has several; fix: {members[0]}")
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
        converted: what `mlxbert-convert` wrote, or a member of a run of `mlxbert train`.
        reference: what it was made from: a Hub id, a directory, or one file. None: the Hub id that its config.json
            names; of a trained model its own export to PyTorch.
        revision: a branch, tag or commit, where `reference` is a Hub id.
        config: a `config.json`, where the reference has none beside it.
        prefix: of the encoder's tensor names, where the reference has several encoders; None: the one converted.
        seed: of the random probes.
        progress: told how many probes are done.

    Raises:
        MLXBertError: one of the two cannot be read, or PyTorch is not installed; nothing was compared.
    """
    from mlxbert.checkpoint import read_config

    directory = expand_home(converted)
    if directory.exists() and not directory.is_dir():
        raise VerifyError(f"{converted}: is a file; fix: give the directory that mlxbert-convert wrote")
    if not directory.is_dir():
        raise VerifyError(f"{converted}: no such directory; fix: mlxbert-convert {reference or 'SRC'} -o {converted}")
    require_own_files(directory, VerifyError)
    hf_config = read_config(directory, other_tools=True)
    block = hf_config.get("mlxbert") or {}  # another tool's quantized files have none
    damage = [f"manifest: {problem}" for problem in manifest_problems(directory)]
    if isinstance(block.get("head"), dict):
        if reference is not None:
            raise VerifyError(
                f"{converted}: was fine-tuned, so it is in no other checkpoint; fix: leave --reference out, and it is "
                "compared with its own export to PyTorch"
            )
        return verify_trained(directory, hf_config, seed=seed, notes=damage, progress=progress)
    if reference is None:
        if not (isinstance(block.get("source"), str) and block.get("revision")):
            raise VerifyError(f"{converted}: was made from no Hub model; fix: give --reference what it was made from")
        reference = block["source"]
    if revision is None and reference == block.get("source"):
        # What it was converted from, not what the branch has become since.
        revision = block.get("revision")
    source = _reference_source(reference, block, revision, config, prefix)
    if source.root.resolve() == directory.resolve():
        raise VerifyError(f"{converted}: is compared with itself; fix: give --reference what it was converted from")
    _check_sizes(hf_config, source, converted, reference)
    return verify_staged(source, directory, hf_config, seed=seed, notes=damage, progress=progress)


def _reference_source(
    reference: str | Path,
    block: Mapping[str, Any],
    revision: str | None,
    config: str | Path | None,
    prefix: str | None,
) -> Source:
    """The reference; where it has several encoders, the one that was converted."""
    from converter.output import with_true_labels
    from converter.readers.encoder_fit import SeveralEncodersError
    from converter.source import open_source

    def opened(prefix: str | None) -> Source:
        return with_true_labels(
            open_source(
                str(reference),
                revision=revision,
                config=None if config is None else expand_home(config),
                prefix=prefix,
                encoder_only=block.get("encoder_only") is True,
            )
        )

    try:
        return opened(prefix)
    except SeveralEncodersError:
        chosen = block.get("prefix")
        if not isinstance(chosen, str):
            raise
        return opened(chosen)


def _check_sizes(hf_config: Mapping[str, Any], source: Source, converted: str | Path, reference: str | Path) -> None:
    """Refuse a reference whose tensors have other shapes: there is nothing to compare."""
    from mlxbert.models.base import config_from_hf

    ours, theirs = config_from_hf(hf_config), config_from_hf(source.config)
    differing = [
        f"{name} {getattr(theirs, name)}, not {getattr(ours, name)}"
        for name in _SIZES
        if getattr(ours, name) != getattr(theirs, name)
    ]
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
    """`verify` for a source that is open already and a directory whose `config.json` is not written yet.

    The mapping gate's MLX side is the written weights themselves where writing them lost nothing, and the source
    through the mapping otherwise; what the lossy cast cost is then the precision gate's to say.

    Raises:
        MLXBertError: as `verify`.
    """
    from converter.parity.gates import compare
    from converter.parity.reference import build_reference
    from converter.parity.report import Part, Provenance, inherited_proof, origin_of
    from converter.parity.sentences import SentenceComparison, compare_sentences
    from converter.quantize.cost import recipe_of
    from mlxbert.pretrained.model import HEADS_FILE

    weights = sorted(directory.glob("model*.safetensors"))
    quantized = hf_config.get("quantization") is not None
    dtype = recipe_of(hf_config) if quantized else _written_dtype(directory, weights)
    reference = build_reference(source)
    head, left_out = _compared_head(source, directory, hf_config, reference)
    written = written_model(directory, hf_config, head)
    model, float32_side = _float32_side(source, directory, hf_config, head, written, None if quantized else dtype)
    probes, probe_notes = directory_probes(directory, written.config, seed)
    if head is not None and (directory / HEADS_FILE).is_file():
        weights.append(directory / HEADS_FILE)
    sentences = compare_sentences(source, reference, directory, hf_config, model, None if quantized else written)
    report = compare(
        reference,
        model,
        None if quantized else written,
        probes,
        written_dtype=dtype,
        provenance=Provenance(
            source=source.name,
            revision=source.revision,
            weights={file.name: _sha256(file) for file in weights},
            float32_core=float32_side,
            seed=seed,
            notes=(*notes, *probe_notes),
            origin=origin_of(source),
            proof=inherited_proof(source),
        ),
        sentences=sentences if isinstance(sentences, SentenceComparison) else None,
        progress=None if progress is None else lambda done, total, _: progress("verify", done, total),
    )
    left = [part for part in (left_out, sentences) if isinstance(part, Part)]
    report = replace(report, scope=(*report.scope, *left))
    if not quantized:
        return report
    from converter.quantize.report import describe_quantization

    return replace(report, quantization=describe_quantization(directory, hf_config, model, written))


def _float32_side(
    source: Source,
    directory: Path,
    hf_config: dict[str, Any],
    head: HeadChoice | None,
    written: Encoder | PretrainedBert,
    dtype: str | None,
) -> tuple[Encoder | PretrainedBert, str]:
    """The mapping gate's MLX side, and what it is, for the report; `dtype` is None for a quantized checkpoint."""
    import mlx.core as mx

    from converter.canonical import float32_core, float32_model

    if dtype is not None and _is_lossless(source, dtype):
        model = written if dtype == "float32" else written_model(directory, hf_config, head, mx.float32)
        return model, f"the written {dtype} weights in float32"
    model = float32_core(source) if head is None else float32_model(source, head)
    became = dtype or "packed"
    return model, f"the source's weights through the mapping in float32, before they became {became}"


def _compared_head(
    source: Source, directory: Path, hf_config: dict[str, Any], reference: Reference
) -> tuple[HeadChoice | None, Part | None]:
    """The class whose head is compared; or, of a head that is shipped and cannot be compared, the reason."""
    from converter.parity.reference import head_choice
    from converter.parity.report import OWN_HEAD, Part
    from mlxbert.models.base import architecture
    from mlxbert.pretrained.labels import HeadChoice
    from mlxbert.pretrained.model import has_head, read_head_tensors

    shipped = has_head(directory, hf_config)
    heads = architecture(hf_config.get("model_type")).heads
    if reference.class_name not in heads:
        # What transformers could not build with its head is compared as an encoder, on both sides.
        if not shipped:
            return None, None
        why = reference.left_out or "it is none of a class of transformers"
        try:  # what is wrong with it in our words, which name the tensors
            if (told := head_choice(source)) is not None:
                written_model(directory, hf_config, told)
        except MLXBertError as error:
            why = reason(error, directory)
        return None, Part(OWN_HEAD, False, why)
    choice = HeadChoice(reference.class_name)
    if not shipped:
        return choice, None  # each of its outputs then fails as one that the MLX model does not have
    try:
        written_model(directory, hf_config, choice)
    except MLXBertError as error:  # the encoder is compared all the same
        return None, Part(OWN_HEAD, False, reason(error, directory))
    tensors = read_head_tensors(directory, hf_config)
    beside = [name for name in tensors if not name.startswith(heads[choice.name].prefixes)]
    if beside:
        return choice, Part("other head tensors", False, f"{choice.name} has no use for {', '.join(beside[:3])}")
    return choice, None


def verify_trained(
    directory: Path,
    hf_config: dict[str, Any],
    *,
    seed: int = 0,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> ParityReport:
    """Run both gates on a model that mlxbert fine-tuned, against its own export to PyTorch.

    Raises:
        MLXBertError: it is quantized or damaged, its head has no PyTorch form, or PyTorch is not installed.
    """
    import mlx.core as mx

    from converter.parity.gates import compare
    from converter.parity.outputs import TrainedModel
    from converter.parity.reference import build_exported
    from converter.parity.report import Provenance
    from mlxbert.with_head import HEADS_FILE, BertWithHead

    if hf_config.get("quantization") is not None:
        raise VerifyError(f"{directory}: is quantized, which has no PyTorch form; fix: verify the unquantized model")
    weights = sorted(directory.glob("model*.safetensors"))
    dtype = _written_dtype(directory, weights)
    with tempfile.TemporaryDirectory() as scratch:
        reference = build_exported(directory, Path(scratch))
        exact = BertWithHead.load(directory, dtype=mx.float32)
        exact.set_dtype(mx.float32)  # a head may be stored in another dtype than its encoder
        model = TrainedModel(exact, folded=reference.folded)
        written = model if dtype == "float32" else TrainedModel(BertWithHead.load(directory), folded=reference.folded)
        probes, probe_notes = directory_probes(directory, model.core.config, seed)
        files = [*weights, *(file for file in [directory / HEADS_FILE] if file.is_file())]
        return compare(
            reference,
            model,
            written,
            probes,
            written_dtype=dtype,
            provenance=Provenance(
                source=_trained_name(directory),
                revision=None,
                weights={file.name: _sha256(file) for file in files},
                float32_core=f"the written {dtype} weights in float32",
                seed=seed,
                notes=(*notes, *probe_notes),
                own_export=True,
            ),
                progress=None if progress is None else lambda done, total, _: progress("verify", done, total),
        )


def _trained_name(directory: Path) -> str:
    """A member's name with its run's; of a model that stands alone its directory's."""
    path = directory.resolve()
    run = path.parent.parent
    in_run = path.parent.name == "members" and (run / "run.json").is_file()
    return printable(f"{run.name}/{path.name}" if in_run else path.name)


def written_model(
    directory: Path, hf_config: dict[str, Any], head: HeadChoice | None, dtype: mx.Dtype | None = None
) -> Encoder | PretrainedBert:
    """The written checkpoint with its head; the encoder alone where there is none, which the gates then say."""
    from mlxbert.checkpoint import load_core
    from mlxbert.pretrained.model import attach_head, has_head, read_head_tensors

    core = load_core(directory, config=hf_config, dtype=dtype, dequantize=True)
    if head is None or not has_head(directory, hf_config):
        return core
    return attach_head(
        core, read_head_tensors(directory, hf_config), head, hf_config, place=str(directory), dtype=dtype
    )


def _written_dtype(directory: Path, weights: list[Path]) -> str:
    """The dtype on disk, whatever `config.json` says."""
    read = [read_safetensors(file, VerifyError) for file in weights]
    loaded = [tensors for tensors, _ in filter(None, read)]
    dtypes = {str(tensor.dtype).removeprefix("mlx.core.") for tensors in loaded for tensor in tensors.values()}
    if len(dtypes) != 1:
        found = ", ".join(sorted(dtypes)) or "no tensors"
        raise VerifyError(f"{directory}: one dtype expected in model*.safetensors, found {found}; fix: convert again")
    return dtypes.pop()


def _is_lossless(source: Source, dtype: str) -> bool:
    from converter.canonical import CODES, plan_source

    _, planned = plan_source(source)
    return {source.entries[item.source].dtype for item in (*planned.encoder, *planned.heads)} == {CODES[dtype]}


def directory_probes(directory: Path, config: EncoderConfig, seed: int) -> tuple[tuple[Probe, ...], tuple[str, ...]]:
    """Probes with sentences where the directory has a tokenizer that fits the model, and otherwise why not."""
    from converter.parity.probes import ProbeError, make_probes
    from mlxbert.tokenization.tokenizer import Tokenizer, TokenizerError

    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return make_probes(config, seed=seed), ("no tokenizer, so the probes are random ids alone",)
    try:
        tokenizer = Tokenizer.from_directory(directory, max_length=config.max_length)

        def tokenize(text: str, pair: str | None) -> tuple[list[int], list[int]]:
            (encoded,) = tokenizer.encode([text], None if pair is None else [pair])
            return list(encoded.ids), list(encoded.type_ids)

        return make_probes(config, seed=seed, tokenize=tokenize), ()
    except (TokenizerError, ProbeError) as error:
        # The weights can be compared all the same; what is wrong with the tokenizer belongs in the report.
        reason = f"the tokenizer gives no probes ({type(error).__name__}), so they are random ids alone"
        return make_probes(config, seed=seed), (reason,)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
