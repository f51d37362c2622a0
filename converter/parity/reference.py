"""How the reference runs: torch at full precision, transformers without its bars and reports.

Where a comparison ran: versions, device, float32 multiplication and BLAS. Never a host, a user or a path.

The checkpoint's own head in a comparison: which class it is compared as, and its logits as vectors.

The reference: the source as transformers alone reads it, in float32 PyTorch on the CPU.

The only place that builds a torch model. Names go to modules by transformers' own rules (`bert.` prefix, `gamma` and
`beta`), never by our mapping, which is what the comparison is about. A checkpoint with a head is built as the class
that it was saved from; a pooler that this class leaves out (a masked LM's) is built by `BertModel` and compared too.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from converter.parity.probes import Probe
from heads.install import install_fix
from mlxbert.backend.device import blas_name, device_name, package_versions
from mlxbert.errors import MLXBertError, first_ten, reason
from mlxbert.models.base import architecture
from mlxbert.pretrained.labels import (
    HeadChoice,
    HeadClassError,
    choose_head_class,
)


@contextmanager
def full_float32() -> Iterator[None]:
    """Torch's own full precision, whatever the process has set: "medium" lets CPUs multiply in bfloat16."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no load report, which `output_loading_info` gives as data; errors still show."""
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


_PACKAGES = ("mlxbert", "mlx", "torch", "transformers", "tokenizers", "numpy")


class InexactFloat32Error(MLXBertError):
    """MLX multiplies float32 at reduced precision in this process, so float32 parity cannot be measured."""


def require_exact_float32() -> str:
    """Turn TF32 off and check, by a product, that it is off; returns a line for the report.

    MLX reads `MLX_ENABLE_TF32` once, at the first product that could use TF32 (`mlx/utils.h`, `enable_tf32`); after
    that, setting it does nothing. Whether it was in time cannot be asked, so it is measured.

    Raises:
        InexactFloat32Error: it was too late.
    """
    os.environ["MLX_ENABLE_TF32"] = "0"
    size = 256  # large enough for every backend's matrix units
    # 1 + 2⁻¹² needs 12 bits after the point: TF32 keeps 10, float32 23; each sum, 256 + 2⁻⁴, is exact in float32.
    product = mx.full((size, size), 1 + 2**-12) @ mx.ones((size, size))
    error = float(np.abs(np.array(product) - size * (1 + 2**-12)).max())
    if error:
        raise InexactFloat32Error(
            f"MLX multiplies float32 at reduced precision (TF32; a product of {size}×{size} is off by {error:g}); "
            "fix: set MLX_ENABLE_TF32=0 before the process starts"
        )
    return "off (MLX_ENABLE_TF32=0; checked by a product)"


def describe(tf32: str) -> dict[str, str]:
    """Name to value, for the report; `tf32` is what `require_exact_float32` returned."""
    facts = {"python": platform.python_version(), **package_versions(_PACKAGES)}
    facts["platform"] = f"{platform.system()} {platform.machine()}"
    facts["device"] = device_name()
    facts["tf32"] = tf32
    facts["blas"] = blas_name()
    return facts


if TYPE_CHECKING:
    from converter.source import Source

MULTIPLE_CHOICE = "BertForMultipleChoice"
PRETRAINING = "BertForPreTraining"
WITHOUT_POOLER = ("BertForMaskedLM", "BertLMHeadModel", "BertForTokenClassification", "BertForQuestionAnswering")
POOLER = frozenset({"pooler.dense.weight", "pooler.dense.bias"})


def head_choice(source: Source) -> HeadChoice | None:
    """The class that the source's head is compared as; None for an encoder alone.

    The source's own class, except that where a masked LM's file holds the next-sentence head too (bert-base-uncased),
    both are compared.

    Raises:
        HeadClassError: the head's tensors do not fit the class, or do not tell it.
    """
    declared = architecture(source.config.get("model_type"))
    tensors = [name for name in source.entries if declared.is_head_tensor(name)]
    if not tensors:
        return None
    choice = choose_head_class(source.config, tensors, has_pooler=has_pooler(source), place=source.name)
    if PRETRAINING not in declared.heads:
        return choice
    one, both = declared.heads[choice.name].prefixes, declared.heads[PRETRAINING].prefixes
    present = all(any(name.startswith(prefix) for name in tensors) for prefix in both)
    if has_pooler(source) and present and len(one) == 1 and one[0] in both:
        return HeadChoice(PRETRAINING, f"it has both of pre-training's heads: compared as {PRETRAINING}")
    return choice


