"""`Labels`: what a configuration says of a classifier's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxbert.config import ConfigError
from mlxbert.errors import shown

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
