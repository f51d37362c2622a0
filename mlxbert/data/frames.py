"""Columns of a data frame as plain Python values, for a pandas or polars frame or a dict of columns.

Nothing here imports pandas or polars: what both offer (`columns`, `frame[name]`, `to_list`) is enough. A missing value
is None, whatever it is in the frame (NaN, NaT, pd.NA, null).
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np

from mlxbert.errors import MLXBertError, MLXBertWarning

MISSING = ("", "NA", "N/A", "#N/A", "<NA>", "NaN")
"""Words for a missing value in any column of a CSV."""

NO_NUMBERS = frozenset((*MISSING, "nan", "None", "none", "NULL", "null"))
"""Words for a missing value in a column of numbers or truth values."""

NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|Inf|INF|Infinity)"
"""A cell of a CSV that is a number, as a regular expression."""

TRUTH = {"True": True, "true": True, "TRUE": True, "False": False, "false": False, "FALSE": False}
"""The cells of a CSV that are truth values."""


class DataError(MLXBertError):
    """Data that cannot be read or used: a file, a frame, a column, a text template, an id."""


class DataWarning(MLXBertWarning):
    """The data can be used, but only with an assumption that the user should know."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: the column's name in the frame; "target" where it has none.
        values: plain Python values; None for a missing one.
        order: the categories of an ordered categorical, lowest first; else None.
        categorical: whether the frame declares the values as categories.
        times: the datetime index of the rows, where there is one (pandas).
    """

    name: str
    values: tuple[Any, ...]
    order: tuple[Any, ...] | None = None
    categorical: bool = False
    times: tuple[Any, ...] | None = None

    @property
    def present(self) -> tuple[Any, ...]:
        """The values that are not missing."""
        return tuple(value for value in self.values if value is not None)


class Table:
    """A frame's columns by name; each column is read on demand."""

    def __init__(self, frame: Any, what: str = "the frame"):
        """Wrap a pandas or polars frame, or a mapping of names to sequences; messages call it `what`.

        Raises:
            DataError: it is none of these, has no rows or no columns, or columns of different lengths.
        """
        self.frame, self.what = frame, what
        if not is_frame(frame):
            fix = "give a pandas or polars DataFrame, or a dict of columns"
            if _is_lazy(frame):
                fix = "call .collect() on it"
            raise DataError(f"{what} is a {type(frame).__name__}, not a data frame; fix: {fix}")
        self.names = tuple(frame) if isinstance(frame, Mapping) else tuple(frame.columns)
        if not self.names:
            raise DataError(f"{what} has no columns; fix: is the file empty, or was it read with another separator?")
        lengths = {len(frame[name]) for name in self.names} if isinstance(frame, Mapping) else {len(frame)}
        if len(lengths) > 1:
            raise DataError(f"{what} has columns of different lengths: {', '.join(map(str, sorted(lengths)))}")
        (self.rows,) = lengths
        self._counts = Counter(map(str, self.names))
        self._frame_names = {str(name): name for name in self.names}
        if not self.rows:
            raise DataError(f"{what} has no rows; fix: is the file empty, or was everything filtered out?")

    def find(self, name: str | int, role: str = "column") -> Any:
        """Return the frame's own name for `name`: the same (0 for "0", too), or one that differs only by padding or a
        byte order mark.

        Raises:
            DataError: there is no such column (the message has the nearest names), or there are two.
        """
        if self._counts[str(name)] > 1:
            raise DataError(f"{self.what} has {self._counts[str(name)]} columns named {name!r}; fix: rename them")
        if str(name) in self._frame_names:
            return self._frame_names[str(name)]
        matches = [other for other in self.names if isinstance(other, str) and _bare(other) == _bare(str(name))]
        if len(matches) == 1:
            return matches[0]
        raise DataError(f"{self.what} has no {role} {name!r}; {_nearest(str(name), self.names)}")

    def column(self, name: str | int, role: str = "column") -> Column:
        """Return the column of that name; raises as `find` does."""
        frame_name = self.find(name, role)
        bare = _bare(frame_name) if isinstance(frame_name, str) else str(frame_name)
        return read_column(self.frame[frame_name], bare)