def has_pooler(source: Source) -> bool:
    """Whether both tensors of the pooler are there."""
    return {name.removeprefix("bert.") for name in source.entries} >= POOLER


def choices_of(batch: int) -> int:
    """How many of a batch's texts a multiple-choice model is given as the choices of one question."""
    return 2 if batch % 2 == 0 else 1


def as_vectors(name: str, logits: np.ndarray, batch: int) -> np.ndarray:
    """Logits as vectors of a position, (B, L, F), or of a text, (B, F); spans and choices (B / C, C) have F = 1."""
    if name in ("start_logits", "end_logits"):
        return logits[..., None]
    return logits if len(logits) == batch else logits.reshape(batch, 1)


if TYPE_CHECKING:
    from converter.source import Source


# transformers adds the decoder's bias; `predictions.bias` is what it is tied to, and is not used otherwise.
_DECODER_BIAS, _UNUSED_BIAS = "cls.predictions.decoder.bias", "cls.predictions.bias"
# What a configuration says of a head: labels 0, 1, 3 or an odd problem type are no matter of the encoder's.
_HEAD_FIELDS = ("id2label", "label2id", "num_labels", "problem_type", "classifier_dropout")
# The names that `from_pretrained` looks for in a directory.
_STANDARD_FILE = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)")


class ReferenceModelError(MLXBertError):
    """PyTorch cannot run the source, so there is nothing to compare with."""


@dataclass(frozen=True)
class ReferenceOutput:
    """What the reference computes for one probe, float32.

    Attributes:
        hidden_states: the embeddings' output and each layer's, (B, L, D) each.
        pooler_output: (B, D); None for a checkpoint without a pooler.
        logits: the head's outputs under transformers' field names, a vector a position or a text: (B, L, F) or (B, F);
            one score a position (`start_logits`) or a choice has F = 1.
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
        unexpected: the source's tensors that this class has no use for.
        notes: what the report should say about how it was built.
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
        """Every hidden state, the pooler's output and the logits for one batch."""
        import torch

        batch = probe.shape[0]
        inputs = {
            name: torch.from_numpy(array)
            for name, array in (
                ("input_ids", probe.input_ids),
                ("attention_mask", probe.attention_mask),
                ("token_type_ids", probe.token_type_ids),
            )
        }
        if self.class_name == MULTIPLE_CHOICE:
            inputs = {name: tensor.view(-1, choices_of(batch), tensor.shape[-1]) for name, tensor in inputs.items()}
        encoded: list[Any] = []  # the head's class does not return the pooler's output
        hook = self.model.base_model.register_forward_hook(lambda _module, _inputs, output: encoded.append(output))
        try:
            with torch.inference_mode(), full_float32():
                output = self.model(**inputs, output_hidden_states=True, return_dict=True)
        finally:
            hook.remove()
        pooled = encoded[0].pooler_output
        return ReferenceOutput(
            hidden_states=tuple(state.numpy() for state in output.hidden_states),
            pooler_output=None if pooled is None else pooled.numpy(),
            logits={name: as_vectors(name, output[name].numpy(), batch) for name in output if name.endswith("logits")},
        )


def build_reference(source: Source) -> Reference:
    """The source as transformers builds it: float32, eager attention, evaluation mode; its head too, if it has one.

    A directory in a standard layout is opened by `from_pretrained(directory)`. For the forms that transformers does
    not open itself (a wrapped state dict, a bare `.pt` file), the tensors are handed to it by name. A head that
    transformers cannot build whole is left out, and a note says why.

    Raises:
        ReferenceModelError: torch is not installed, transformers does not read this form, or a parameter would be
            left at its random initialisation.
    """
    if source.format == "npz":
        raise ReferenceModelError(
            f"{source.location}: PyTorch does not read .npz files; "
            "fix: verify against the PyTorch checkpoint that it was made from (--reference)"
        )
    require_torch()
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
            # checks, and what is wrong with the tensors themselves fails there too.
            notes.append("transformers does not open these files itself")
    by_name = {"pretrained_model_name_or_path": None, "state_dict": _state_dict(source)}
    return _with_head(source, by_name, notes=(*notes, "PyTorch reference: from_pretrained(None, state_dict=…)"))


