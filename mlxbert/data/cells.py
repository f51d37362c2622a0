"""Cells of a CSV, read as text, become numbers, truth values or stay text: a column at a time, by one rule.

pandas' own rule takes the review "None" for a missing value, the id 007 for 7, and gives a column another type when a
test file happens to hold digits only. Here a column's kind is found once, on the training file, and applied to others.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, Literal

from mlxbert.factory.frames import plain, shown

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