def is_frame(data: Any) -> bool:
    """Return whether `data` has named columns: a pandas or polars DataFrame, or a mapping of names to columns."""
    if isinstance(data, Mapping):
        return True
    return (
        not _is_lazy(data) and hasattr(data, "columns") and hasattr(data, "__len__") and hasattr(data, "__getitem__")
    )


def read_column(series: Any, name: str | None = None) -> Column:
    """Return a pandas or polars series, an array or a list as a column.

    Raises:
        DataError: it is not one value a row.
    """
    name = str(name if name is not None else getattr(series, "name", None) or "target")
    if isinstance(series, str | bytes | Mapping) or not isinstance(series, Iterable):
        raise DataError(f"column {name!r} is a {type(series).__name__}; fix: give one value a row")
    if isinstance(series, np.ndarray) and series.ndim > 1:
        raise DataError(f"column {name!r} has shape {series.shape}; fix: give one value a row, or a frame of columns")
    dtype: Any = getattr(series, "dtype", None)
    order = tuple(map(plain, dtype.categories)) if getattr(dtype, "ordered", False) else None  # pandas
    index: Any = getattr(series, "index", None)
    is_dated = str(getattr(index, "dtype", "")).startswith(("datetime64", "period"))
    times = tuple(map(plain, index)) if is_dated else None
    values = series.to_list() if hasattr(series, "to_list") else list(series)
    return Column(name, tuple(map(plain, values)), order, hasattr(dtype, "categories"), times)


def plain(value: Any) -> Any:
    """Return a cell as plain Python: None for a missing one, a tuple for a list, a date in UTC without a time zone."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "to_timestamp"):  # pandas' Period: its first moment
        value = value.to_timestamp()
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, datetime):
        if type(value) is not datetime:  # pandas' Timestamp
            value = value.to_pydatetime(warn=False) if hasattr(value, "to_pydatetime") else value
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, list | tuple | set | frozenset | np.ndarray) or hasattr(value, "to_list"):
        items = value.to_list() if hasattr(value, "to_list") else list(value)
        return tuple(plain(item) for item in (sorted(items, key=str) if isinstance(value, set | frozenset) else items))
    return value


def shown(value: Any, missing: str = "unknown") -> str:
    """Return a cell as a person would write it: 22 for 22.0 (pandas turns whole numbers beside a missing one into
    floats).
    """
    if value is None:
        return missing
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        digits = repr(value)
        # A float32 has more digits as a float64: 7.829199790954590 is 7.8292.
        if len(digits) > 14 and abs(value) < 1e38 and float(np.float32(value)) == value:
            return str(np.float32(value))
        return digits
    if isinstance(value, datetime):
        is_midnight = (value.hour, value.minute, value.second, value.microsecond) == (0, 0, 0, 0)
        return value.date().isoformat() if is_midnight else value.isoformat(sep=" ")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, tuple):
        return ", ".join(shown(item, missing) for item in value)
    return str(value).strip() or missing


def as_text(values: Iterable[Any]) -> list[str | None]:
    """Return ids and texts of a typed file as a person would write them (7 for 7.0); None for a missing one."""
    cells = map(plain, values)
    return [cell if cell is None or isinstance(cell, str) else shown(cell, "") for cell in cells]


def _is_lazy(frame: Any) -> bool:
    """Return whether the frame is a query that has not run yet (polars), and so has no rows."""
    return hasattr(frame, "collect") and hasattr(frame, "collect_schema") and not hasattr(frame, "height")


def _bare(name: str) -> str:
    return name.strip().strip("\ufeff").strip()


def _nearest(name: str, names: Sequence[Any]) -> str:
    """Return the end of a message: the nearest names whatever their case, or the first ten of all."""
    by_folded = {str(other).strip().casefold(): str(other) for other in names}
    near = difflib.get_close_matches(name.strip().casefold(), by_folded, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(repr(by_folded[folded]) for folded in near)}?"
    more = f" … and {len(names) - 10} more" if len(names) > 10 else ""
    return f"its columns: {', '.join(repr(str(other)) for other in names[:10])}{more}"
