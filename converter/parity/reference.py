"""The reference: a checkpoint as transformers alone reads it, in float32 PyTorch on the CPU.

This is the only place that builds a torch model. Names go to modules by transformers' own rules, never by our mapping,
which is what the comparison is about. A checkpoint with a head is built as the class that it was saved from; a pooler
that this class leaves out is built by the encoder's class, and compared too.

The weights of a model that mlxbert fine-tuned are in no PyTorch checkpoint. Its reference is what `mlxbert-export`
writes: transformers' own encoder, and the head in torch as the shipped `inference.py` computes it; that shares no code
with `heads/`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.parity.probes import Probe
from heads.command_line import install_fix
from mlxbert.errors import MLXBertError, first_ten, reason
from mlxbert.models.architecture import POOLER, Architecture, HeadKind, architecture
from mlxbert.pretrained import HeadChoice, HeadClassError, choose_head_class

if TYPE_CHECKING:
    from converter.source import Source

PREDICTION = "prediction"
"""Output of a fine-tuned head beside its logits: probabilities, or values in the user's units."""

# What a configuration says of a head: labels 0, 1, 3 or an odd problem type do not concern the encoder.
_HEAD_FIELDS = ("id2label", "label2id", "num_labels", "problem_type", "classifier_dropout")
# The names that `from_pretrained` looks for in a directory.
_STANDARD_FILE = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class ReferenceModelError(MLXBertError):
    """PyTorch cannot run the source, so there is nothing to compare with."""


@dataclass(frozen=True)
class ReferenceOutput:
    """What the reference computes for one probe, float32.

    Attributes:
        hidden_states: the embeddings' output and each layer's, (B, L, D) each; the last one is after a final norm.
        pooler_output: (B, D); None for a checkpoint without a pooler.
        logits: the head's outputs under transformers' field names, a vector for each position (B, L, F) or each text
            (B, F); one score for a position (`start_logits`) or a choice has F = 1.
    """

    hidden_states: tuple[np.ndarray, ...]
    pooler_output: np.ndarray | None
    logits: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """A float32 PyTorch model in evaluation mode: an encoder, or one with its head.

    Attributes:
        model: the transformers model.
        class_name: its class.
        unexpected: the source's tensors that this class does not use.
        notes: notes for the report on how it was built.
        opened: whether transformers opened the source's directory itself.
        left_out: why the source's own head was not built; None: it was, or there is none.
    """

    model: Any
    class_name: str
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    opened: bool = False
    left_out: str | None = None

    def run(self, probe: Probe) -> ReferenceOutput:
        """Return every hidden state, the pooler's output and the logits for one batch."""
        import torch

        batch = probe.shape[0]
        inputs = _tensors(self.model, probe)
        head = architecture(self.model.config.model_type).heads.get(self.class_name)
        kind = None if head is None else head.kind
        if kind is HeadKind.CHOICE:
            inputs = {name: tensor.view(-1, choices_of(batch), tensor.shape[-1]) for name, tensor in inputs.items()}
        encoded: list[Any] = []  # a class with a head does not return the pooler's output
        hook = self.model.base_model.register_forward_hook(lambda _module, _inputs, output: encoded.append(output))
        try:
            with torch.inference_mode(), full_float32():
                output = self.model(**inputs, output_hidden_states=True, return_dict=True)
        finally:
            hook.remove()
        return ReferenceOutput(
            hidden_states=tuple(state.numpy() for state in output.hidden_states),
            pooler_output=_pooler_output(encoded[0]),
            logits={name: as_vectors(output[name].numpy(), kind) for name in output if name.endswith("logits")},
        )


def choices_of(batch: int) -> int:
    """Return how many texts of a batch a multiple-choice model gets as the choices of one question."""
    return 2 if batch % 2 == 0 else 1


def as_vectors(logits: np.ndarray, kind: HeadKind | None) -> np.ndarray:
    """Return logits as a vector for each position, (B, L, F), or each text, (B, F).

    Args:
        logits: one output of a head.
        kind: what the head does; one score for a position or for a choice has F = 1. None: a fine-tuned head.
    """
    if kind in (HeadKind.SPAN, HeadKind.REPLACED_TOKEN):
        return logits[..., None]
    return logits.reshape(-1, 1) if kind is HeadKind.CHOICE else logits