def _with_head(source: Source, weights: dict[str, Any], notes: tuple[str, ...]) -> Reference:
    """The class with the head, and the pooler that it leaves out; the encoder alone where there is no (whole) head."""
    try:
        choice = head_choice(source)
    except HeadClassError as error:
        return replace(_build(source, weights, notes), left_out=reason(error))
    if choice is None:
        return _build(source, weights, notes)
    pooler = None
    if choice.name in WITHOUT_POOLER and has_pooler(source):
        # Of this encoder its pooler alone is kept: never two models in memory.
        pooler = _build(source, weights, ()).model.pooler
    try:
        reference = _build(source, weights, (*notes, *filter(None, [choice.note])), class_name=choice.name)
    except ReferenceModelError as error:
        left_out = f"as {choice.name}, {reason(error, source.location)}"
        return replace(_build(source, weights, notes), left_out=left_out)
    if pooler is None:
        return reference
    reference.model.base_model.pooler = pooler
    beside = tuple(name for name in reference.unexpected if name.removeprefix("bert.") not in POOLER)
    note = f"{choice.name} has no pooler: the file's own is compared with BertModel's"
    return replace(reference, unexpected=beside, notes=(*reference.notes, note))


def require_torch() -> None:
    """Refuse to go on without PyTorch and transformers.

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
        reason = str(error).splitlines()[0]
        raise ReferenceModelError(
            f"verifying needs PyTorch and transformers, and they are damaged here ({reason}); "
            f"fix: {install_fix('torch', reinstall=True)}, or convert with --no-verify"
        ) from error


def _opens_itself(source: Source) -> bool:
    """Whether `from_pretrained(directory)` would read exactly the files that the source names."""
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


def _config_of(source: Source, class_name: str) -> dict[str, Any]:
    """The configuration; of an encoder alone without the fields of its head, which transformers may refuse."""
    kept = {
        name: value for name, value in source.config.items() if class_name != "BertModel" or name not in _HEAD_FIELDS
    }
    # Chunks of the feed-forward save memory and change no number; transformers runs no length that they do not divide.
    return {**kept, "chunk_size_feed_forward": 0}


def _build(
    source: Source,
    weights: dict[str, Any],
    notes: tuple[str, ...],
    *,
    class_name: str = "BertModel",
    pooler: bool = True,
) -> Reference:
    import torch
    import transformers

    try:
        with quiet_transformers():
            model, info = getattr(transformers, class_name).from_pretrained(
                **weights,
                config=transformers.BertConfig.from_dict(_config_of(source, class_name)),
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                output_loading_info=True,
                **({"add_pooling_layer": pooler} if class_name == "BertModel" else {}),
            )
    except Exception as error:  # whatever transformers raises, verifying could not run; the cause stays attached
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ReferenceModelError(f"{source.location}: transformers cannot build it ({summary})") from error
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if class_name == "BertModel" and pooler and missing == POOLER:
        return _build(source, weights, (*notes, "the checkpoint has no pooler; none is compared"), pooler=False)
    if missing == {_DECODER_BIAS}:
        # Untied, transformers < 5 still shared this one with `predictions.bias`, and did not save it.
        model.cls.predictions.decoder.bias = model.cls.predictions.bias
        notes = (*notes, f"{_DECODER_BIAS} is not in the file: cls.predictions.bias, as transformers before 5 has it")
    elif missing and missing != {_UNUSED_BIAS}:
        raise ReferenceModelError(
            f"{source.location}: transformers finds no tensor for {len(missing)} parameters and would fill them at "
            f"random; fix: verify against the complete checkpoint\n{first_ten(sorted(missing))}"
        )
    model.eval()
    return Reference(model, type(model).__name__, tuple(sorted(unexpected)), notes)
