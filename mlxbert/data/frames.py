"""Columns of a data frame as plain Python values, whoever made the frame: pandas, polars, or a dict of columns.

Nothing here imports pandas or polars: what both offer (`columns`, `frame[name]`, `to_list`) is enough, and a missing
value is None whatever it was before (NaN, NaT, pd.NA, null).

Cells of a CSV, read as text, become numbers, truth values or stay text: a column at a time, by one rule.

pandas' own rule takes the review "None" for a missing value, the id 007 for 7, and gives a column another type when a
test file happens to hold digits only. Here a column's kind is found once, on the training file, and applied to others.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from mlxbert.errors import MLXBertError


class FrameError(MLXBertError):
    """Not a frame, or one without the rows or columns that are asked for."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: as the frame has it; "target" where it has none.
        values: plain Python values, None where one is missing.
        order: the categories of an ordered categorical, lowest first; else None.
        categorical: whether the frame calls the values categories, not numbers.
        times: a datetime index of the rows, where there is one (pandas).
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
    """A frame's columns by name; a column is read when it is asked for."""

    def __init__(self, frame: Any, what: str = "the frame"):
        """Look at a pandas or polars frame, or at a mapping of names to sequences.

        Raises:
            FrameError: it is none of these, has no rows or no columns, or columns of different lengths.
        """
        self.frame, self.what = frame, what
        if not is_frame(frame):
            fix = (
                "call .collect() on it"
                if _is_lazy(frame)
                else "give a pandas or polars DataFrame, or a dict of columns"
            )
            raise FrameError(f"{what} is a {type(frame).__name__}, not a data frame; fix: {fix}")
        self.names = tuple(frame) if isinstance(frame, Mapping) else tuple(frame.columns)
        if not self.names:
            raise FrameError(f"{what} has no columns; fix: is the file empty, or was it read with another separator?")
        lengths = {len(frame[name]) for name in self.names} if isinstance(frame, Mapping) else {len(frame)}
        if len(lengths) > 1:
            raise FrameError(f"{what} has columns of different lengths: {', '.join(map(str, sorted(lengths)))}")
        (self.rows,) = lengths
        self._counts = Counter(map(str, self.names))
        self._own = {str(name): name for name in self.names}
        if not self.rows:
            raise FrameError(f"{what} has no rows; fix: is the file empty, or was everything filtered out?")

    def find(self, name: str | int, role: str = "column") -> Any:
        """The frame's own name for `name`: that (0 for "0", too), or the one that differs by padding or a byte order
        mark alone.

        Raises:
            FrameError: there is none (the nearest names are given), or it is there twice.
        """
        if self._counts[str(name)] > 1:
            raise FrameError(f"{self.what} has {self._counts[str(name)]} columns named {name!r}; fix: rename them")
        if str(name) in self._own:
            return self._own[str(name)]
        same = [own for own in self.names if isinstance(own, str) and _bare(own) == _bare(str(name))]
        if len(same) == 1:
            return same[0]
        raise FrameError(f"{self.what} has no {role} {name!r}; {_nearest(str(name), self.names)}")

    def column(self, name: str | int, role: str = "column") -> Column:
        """The column of that name; raises as `find` does."""
        own = self.find(name, role)
        return read_column(self.frame[own], _bare(own) if isinstance(own, str) else str(own))


def is_frame(data: Any) -> bool:
    """Whether `data` has named columns: a pandas or polars DataFrame, or a mapping of names to columns."""
    if isinstance(data, Mapping):
        return True
    return (
        not _is_lazy(data) and hasattr(data, "columns") and hasattr(data, "__len__") and hasattr(data, "__getitem__")
    )


def read_column(series: Any, name: str | None = None) -> Column:
    """A column from a pandas or polars series, an array or a list.

    Raises:
        FrameError: it is not one value a row.
    """
    name = str(name if name is not None else getattr(series, "name", None) or "target")
    if isinstance(series, str | bytes | Mapping) or not isinstance(series, Iterable):
        raise FrameError(f"column {name!r} is a {type(series).__name__}; fix: give one value a row")
    if isinstance(series, np.ndarray) and series.ndim > 1:
        raise FrameError(f"column {name!r} has shape {series.shape}; fix: give one value a row, or a frame of columns")
    dtype: Any = getattr(series, "dtype", None)
    order = tuple(map(plain, dtype.categories)) if getattr(dtype, "ordered", False) else None  # pandas
    index = getattr(series, "index", None)
    dated = str(getattr(index, "dtype", "")).startswith(("datetime64", "period"))
    times = tuple(plain(one) for one in index) if dated else None  # type: ignore[union-attr]
    values = series.to_list() if hasattr(series, "to_list") else list(series)
    return Column(name, tuple(plain(value) for value in values), order, hasattr(dtype, "categories"), times)