def _tensors(model: Any, probe: Probe) -> dict[str, Any]:
    """Return those arrays of a probe that the model takes, as tensors."""
    import torch

    taken = inspect.signature(model.forward).parameters
    arrays = {name: getattr(probe, name) for name in _INPUTS if name in taken}
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}


def _pooler_output(encoded: Any) -> np.ndarray | None:
    pooled = getattr(encoded, "pooler_output", None)
    return None if pooled is None else pooled.numpy()


def build_reference(source: Source) -> Reference:
    """Build the source with transformers: float32, eager attention, evaluation mode, with its head if it has one.

    A directory in a standard layout is opened by `from_pretrained(directory)`. For the forms that transformers does
    not open itself (a wrapped state dict, a bare `.pt` file), it gets the tensors by name. A head that transformers
    cannot build whole is left out, and a note says why. An adapter is put on its base, and merged, by PEFT.

    Raises:
        ReferenceModelError: torch is not installed, transformers does not read this form, or a parameter would keep
            its random initialization.
    """
    if source.format == "npz":
        raise ReferenceModelError(
            f"{source.location}: PyTorch does not read .npz files; "
            "fix: verify against the PyTorch checkpoint that it was made from (--reference)"
        )
    require_torch()
    if source.unmerged:
        return _with_adapter(source)
    notes = []
    if _opens_itself(source):
        directory: dict[str, Any] = {
            "pretrained_model_name_or_path": str(source.directory),
            "use_safetensors": source.format == "safetensors",
        }
        try:
            reference = _with_head(source, directory, notes=("PyTorch reference: from_pretrained(directory)",))
            return replace(reference, opened=True)
        except ReferenceModelError:
            # A wrapped state dict under a standard name opens as a model without tensors. The second way has the same
            # checks, so that it also fails if the tensors themselves are wrong.
            notes.append("transformers does not open these files itself")
    by_name = {"pretrained_model_name_or_path": None, "state_dict": _state_dict(source)}
    return _with_head(source, by_name, notes=(*notes, "PyTorch reference: from_pretrained(None, state_dict=…)"))


def _with_adapter(source: Source) -> Reference:
    """Build the base, and let PEFT put the adapter on it and merge the two: nothing here is our own merge."""
    import peft

    reference = build_reference(replace(source, entries={**source.entries, **source.unmerged}, unmerged={}))
    try:
        model = peft.PeftModel.from_pretrained(reference.model, source.location).merge_and_unload()
    except Exception as error:  # PEFT raises anything; the cause stays attached
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ReferenceModelError(f"{source.location}: PEFT cannot read it ({summary})") from error
    note = "the adapter was put on the base, and merged into it, by PEFT"
    return replace(reference, model=model.eval(), notes=(*reference.notes, note))


def require_torch() -> None:
    """Check that PyTorch and transformers are installed.

    Raises:
        ReferenceModelError: one is not installed, or damaged.
    """
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise ReferenceModelError(
            f"verifying needs PyTorch and transformers, and {error.name} is not installed; fix: {install_fix('torch')}"
        ) from error
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        summary = str(error).splitlines()[0]
        raise ReferenceModelError(
            f"verifying needs PyTorch and transformers, and they are damaged here ({summary}); "
            f"fix: {install_fix('torch', reinstall=True)}, or convert with --no-verify"
        ) from error


def _opens_itself(source: Source) -> bool:
    """Return whether `from_pretrained(directory)` would read exactly the files of the source."""
    names = [file.name for file in source.weight_files]
    if source.prefix or source.choices:
        return False
    if not all(_STANDARD_FILE.fullmatch(name) for name in names):
        return False
    if any(file.parent != source.directory for file in source.weight_files):
        return False
    if names in (["model.safetensors"], ["pytorch_model.bin"]):
        return True
    indices = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
    return len(names) > 1 and any((source.directory / index).is_file() for index in indices)


def _state_dict(source: Source) -> dict[str, Any]:
    import torch

    tensors = {}
    for key, entry in source.entries.items():
        array = entry.read()
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
            array = array.astype(np.float32)  # bfloat16, which torch.from_numpy does not take; exact
        tensors[key] = torch.from_numpy(array.copy())
    return tensors


