"""Which `BertFor*` class a checkpoint's own head belongs to: what its config says, or what its tensors tell.

`Labels`: what a configuration says of a classifier's outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxbert.config import ConfigError
from mlxbert.errors import MLXBertError, shown

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


PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True)
class Labels:
    """Names and kind of a classifier's outputs.

    Attributes:
        id2label: name of each output.
        problem_type: one of `PROBLEM_TYPES`, or None where the configuration does not say.
    """

    id2label: dict[int, str]
    problem_type: str | None = None

    @property
    def num_labels(self) -> int:
        """How many outputs there are."""
        return len(self.id2label)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Labels:
        """Read a parsed `config.json`; as in transformers, without `id2label` there are `num_labels` or two outputs.

        Raises:
            ConfigError: a field has a value that means nothing.
        """
        problem_type = config.get("problem_type")
        if problem_type is not None and problem_type not in PROBLEM_TYPES:
            raise ConfigError(
                f"config.json: problem_type {shown(problem_type)} is not known; known are {', '.join(PROBLEM_TYPES)}"
            )
        names = config.get("id2label")
        if names is None:
            count = config.get("num_labels", 2)
            if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < 2**20:
                raise ConfigError(f"config.json: num_labels must be a positive whole number, not {shown(count)}")
            return cls({index: f"LABEL_{index}" for index in range(count)}, problem_type)
        try:
            id2label = {int(index): str(name) for index, name in names.items()}
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(f"config.json: id2label must map whole numbers to names, not {shown(names)}") from None
        if not id2label or set(id2label) != set(range(len(names))):
            raise ConfigError(f"config.json: id2label has the keys {sorted(id2label)[:10]}; expected 0, 1, 2, …")
        return cls(dict(sorted(id2label.items())), problem_type)
