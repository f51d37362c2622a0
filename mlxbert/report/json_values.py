"""JSON of a run, each field checked when it is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

from mlxbert.report.report_error import ReportError


@dataclass(frozen=True)
class JsonValues:
    """A JSON object of a run whose fields are checked when they are asked for; `place` begins every error."""

    values: dict[str, Any]
    place: str
    fix: str

    def text(self, name: str) -> str:
        """A string."""
        value = self.values.get(name)
        if not isinstance(value, str):
            self.refuse(name, "a text")
        return value

    def whole(self, name: str) -> int:
        """A whole number."""
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(name, "a whole number")
        return value

    def number(self, name: str) -> float:
        """A number; NaN for null, which stands for a number that is not finite."""
        if name not in self.values or not is_number(self.values[name]):
            self.refuse(name, "a number")
        return as_float(self.values[name])

    def metrics(self, name: str) -> dict[str, float]:
        """Numbers by name."""
        value = self.values.get(name)
        if not isinstance(value, dict) or not all(map(is_number, value.values())):
            self.refuse(name, "an object of numbers")
        return {key: as_float(number) for key, number in value.items()}

    def texts(self, name: str) -> list[str]:
        """A list of strings."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.refuse(name, "a list of texts")
        return value

    def part(self, name: str) -> JsonValues:
        """An object in the object."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            self.refuse(name, "an object")
        return JsonValues(value, f"{self.place}: {name}", self.fix)

    def parts(self, name: str) -> list[JsonValues]:
        """A list of objects."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            self.refuse(name, "a list of objects")
        return [JsonValues(one, f"{self.place}: {name}[{i}]", self.fix) for i, one in enumerate(value)]

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raise the `ReportError` of a field that is missing or is not what is expected."""
        what = f"{name!r} is missing" if name not in self.values else f"{name!r} is not {expected}"
        raise ReportError(f"{self.place}: {what}; {self.fix}")


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number, or null, which stands for one that is not finite."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def as_float(value: Any) -> float:
    """That number; what no float holds is as good as infinite."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf
