"""Which class of transformers a checkpoint's own head belongs to: what its config says, or what its tensors tell.

`Labels`: what a configuration says of a classifier's outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxbert.errors import MLXBertError, shown
from mlxbert.models.architecture import Architecture, architecture
from mlxbert.models.config_fields import ConfigError


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


def original_architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a config names: a converted one in its "mlxbert" block, any other in `architectures`."""
    block = config.get("mlxbert")
    names = block.get("original_architectures") if isinstance(block, dict) else config.get("architectures")
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def choose_head_class(
    config: Mapping[str, Any], tensors: Iterable[str], *, has_pooler: bool, place: str
) -> HeadChoice:
    """Return the class that a configuration names, if its tensors are there; else the class that the tensors tell.

    Args:
        config: a parsed `config.json`.
        tensors: names of the head's tensors.
        has_pooler: whether the encoder has a pooler, which tells heads that read it from heads that do not.
        place: for messages: where the tensors are.

    Raises:
        ConfigError: the architecture is not known here.
        HeadClassError: config and tensors do not fit each other; one line.
    """
    declared = architecture(config.get("model_type"))
    names = list(tensors)
    groups = tuple(prefix for prefix in declared.head_prefixes if any(name.startswith(prefix) for name in names))
    classes = original_architectures(config)
    named = {name for name in classes if name in declared.heads}
    found = ", ".join(map(_shown, groups)) or "no head"
    if len(named) == 1:
        (class_name,) = named
        wanted = declared.heads[class_name].prefixes
        if not set(wanted) <= set(groups):
            needed = " and ".join(map(_shown, wanted))
            raise HeadClassError(
                f"{place}: its config names {class_name}, which needs {needed}, and there is {found}; "
                "fix: convert the complete checkpoint"
            )
        rest = [_shown(prefix) for prefix in groups if prefix not in wanted]
        return HeadChoice(class_name, f"{place}: {class_name} has no use for {', '.join(rest)}" if rest else None)
    says = f"its config names {' and '.join(classes) or 'no class'}"
    fitting = _fitting(declared, groups)
    # Without a pooler a fine-tuned head is one that reads none; of pre-training's it is what was left out.
    pooled = {name for name in fitting if declared.heads[name].fine_tuned and declared.heads[name].has_pooler}
    name = next((name for name in fitting if has_pooler or name not in pooled), None)
    if name is None:
        raise HeadClassError(
            f"{place}: {says}, and its tensors ({found}) do not tell the head's class; "
            'fix: give the source\'s config.json its "architectures" and convert again'
        )
    doubt, others = "", [other for other in fitting if other != name]
    if others and declared.heads[name].fine_tuned:
        doubt = f"; if it is {' or '.join(others)}, say so in the source's config.json and convert again"
    return HeadChoice(name, f"{place}: {says}; from its tensors ({found}) it is taken for {name}{doubt}")


def _fitting(declared: Architecture, groups: tuple[str, ...]) -> list[str]:
    """Return the classes whose head these groups of tensors can be; none where the groups are of several heads.

    A fine-tuned head beside a language model's is what the checkpoint was made for: pre-training left the other one.
    """
    tuned = {prefix for head in declared.heads.values() if head.fine_tuned for prefix in head.prefixes} & set(groups)
    wanted = tuned or set(groups)
    return [name for name, head in declared.heads.items() if set(head.prefixes) == wanted]


def _shown(prefix: str) -> str:
    """Return the names that begin with a prefix, for a message."""
    return f"{prefix}*" if prefix.endswith(".") else prefix


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
