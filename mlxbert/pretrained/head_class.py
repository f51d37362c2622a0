"""Which `BertFor*` class a checkpoint's own head belongs to: what its config says, or what its tensors tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mlxbert.errors import MLXBertError

PREDICTIONS, NEXT_SENTENCE = "cls.predictions.", "cls.seq_relationship."
CLASSIFIER, SPAN = "classifier.", "qa_outputs."
PREFIXES = (PREDICTIONS, NEXT_SENTENCE, CLASSIFIER, SPAN)

HEAD_CLASSES: dict[str, tuple[str, ...]] = {
    "BertForPreTraining": (PREDICTIONS, NEXT_SENTENCE),
    "BertForMaskedLM": (PREDICTIONS,),
    "BertLMHeadModel": (PREDICTIONS,),
    "BertForNextSentencePrediction": (NEXT_SENTENCE,),
    "BertForSequenceClassification": (CLASSIFIER,),
    "BertForTokenClassification": (CLASSIFIER,),
    "BertForMultipleChoice": (CLASSIFIER,),
    "BertForQuestionAnswering": (SPAN,),
}
"""transformers' classes, and what the names of their heads' tensors begin with."""


class HeadClassError(MLXBertError):
    """The head's tensors do not fit the class that the config names, or do not tell which class it is."""


@dataclass(frozen=True)
class HeadChoice:
    """The class of a checkpoint's head.

    Attributes:
        name: the transformers class.
        note: one line where that was not plain from the config, or where tensors are left over; None otherwise.
    """

    name: str
    note: str | None = None


def is_head_tensor(name: str) -> bool:
    """Whether a tensor of this name belongs to a head of a `BertFor*` class."""
    return name.startswith(PREFIXES)


def original_architectures(config: dict[str, Any]) -> tuple[str, ...]:
    """The classes that a config names: a converted one in its "mlxbert" block, any other in `architectures`."""
    block = config.get("mlxbert")
    names = block.get("original_architectures") if isinstance(block, dict) else config.get("architectures")
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def choose_head_class(
    architectures: Iterable[str], tensors: Iterable[str], *, has_pooler: bool, place: str
) -> HeadChoice:
    """The class named, if its tensors are there; where none of ours is named, the class that the tensors tell.

    Args:
        architectures: what the config names.
        tensors: names of the head's tensors.
        has_pooler: whether the encoder has a pooler, which tells sequences' classifiers from tokens'.
        place: for messages: where the tensors are.

    Raises:
        HeadClassError: they do not fit each other; one line.
    """
    tensors = list(tensors)
    groups = tuple(prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in tensors))
    named = [name for name in architectures if name in HEAD_CLASSES]
    found = ", ".join(f"{prefix}*" for prefix in groups) or "no head"
    if len(set(named)) == 1:
        wanted = HEAD_CLASSES[named[0]]
        if not set(wanted) <= set(groups):
            needs = " and ".join(f"{prefix}*" for prefix in wanted)
            raise HeadClassError(
                f"{place}: its config names {named[0]}, which needs {needs}, and there is {found}; "
                "fix: convert the complete checkpoint"
            )
        rest = [f"{prefix}*" for prefix in groups if prefix not in wanted]
        return HeadChoice(named[0], f"{place}: {named[0]} has no use for {', '.join(rest)}" if rest else None)
    says = f"its config names {' and '.join(architectures) or 'no class'}"
    name = _told_by(groups, has_pooler)
    if name is None:
        raise HeadClassError(
            f"{place}: {says}, and its tensors ({found}) do not tell the head's class; "
            'fix: give the source\'s config.json its "architectures" and convert again'
        )
    doubt = ""
    if CLASSIFIER in groups:
        others = [other for other, wanted in HEAD_CLASSES.items() if wanted == (CLASSIFIER,) and other != name]
        doubt = f"; if it is {' or '.join(others)}, say so in the source's config.json and convert again"
    return HeadChoice(name, f"{place}: {says}; from its tensors ({found}) it is taken for {name}{doubt}")


def _told_by(groups: tuple[str, ...], has_pooler: bool) -> str | None:
    # A fine-tuned head beside `cls.*` is what the checkpoint was made for; `cls.*` was left behind by pre-training.
    if CLASSIFIER in groups and SPAN in groups:
        return None
    if CLASSIFIER in groups:
        return "BertForSequenceClassification" if has_pooler else "BertForTokenClassification"
    if SPAN in groups:
        return "BertForQuestionAnswering"
    return next((name for name, wanted in HEAD_CLASSES.items() if wanted == groups), None)
