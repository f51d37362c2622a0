"""Finds the state dict in what torch.save wrote: bare, wrapped, or in a training framework's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.readers.pickle_objects import Placeholder
from converter.readers.source_error import SourceError
from converter.readers.tensor_entry import TensorEntry
from converter.readers.torch_file import TorchFile
from converter.readers.torch_pickle import TensorRef, UnreadableTensor
from mlxbert.errors import first_ten, printable

# Lightning and most scripts; the PyTorch tutorial; fairseq and many scripts; DeepSpeed
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
MAX_DEPTH = 8
LIGHTNING_KEYS = ("pytorch-lightning_version", "hyper_parameters")


@dataclass(frozen=True)
class StateDict:
    """A checkpoint's own tensors, under the names it gives them."""

    entries: dict[str, TensorEntry]
    notes: tuple[str, ...] = ()
    lightning: bool = False


def find_state_dict(file: TorchFile) -> StateDict:
    """Unwrap to the dictionary of tensors.

    At each level the one wrapper key whose value holds tensors is followed. Values that are no tensors are
    left out with a note. Raises SourceError: a whole pickled model, nothing to be found, several state dicts,
    or a tensor of a kind that is not read.
    """
    top, within, notes = file.top, "", []
    level = _mapping(top)
    lightning = level is not None and any(key in level for key in LIGHTNING_KEYS)
    for _ in range(MAX_DEPTH):
        if level is None:
            raise _no_state_dict(file, top)
        wrapped = [key for key in WRAPPERS if (inner := _mapping(level.get(key))) and _holds_tensors(inner)]
        if not wrapped:
            break
        if len(wrapped) > 1:
            raise SourceError(
                f"{file.path}: has several state dicts ({', '.join(wrapped)}); "
                f"fix: torch.save(torch.load(FILE)[{wrapped[0]!r}], NEW_FILE) with the one you mean"
            )
        stray = [_label(key) for key, value in level.items() if isinstance(value, TensorRef)]
        if stray:
            notes.append(f"tensors beside {wrapped[0]!r} ignored: {_listed(stray)}")
        within = wrapped[0]
        level = _mapping(level[within])
    else:
        raise SourceError(
            f"{file.path}: wraps its state dict more than {MAX_DEPTH} deep; fix: torch.save(model.state_dict(), FILE)"
        )
    assert level is not None
    if not any(isinstance(value, TensorRef | UnreadableTensor) for value in level.values()):
        raise _no_state_dict(file, top)
    return _collect(file, level, notes, lightning)


def _collect(file: TorchFile, level: Mapping[Any, Any], notes: list[str], lightning: bool) -> StateDict:
    unreadable = [f"{_label(k)}: {printable(v.kind)}" for k, v in level.items() if isinstance(v, UnreadableTensor)]
    if unreadable:
        raise SourceError(
            f"{file.path}: {_count(unreadable)} of a kind that is not read (quantized, sparse or a subclass); "
            f"fix: save a plain dense state dict (dequantized)\n{first_ten(unreadable)}"
        )
    entries, other = {}, []
    for key, value in level.items():
        if isinstance(key, str) and isinstance(value, TensorRef):
            entries[key] = file.entry(key, value)
        else:
            other.append(_label(key))
    if other:
        notes.append(f"no tensors, ignored: {_listed(other)}")
    if not entries:
        raise _no_state_dict(file, level)
    return StateDict(entries, tuple(notes), lightning)


def _mapping(value: Any) -> dict[Any, Any] | None:
    """A dictionary, or the items of an unknown dictionary class."""
    if isinstance(value, dict):
        return value
    return value.items if isinstance(value, Placeholder) and value.items else None


def _holds_tensors(value: dict[Any, Any]) -> bool:
    """Whether tensors lie in this dictionary or below its wrapper keys; each dictionary is looked at once."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        level = waiting.pop()
        if id(level) in seen:
            continue
        seen.add(id(level))
        if any(isinstance(item, TensorRef | UnreadableTensor) for item in level.values()):
            return True
        waiting.extend(inner for key in WRAPPERS if (inner := _mapping(level.get(key))) is not None)
    return False


def _label(key: Any) -> str:
    return printable(key) if isinstance(key, str) else f"a key of type {type(key).__name__}"


def _no_state_dict(file: TorchFile, top: Any) -> SourceError:
    save = "fix: torch.save(model.state_dict(), FILE)"
    if isinstance(top, Placeholder):
        return SourceError(
            f"{file.path}: is a whole pickled model ({printable(top.name)}), not a state dict: loading it would run "
            f"code from the file, so nothing was loaded; {save} where the model's class is at hand"
        )
    if isinstance(top, TensorRef | UnreadableTensor):
        return SourceError(f"{file.path}: holds a single tensor, not a state dict; {save}")
    if not isinstance(top, dict):
        return SourceError(f"{file.path}: holds a {type(top).__name__}, not a state dict; {save}")
    if not top:
        return SourceError(f"{file.path}: holds an empty state dict; {save} after the model is built")
    dicts = [key for key, v in top.items() if isinstance(key, str) and isinstance(v, dict) and _holds_tensors(v)]
    if dicts:
        return SourceError(
            f"{file.path}: has no state dict under {', '.join(WRAPPERS)}, but tensors under {_listed(dicts)}; "
            f"fix: torch.save(torch.load(FILE)[{printable(dicts[0])!r}], NEW_FILE)"
        )
    whole = [(k, v) for k, v in top.items() if isinstance(v, Placeholder) and isinstance(v.state, dict)]
    for key, value in whole:
        if "_parameters" in value.state or "_modules" in value.state:
            return SourceError(
                f"{file.path}: has a whole pickled model ({printable(value.name)}) under {_label(key)}, no state "
                f"dict: loading it would run code from the file, so nothing was loaded; {save}"
            )
    return SourceError(f"{file.path}: holds no tensors (it has {_listed([_label(k) for k in top])}); {save}")


def _listed(names: list[str]) -> str:
    more = f" … and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(printable(name) for name in names[:10]) + more


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
