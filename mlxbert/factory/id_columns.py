"""Columns that name a row: found by what they are called and by their values, kept out of texts, written back.

An id says nothing about a row, and a language model that reads it learns noise. A submission without its ids is
worthless. So a column that is called an id, and has another value in every row, is recognized without being named.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from mlxbert.factory.frames import Table

# id, ID, uuid, index, …; what pandas calls an index that was written without a name.
_WHOLE = re.compile(r"(ids?|idx|uuid|guid|index|identifier|row(number)?|unnamed: 0)", re.IGNORECASE)
# user_id, id_code, sample-uuid, row.index
_PARTS = re.compile(r"(.*[ _.-](id|idx|uuid|guid|index)|(id|uuid|guid)[ _.-].*)", re.IGNORECASE)
# PassengerId, textID, rowIndex, pageUUID
_CAMEL = re.compile(r".*[a-z0-9](Id|ID|Idx|Index|UUID|Uuid|GUID|Guid)")
# Written in one case: qid and textid are ids, while paid, valid and grid are words.
_SHORT = re.compile(
    r"([cdegnopqrstu]|pm|txt|text|tweet|post|comment|msg|message|mail|user|item|product|review|article|row|line|sentence|"
    r"passenger|customer|client|order|case|record|question|answer|query|doc|document|image|img|sample|example|test|"
    r"train|object|entry|event|session|page|paragraph|essay|story|news|video|song|movie|book|job|patient|account)id",
    re.IGNORECASE,
)
# An id is a word or a number: what is longer is a text.
_LONGEST = 80


def is_called_id(name: Any) -> bool:
    """Return whether a column's name says that it names a row: id, PassengerId, user_id, qid, uuid, index, …."""
    text = str(name).strip()
    return any(rule.fullmatch(text) for rule in (_WHOLE, _PARTS, _CAMEL, _SHORT))


def id_columns(table: Table, taken: Collection[str] = ()) -> tuple[str, ...]:
    """Return the columns that are called an id and have another value in every row, the likeliest first.

    Args:
        table: of all rows.
        taken: columns that are something else: targets, times, groups.
    """
    found = [
        name
        for name in table.names
        if isinstance(name, str) and name not in taken and is_called_id(name) and table.names.count(name) == 1
    ]
    unique = [name for name in found if names_rows(table.column(name).values)]
    return tuple(sorted(unique, key=_likelihood))


def names_rows(values: Iterable[Any]) -> bool:
    """Return whether values could name rows: short words or whole numbers, none missing, none twice."""
    listed = list(values)
    kinds = all(
        (isinstance(value, str) and 0 < len(value) <= _LONGEST)
        or (isinstance(value, int) and not isinstance(value, bool))
        or (isinstance(value, float) and value.is_integer())
        for value in listed
    )
    return kinds and len(set(listed)) == len(listed)


def _likelihood(name: str) -> int:
    """Sort "id" before "PassengerId" before "index"; sorting keeps the table's order among equals."""
    folded = name.strip().casefold()
    return 0 if folded == "id" else 2 if folded in ("index", "idx", "row", "unnamed: 0") else 1
