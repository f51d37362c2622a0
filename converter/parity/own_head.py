"""The checkpoint's own head in a comparison: which class it is compared as, and its logits as vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlxbert.pretrained.head_class import (
    HEAD_CLASSES,
    HeadChoice,
    choose_head_class,
    is_head_tensor,
    original_architectures,
)

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
    tensors = [name for name in source.entries if is_head_tensor(name)]
    if not tensors:
        return None
    choice = choose_head_class(
        original_architectures(source.config), tensors, has_pooler=has_pooler(source), place=source.name
    )
    one, both = HEAD_CLASSES[choice.name], HEAD_CLASSES[PRETRAINING]
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
