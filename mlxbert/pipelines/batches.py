"""What the pipelines share: the check of the model's class, padded batches, windows over a long text."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxbert.errors import MLXBertError
from mlxbert.pretrained.model import PretrainedBert
from mlxbert.tokenization import Tokenizer
from mlxbert.tokenization.encoding import Encoding, padded
from mlxbert.tokenization.truncation import warn_of_truncation


class PipelineError(MLXBertError):
    """A pipeline was given a model of another class, or a text that it cannot work on."""


def require_class(model: PretrainedBert, pipeline: str, classes: Sequence[str]) -> None:
    """Raises PipelineError where the model's class is none of `classes`."""
    if model.architecture not in classes:
        raise PipelineError(
            f"{pipeline} needs {' or '.join(classes)}, and this model is {model.architecture}; "
            "fix: load a checkpoint that was trained for it"
        )


def padded_batches(
    rows: Sequence[Encoding], pad_id: int | None, batch_size: int
) -> Iterator[tuple[Sequence[Encoding], dict[str, Any]]]:
    """Rows in batches, each with the arrays that the model is called with."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise PipelineError(f"batch_size must be a positive whole number, not {batch_size!r}")
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        length = max(map(len, part))
        yield part, padded([r.ids for r in part], [r.type_ids for r in part], length=length, pad_id=pad_id or 0)


def warn_of_cut(rows: Sequence[Encoding], tokenizer: Tokenizer, *, stacklevel: int) -> None:
    """Warn once if texts were cut to the model's longest input; `stacklevel` 1 is the caller of this function."""
    cut = [row for row in rows if row.n_truncated]
    if cut:
        longest = max(len(row) + row.n_truncated for row in cut)
        more = any(row.uncounted for row in cut)
        limit = tokenizer.max_length
        warn_of_truncation(len(cut), len(rows), longest, limit, stacklevel=stacklevel + 1, at_least=more)


def without_limit(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, which cuts nothing: for texts that are then read in windows."""
    unlimited = copy.copy(tokenizer)
    unlimited.max_length = unlimited.model_limit = None
    return unlimited


def windows(tokens: int, room: int, stride: int, *, name: str = "stride") -> list[tuple[int, int]]:
    """Ranges of at most `room` tokens that cover `tokens` of them, each overlapping the one before by `stride`.

    As tokenizers cuts a text (`truncate_encoding`, direction right). No tokens: one empty range.

    Raises:
        PipelineError: the overlap leaves no room to go on.
    """
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 0:
        raise PipelineError(f"{name} must be a whole number from 0, not {stride!r}")
    if tokens <= room:
        return [(0, tokens)]
    if stride >= room:
        raise PipelineError(f"{name}={stride} leaves nothing of the {room} tokens that a window holds; fix: lower it")
    ranges = []
    for start in range(0, tokens, room - stride):
        ranges.append((start, min(start + room, tokens)))
        if start + room >= tokens:
            break
    return ranges


def cut_out(row: Encoding, body: Sequence[int], start: int, stop: int) -> Encoding:
    """A row with only the tokens `body[start:stop]` of those at the indices `body`; the others all stay."""
    dropped = set(body[:start]) | set(body[stop:])
    keep = [index for index in range(len(row)) if index not in dropped]
    return Encoding(
        ids=tuple(row.ids[i] for i in keep),
        type_ids=tuple(row.type_ids[i] for i in keep),
        offsets=tuple(row.offsets[i] for i in keep),
        special_tokens_mask=tuple(row.special_tokens_mask[i] for i in keep),
        n_truncated=len(dropped),
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, without overflow."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def to_numpy(array: mx.array | None) -> np.ndarray:
    """Float32 on the host."""
    assert array is not None  # the class was checked
    return np.array(array.astype(mx.float32))


def check_top_k(top_k: int) -> int:
    """`top_k` itself; raises PipelineError where it is no positive whole number."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise PipelineError(f"top_k must be a positive whole number, not {top_k!r}")
    return top_k