def head_choice(source: Source) -> HeadChoice | None:
    """Return the class that the source's head is compared as; None for an encoder without a head.

    It is the source's own class. But if a masked LM's file also holds the other head of pre-training
    (bert-base-uncased), both are compared.

    Raises:
        HeadClassError: the head's tensors do not fit the class, or several classes fit them.
    """
    declared = _declared(source)
    tensors = [name for name in source.entries if declared.is_head_tensor(name)]
    if not tensors:
        return None
    choice = choose_head_class(source.config, tensors, has_pooler=_has_pooler(source), place=source.name)
    both = declared.head_of(HeadKind.PRETRAINING)
    if both is not None and _has_pooler(source):
        prefixes, all_prefixes = declared.heads[choice.name].prefixes, declared.heads[both].prefixes
        present = all(any(name.startswith(prefix) for name in tensors) for prefix in all_prefixes)
        if present and set(prefixes) < set(all_prefixes):
            return HeadChoice(both, f"it has both of pre-training's heads: compared as {both}")
    return choice


def _declared(source: Source) -> Architecture:
    return architecture(source.config.get("model_type"))


def _has_pooler(source: Source) -> bool:
    return any(map(_declared(source).is_pooler, source.entries))


def _with_head(source: Source, weights: dict[str, Any], notes: tuple[str, ...]) -> Reference:
    """Build the class with the head, and the pooler that it leaves out; the encoder alone without a whole head."""
    declared = _declared(source)
    encoder = declared.encoder_class
    try:
        choice = head_choice(source)
    except HeadClassError as error:
        return replace(_build(source, weights, notes, encoder), left_out=reason(error))
    if choice is None:
        return _build(source, weights, notes, encoder)
    pooler: dict[str, Any] = {}
    if not declared.heads[choice.name].has_pooler and _has_pooler(source):
        # Only the pooler (and its activation, if that is a module) is kept: there are never two models in memory.
        children = _build(source, weights, (), encoder).model.named_children()
        pooler = {name: module for name, module in children if name.startswith("pooler")}
    try:
        reference = _build(source, weights, (*notes, *filter(None, [choice.note])), choice.name)
    except ReferenceModelError as error:
        left_out = f"as {choice.name}, {reason(error, source.location)}"
        return replace(_build(source, weights, notes, encoder), left_out=left_out)
    if not pooler:
        return reference
    for name, module in pooler.items():
        setattr(reference.model.base_model, name, module)
    unexpected = tuple(name for name in reference.unexpected if not declared.is_pooler(name))
    note = f"{choice.name} has no pooler: the file's own is compared with {encoder}'s"
    return replace(reference, unexpected=unexpected, notes=(*reference.notes, note))


