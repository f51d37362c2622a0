"""What a user gives as targets: lists, arrays, and class labels, which become indices and back."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from heads.errors import HeadError, MLXBertWarning

Label = str | int | float | bool


class LabelWarning(MLXBertWarning):
    """Two labels look the same."""


# Zero-width spaces, soft hyphens and marks of the writing direction. Joiners stay: emoji and Persian words need them.
_INVISIBLE = frozenset(
    "\u00ad\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)


def label_text(text: str) -> str:
    """Return a label for comparisons: trimmed, single spaces, accents composed (NFC), no invisible marks."""
    if text.isascii():
        return " ".join(text.split())
    bare = "".join(character for character in text if character not in _INVISIBLE)
    return " ".join(unicodedata.normalize("NFC", bare).split())


def listed(values: Any, what: str) -> tuple[Any, ...]:
    """Return `values` as a tuple.

    Raises:
        HeadError: a string, a mapping, or not iterable.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise HeadError(f"{what}: {values!r} is no list; fix: give a list or a tuple")
    return tuple(values)


def as_array(values: Any, dtype: Any, what: str) -> np.ndarray[Any, Any]:
    """Return `values` as a numpy array; with `dtype` None numpy chooses the type.

    Raises:
        HeadError: rows of different lengths, or text where numbers are expected.
    """
    try:
        return np.asarray(values, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise HeadError(f"{what}: the values cannot be read ({error}); fix: give one kind of value a row") from None


def infer_classes(targets: Any, what: str) -> tuple[Label, ...]:
    """Return the distinct labels of `targets` (N,), sorted.

    Raises:
        HeadError: a missing label, fewer than two classes, labels that cannot be sorted, or not one column.

    Warns:
        LabelWarning: two labels differ only by white space or their Unicode form.
    """
    labels = _labels(targets, what)
    try:
        classes = tuple(sorted(set(labels)))
    except TypeError:
        kinds = sorted({type(label).__name__ for label in labels})
        raise HeadError(f"{what}: the labels mix {' and '.join(kinds)}; fix: make them one type") from None
    bare: dict[str, str] = {}
    for label in classes:
        if isinstance(label, str) and (other := bare.setdefault(label_text(label), label)) != label:
            warnings.warn(
                f"{what}: the labels {other!r} and {label!r} differ by white space or Unicode form alone and are two "
                "classes; fix: strip them if they are one",
                LabelWarning,
                stacklevel=3,
            )
            break
    if len(classes) < 2:
        raise HeadError(f"{what}: the targets have {len(classes)} class; a classifier needs at least two")
    return classes


def check_classes(classes: Sequence[Label], what: str, *, least: int = 2) -> tuple[Label, ...]:
    """Return `classes` as a tuple of plain Python values.

    Raises:
        HeadError: fewer than `least` classes, a class twice, or a class that is not a string or a number.
    """
    plain = tuple(_plain(label) for label in label_list(classes, what))
    wrong = [label for label in plain if not isinstance(label, str | int | float) or label != label]
    if wrong:
        raise HeadError(f"{what}: class {wrong[0]!r} is neither a string nor a number")
    if len(plain) < least:
        raise HeadError(f"{what}: {len(plain)} class(es) given; at least {least} are needed")
    if len(set(plain)) < len(plain):
        repeated = next(label for label in plain if plain.count(label) > 1)
        raise HeadError(f"{what}: class {repeated!r} is given twice")
    return plain


def label_list(classes: Any, what: str) -> tuple[Any, ...]:
    """Return `classes` as a tuple; a string is a sequence of one-letter labels.

    Raises:
        HeadError: not a sequence.
    """
    return tuple(classes) if isinstance(classes, str) else listed(classes, f"{what}: classes")


def encode_labels(targets: Any, classes: Sequence[Label], what: str) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return the index of every label in `classes`: (N,) int32.

    Raises:
        HeadError: a label is missing or not one of the classes (its row is named).
    """
    index = {label: i for i, label in enumerate(classes)}
    labels = _labels(targets, what)
    for row, label in enumerate(labels):
        if label not in index:
            known = ", ".join(map(repr, classes[:10])) + (", …" if len(classes) > 10 else "")
            alike = label_text(label) if isinstance(label, str) else None
            if alike in index:
                raise HeadError(
                    f"{what}: row {row} has label {label!r}, which is not {alike!r}; fix: take the spaces out"
                )
            raise HeadError(
                f"{what}: row {row} has label {label!r}, which is not one of the classes {known}; "
                "fix: give every class that can occur as classes=…"
            )
    return np.array([index[label] for label in labels], np.int32)


def decode_labels(indices: Any, classes: Sequence[Label]) -> np.ndarray[Any, Any]:
    """Return the user's labels of indices of any shape."""
    one_type = len({type(label) for label in classes}) == 1
    return np.asarray(classes, dtype=None if one_type else object)[np.asarray(indices)]


def _labels(targets: Any, what: str) -> list[Any]:
    array = as_array(targets, None, what)
    if array.ndim != 1:
        raise HeadError(f"{what}: targets have shape {array.shape}; expected one label a row, (N,)")
    labels = [_plain(label) for label in array.tolist()]
    for row, label in enumerate(labels):
        if isinstance(label, list | dict | set):
            raise HeadError(f"{what}: row {row} has {label!r:.60}, which is no label; fix: one string or number a row")
        if label is None or label != label:
            raise HeadError(f"{what}: row {row} has no label ({label!r}); fix: drop rows without a target")
    return labels


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label
