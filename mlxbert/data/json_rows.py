"""Rows of JSON: one object a line, or a document: an array of objects, or what `DataFrame.to_json` writes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlxbert.data.data_file import DataError, DataFile, DataWarning

# A document is in memory some ten times over while it is read; one object a line is not.
_MOST_BYTES = 128 << 20
# Cells nested deeper than this are no data, and would exhaust the stack when they are written out.
_DEEPEST = 32
_LAYOUTS = "one object a line, an array of objects, or pandas' to_json(orient='columns', 'index', 'split' or 'table')"

Record = dict[str, Any]


def line_records(file: DataFile, lines: Iterable[str]) -> Iterator[Record]:
    """Yield the object of each line that is not blank.

    Raises:
        DataError: a line is no object; it is named.

    Warns:
        DataWarning: halves of surrogate pairs, which no text can hold, are read as U+FFFD.
    """
    said = False
    for number, line in enumerate(lines, 1):
        if not line.strip("\ufeff \t\r\n"):
            continue
        try:
            record = _parse(line.lstrip("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file.path}: line {number} is not JSON ({error}); fix: one object a line") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{file.path}: line {number} is a {type(record).__name__}, not an object; fix: one object a line"
            )
        record, halves = _checked(file, record, f"line {number}", "\\u" in line)
        if halves and not said:
            said = True
            _warn_of_halves(file, f"line {number}")
        yield record


def document_records(file: DataFile) -> list[Record]:
    """Return the rows of a document.

    Raises:
        DataError: it is larger than 128 MB, not JSON, or no table (the layouts that are read are named).

    Warns:
        DataWarning: as `line_records`; or it can be read by columns and by rows, and is read by columns.
    """
    with file.open_text() as stream:
        text = stream.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise DataError(f"{file.path}: a JSON document of more than {_MOST_BYTES >> 20} MB; fix: one object a line")
    try:
        value = _parse(text.lstrip("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.path} is not JSON ({error}); fix: {_LAYOUTS}") from None
    escapes = "\\u" in text
    del text
    made, halves = [], False
    for number, record in enumerate(_rows(file, value)):
        record, half = _checked(file, record, f"row {number}", escapes)
        if half and not halves:
            _warn_of_halves(file, f"row {number}")
        halves = halves or half
        made.append(record)
    return made


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> Record:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return made


def _rows(file: DataFile, value: Any) -> list[Record]:
    """The records of a document, whichever layout it has."""
    path = file.path
    if isinstance(value, list):
        if value and all(isinstance(one, list) for one in value):
            raise DataError(f"{path} has rows without column names (orient='values'); fix: {_LAYOUTS}")
        wrong = next((i for i, one in enumerate(value) if not isinstance(one, dict)), None)
        if wrong is not None:
            raise DataError(
                f"{path}: element {wrong} is a {type(value[wrong]).__name__}, not an object; fix: {_LAYOUTS}"
            )
        return value
    if not isinstance(value, dict):
        raise DataError(f"{path} is a JSON {type(value).__name__}, not a table; fix: {_LAYOUTS}")
    data, columns = value.get("data"), value.get("columns")
    if isinstance(data, list) and isinstance(columns, list) and set(value) <= {"columns", "index", "data"}:
        return _split_rows(file, columns, data)
    if isinstance(data, list) and isinstance(value.get("schema"), dict):
        rows = _rows(file, data)
        numbered = value["schema"].get("primaryKey") == ["index"]
        return [{name: cell for name, cell in row.items() if not (numbered and name == "index")} for row in rows]
    if len(value) == 1 and isinstance(only := next(iter(value.values())), list) and only and isinstance(only[0], dict):
        return _rows(file, only)
    if value and all(isinstance(one, list) for one in value.values()):
        lengths = {len(one) for one in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        raise DataError(
            f"{path} has columns of different lengths: {', '.join(map(str, sorted(lengths)))}; fix: mend it"
        )
    if value and all(isinstance(one, dict) for one in value.values()):
        return _labelled_rows(file, value)
    raise DataError(f"{path} is a JSON object that is no table; fix: {_LAYOUTS}")


def _split_rows(file: DataFile, columns: Sequence[Any], data: Sequence[Any]) -> list[Record]:
    names = [str(name) for name in columns]
    if len(set(names)) < len(names):
        raise DataError(f"{file.path} has a column name twice; fix: rename it")
    for number, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(names):
            raise DataError(
                f"{file.path}: row {number} has not one cell for each of the {len(names)} columns; fix: mend it"
            )
    return [dict(zip(names, row, strict=True)) for row in data]


def _labelled_rows(file: DataFile, value: Mapping[str, Record]) -> list[Record]:
    """Of an object of objects: by columns, as pandas writes it, unless its own keys are row numbers alone, or cells of
    one type stand only then in one column.
    """
    labels = dict.fromkeys(label for column in value.values() for label in column)
    numbered = [all(name.lstrip("-").isdecimal() for name in names) for names in (value, labels)]
    if numbered == [True, False]:
        return list(value.values())
    if numbered == [False, False]:
        mixed = [sum(map(_is_mixed, columns)) for columns in (value.values(), _turned(value, labels).values())]
        if mixed[1] < mixed[0]:
            return list(value.values())
        warnings.warn(
            f"{file.path}: an object of objects is read by columns ({', '.join(map(repr, list(value)[:3]))}, …), as "
            "pandas' to_json writes it; for rows write to_json(orient='records')",
            DataWarning,
            stacklevel=5,
        )
    return list(_turned(value, labels).values())


def _turned(value: Mapping[str, Record], labels: Iterable[str]) -> dict[str, Record]:
    return {label: {name: column.get(label) for name, column in value.items()} for label in labels}


def _is_mixed(column: Record) -> bool:
    """Whether cells are text as well as something else."""
    return len({isinstance(cell, str) for cell in column.values() if cell is not None}) > 1


def _checked(file: DataFile, record: Record, where: str, escapes: bool) -> tuple[Record, bool]:
    """The record with bare names and whole characters, and whether it had halves of some."""
    for name, value in record.items():
        if isinstance(value, list | dict) and not _is_flat(value, _DEEPEST):
            raise DataError(f"{file.path}: {where} has {name!r:.60} nested deeper than {_DEEPEST}; fix: flatten it")
    made = {name.strip(): value for name, value in record.items()}
    if len(made) < len(record):
        raise DataError(f"{file.path}: {where} has names that differ by white space alone; fix: rename them")
    if not escapes:
        return made, False
    whole = _whole(made)
    return whole, whole != made


def _is_flat(value: Any, left: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left > 0 and all(_is_flat(one, left - 1) for one in inner if isinstance(one, list | dict))


def _whole(value: Any) -> Any:
    """The value with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_whole(name): _whole(one) for name, one in value.items()}
    return [_whole(one) for one in value] if isinstance(value, list) else value


def _warn_of_halves(file: DataFile, where: str) -> None:
    warnings.warn(
        f"{file.path}: {where} has half of a surrogate pair, which is no character; it is read as U+FFFD",
        DataWarning,
        stacklevel=5,
    )