def plain(value: Any) -> Any:
    """A cell as plain Python: None for what is missing, a tuple for a list, a date in UTC without time zone."""
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
    """A cell as a reader would write it: 22 for 22.0 (pandas makes floats of whole numbers beside a missing one)."""
    if value is None:
        return missing
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        digits = repr(value)
        # What came as float32 drags a tail: 7.829199790954590 is 7.8292.
        if len(digits) > 14 and abs(value) < 1e38 and float(np.float32(value)) == value:
            return str(np.float32(value))
        return digits
    if isinstance(value, datetime):
        midnight = (value.hour, value.minute, value.second, value.microsecond) == (0, 0, 0, 0)
        return value.date().isoformat() if midnight else value.isoformat(sep=" ")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, tuple):
        return ", ".join(shown(item, missing) for item in value)
    return str(value).strip() or missing


def _is_lazy(frame: Any) -> bool:
    """Whether it is a query still to be run (polars): it has no rows yet."""
    return hasattr(frame, "collect") and hasattr(frame, "collect_schema") and not hasattr(frame, "height")


def _bare(name: str) -> str:
    return name.strip().strip("\ufeff").strip()


def _nearest(name: str, names: Sequence[Any]) -> str:
    """What to write instead: the nearest names whatever their case, or the first ten there are."""
    by_folded = {str(one).strip().casefold(): str(one) for one in names}
    near = difflib.get_close_matches(name.strip().casefold(), by_folded, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(repr(by_folded[one]) for one in near)}?"
    more = f" … and {len(names) - 10} more" if len(names) > 10 else ""
    return f"its columns: {', '.join(repr(str(one)) for one in names[:10])}{more}"


Kind = Literal["text", "number", "boolean", "native"]
"""Of a column; "native": the file itself has types (Parquet, JSONL), and they are left alone."""

MISSING = ("", "NA", "N/A", "#N/A", "<NA>", "NaN")
"""What stands for a missing value in any column of a CSV."""

NO_NUMBERS = frozenset((*MISSING, "nan", "None", "none", "NULL", "null"))
"""What stands for a missing value in a column that otherwise holds numbers or truth values."""

_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|Inf|INF|Infinity)"
# 007 is a code, and a whole number of 16 digits and more an id that a float would round.
_CODE = r"[+-]?0[0-9].*|[+-]?[0-9]{16,}"
_TRUTH = {"True": True, "true": True, "TRUE": True, "False": False, "false": False, "FALSE": False}


def infer_kind(cells: Any) -> Kind:
    """What a column of text cells (a pandas series) holds; "text" where nothing is present."""
    # Plain Python: pandas takes milliseconds for a column, a minute for 10,000 columns of a few rows.
    present = {cell.strip() for cell in {*cells.to_list()}} - NO_NUMBERS
    if not present:
        return "text"
    if present <= _TRUTH.keys():
        return "boolean"
    numbers = all(re.fullmatch(_NUMBER, cell) and not re.fullmatch(_CODE, cell) for cell in present)
    return "number" if numbers else "text"


def convert(cells: Any, kind: Kind, labels: Collection[str] = ()) -> Any:
    """The column with its values: missing ones as pandas has them; what does not fit the kind stays text.

    A test file may have a word where the training file had numbers only: that is its value, not an error. `labels` are
    words of a text column that are values though they look missing: NA may be Namibia.
    """
    import pandas

    if kind == "text":
        words = {word for word in MISSING if word not in labels}
        return cells if words.isdisjoint(cells.to_list()) else cells.mask(cells.isin(words))
    if kind == "number":
        stripped = [cell.strip() for cell in cells.to_list()]
        if all(re.fullmatch(_NUMBER, cell) for cell in stripped):
            return pandas.to_numeric(pandas.Series(stripped, index=cells.index, name=cells.name, dtype=object))
    bare = cells.str.strip()
    missing = bare.isin(NO_NUMBERS)
    if kind == "boolean":
        fits = bare.isin(_TRUTH)
        made = bare.map(_TRUTH).astype(object)
        typed = fits.all()
        values = made.astype(bool) if typed else made
    else:
        fits = bare.str.fullmatch(_NUMBER)
        values = pandas.to_numeric(bare.where(fits), errors="coerce")
    strange = ~fits & ~missing
    if not strange.any():
        return values if kind == "number" or fits.all() else values.where(fits, None)
    return values.astype(object).where(~strange, cells.astype(object)).where(~missing, None)


def as_text(values: Iterable[Any]) -> list[str | None]:
    """Ids and texts of a typed file as a person would write them (7 for 7.0); None for a missing one."""
    plains = [plain(value) for value in values]
    return [value if value is None or isinstance(value, str) else shown(value, "") for value in plains]