def _build(
    source: Source, weights: dict[str, Any], notes: tuple[str, ...], class_name: str, **options: Any
) -> Reference:
    """Build one class of transformers; an encoder whose pooler has no tensors is built again without it."""
    import torch
    import transformers

    declared = _declared(source)
    try:
        with quiet_transformers():
            model, info = getattr(transformers, class_name).from_pretrained(
                **weights,
                config=transformers.CONFIG_MAPPING[declared.model_type].from_dict(_config(source, class_name)),
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # transformers raises anything; the cause stays attached
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ReferenceModelError(f"{source.location}: transformers cannot build it ({summary})") from error
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    pooler = {name for name, _ in model.named_parameters() if name.startswith(POOLER) and declared.has_pooler}
    if missing and missing == pooler:
        notes = (*notes, "the checkpoint has no pooler; none is compared")
        return _build(source, weights, notes, class_name, add_pooling_layer=False)
    head = declared.heads.get(class_name)
    tied_bias, unused_bias = (head and head.tied_bias) or (None, None)
    if unused_bias is not None and missing == {tied_bias}:
        # Untied, transformers < 5 still shared this one with the other bias, and did not save it.
        module, _, leaf = str(tied_bias).rpartition(".")
        setattr(model.get_submodule(module), leaf, model.get_parameter(unused_bias))
        notes = (*notes, f"{tied_bias} is not in the file: {unused_bias}, as transformers before 5 has it")
    elif missing and missing != {unused_bias}:  # transformers adds the decoder's bias, and does not use the other one
        raise ReferenceModelError(
            f"{source.location}: transformers finds no tensor for {len(missing)} parameters and would fill them at "
            f"random; fix: verify against the complete checkpoint\n{first_ten(sorted(missing))}"
        )
    model.eval()
    return Reference(model, type(model).__name__, tuple(sorted(unexpected)), notes)


def _config(source: Source, class_name: str) -> dict[str, Any]:
    """Return the configuration; for an encoder without the fields of its head, which transformers may refuse."""
    left_out = _HEAD_FIELDS if class_name == _declared(source).encoder_class else ()
    kept = {name: value for name, value in source.config.items() if name not in left_out}
    # Chunks of the feed-forward save memory and change no number; transformers runs no length that they do not divide.
    return {**kept, "chunk_size_feed_forward": 0}


@contextmanager
def full_float32() -> Iterator[None]:
    """Let torch multiply at full precision, whatever the process has set: "medium" lets CPUs multiply in bfloat16."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' bars and load report, which `output_loading_info` returns as data; errors are shown."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class ExportedReference:
    """A fine-tuned model's own export in PyTorch.

    Attributes:
        member: the exported model, a `Member` of the code that an export has.
        head: the MLX head, which says what it reads beside the text.
        class_name: the transformers class of the export, and its head.
        folded: whether the weights contain the scaler of the target, so that only values can be compared.
    """

    member: Any
    head: Any
    class_name: str
    folded: bool
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ("PyTorch reference: the model's own export, its head as in inference.py",)

    def run(self, probe: Probe) -> ReferenceOutput:
        """Return every hidden state, the pooler's output, the logits and the predictions for one batch."""
        import torch

        encoder = self.member.model.base_model
        batch = _tensors(encoder, probe)
        with torch.inference_mode(), full_float32():
            encoded = encoder(**batch, output_hidden_states=True)
            logits = self.member.logits(batch, extra_inputs(self.head, probe)).double().numpy()
        decision = self.member.decide(self.member.outcome(logits), np.asarray(self.member.thresholds))
        values = decision.probabilities if decision.values is None else decision.values
        assert values is not None
        outputs = {} if self.folded else {"logits": logits.astype(np.float32)}
        return ReferenceOutput(
            hidden_states=tuple(state.numpy() for state in encoded.hidden_states),
            pooler_output=_pooler_output(encoded),
            logits=outputs | {PREDICTION: values.astype(np.float32).reshape(len(logits), -1)},
        )


def build_exported(directory: Path, scratch: Path) -> ExportedReference:
    """Export a trained model below `scratch` and open it in PyTorch.

    Raises:
        MLXBertError: PyTorch is not installed, the model is damaged or quantized, or its head has no PyTorch form.
    """
    require_torch()
    import torch

    from converter.export.inference_modules.predictor import Member
    from converter.export.member import read_member, write_member
    from mlxbert.files.output_directory import OutputDirectory

    member = read_member(directory)
    with OutputDirectory(scratch / "export") as output:
        output.commit(write_member(output, member, ""))
    name = member.class_name if member.is_whole else f"{member.class_name} with a {member.head['name']} head"
    with full_float32():
        exported = Member(scratch / "export", torch.device("cpu"))
    folded = member.is_whole and member.exported.is_folded
    return ExportedReference(exported, member.model.head, name, folded)


def extra_inputs(head: Any, probe: Probe) -> Mapping[str, np.ndarray]:
    """Return what a time series head reads beside the text: a history and a date for each row.

    The tokens of a row are their seed, so that a row has the same ones in a padded batch and alone.
    """
    extra: dict[str, np.ndarray] = {}
    rows = [np.random.default_rng(ids[keep]) for ids, keep in zip(probe.input_ids, probe.keep, strict=True)]
    if getattr(head, "window", 0):
        extra["history"] = np.stack([100 + 20 * rng.random(head.window) for rng in rows])
    if getattr(head, "calendar", ()):
        hours = np.array([rng.integers(0, 24 * 3650) for rng in rows]) * np.timedelta64(1, "h")
        extra["made_at"] = np.datetime64("2001-02-03T04") + hours
    return extra
