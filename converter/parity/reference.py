"""The reference: the source as transformers alone reads it, in float32 PyTorch on the CPU.

The only place that builds a torch model. Names go to modules by transformers' own rules (`bert.` prefix, `gamma` and
`beta`), never by our mapping, which is what the comparison is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.parity.probes import Probe
from mlxbert.errors import MLXBertError, first_ten

if TYPE_CHECKING:
    from converter.source import Source

_POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
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
        logits: heads' outputs under transformers' field names.
    """

    hidden_states: tuple[np.ndarray, ...]
    pooler_output: np.ndarray | None
    logits: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """A float32 PyTorch encoder in evaluation mode.

    Attributes:
        model: the transformers model.
        class_name: its class.
        unexpected: the source's tensors that this class has no use for (heads).
        notes: what the report should say about how it was built.
    """

    model: Any
    class_name: str
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def run(self, probe: Probe) -> ReferenceOutput:
        """Every hidden state and the pooler's output for one batch."""
        import torch

        with torch.inference_mode(), _full_float32():
            output = self.model(
                input_ids=torch.from_numpy(probe.input_ids),
                attention_mask=torch.from_numpy(probe.attention_mask),
                token_type_ids=torch.from_numpy(probe.token_type_ids),
                output_hidden_states=True,
                return_dict=True,
            )
        pooled = output.pooler_output
        return ReferenceOutput(
            hidden_states=tuple(state.numpy() for state in output.hidden_states),
            pooler_output=None if pooled is None else pooled.numpy(),
        )


def build_reference(source: Source) -> Reference:
    """The source's encoder as transformers builds it: float32, eager attention, evaluation mode.

    A directory in a standard layout is opened by `BertModel.from_pretrained(directory)`. For the forms that
    transformers does not open itself (a wrapped state dict, a bare `.pt` file), the tensors are handed to it by name.

    Raises:
        ReferenceModelError: torch is not installed, transformers does not read this form, or a parameter would be
            left at its random initialisation.
    """
    if source.format == "npz":
        raise ReferenceModelError(
            f"{source.location}: PyTorch does not read .npz files; "
            "fix: verify against the PyTorch checkpoint that it was made from (--reference)"
        )
    _require_torch()
    notes = []
    if _opens_itself(source):
        directory: dict[str, Any] = {
            "pretrained_model_name_or_path": str(source.directory),
            "use_safetensors": source.format == "safetensors",
        }
        try:
            return _build(source, directory, notes=("PyTorch reference: from_pretrained(directory)",))
        except ReferenceModelError:
            # A wrapped state dict under a standard name opens as a model without tensors. The second way has the same
            # checks, and what is wrong with the tensors themselves fails there too.
            notes.append("transformers does not open these files itself")
    by_name = {"pretrained_model_name_or_path": None, "state_dict": _state_dict(source)}
    return _build(source, by_name, notes=(*notes, "PyTorch reference: from_pretrained(None, state_dict=…)"))


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise ReferenceModelError(
            f"verifying needs PyTorch and transformers, and {error.name} is not installed; "
            "fix: pip install 'mlxbert[torch]'"
        ) from error


def _opens_itself(source: Source) -> bool:
    """Whether `from_pretrained(directory)` would read exactly the files that the source names."""
    names = [file.name for file in source.weight_files]
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


def _build(source: Source, weights: dict[str, Any], notes: tuple[str, ...], *, pooler: bool = True) -> Reference:
    import torch
    from transformers import BertConfig, BertModel

    try:
        with _quiet_transformers():
            model, info = BertModel.from_pretrained(
                **weights,
                config=BertConfig.from_dict(dict(source.config)),
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                output_loading_info=True,
                add_pooling_layer=pooler,
            )
    except Exception as error:  # whatever transformers raises, verifying could not run; the cause stays attached
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ReferenceModelError(f"{source.location}: transformers cannot build it ({summary})") from error
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if pooler and missing == _POOLER:
        return _build(source, weights, (*notes, "the checkpoint has no pooler; none is compared"), pooler=False)
    if missing:
        raise ReferenceModelError(
            f"{source.location}: transformers finds no tensor for {len(missing)} parameters and would fill them at "
            f"random; fix: verify against the complete checkpoint\n{first_ten(sorted(missing))}"
        )
    model.eval()
    return Reference(model, type(model).__name__, tuple(sorted(unexpected)), notes)


@contextmanager
def _full_float32() -> Iterator[None]:
    """Torch's own full precision, whatever the process has set: "medium" lets CPUs multiply in bfloat16."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
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
