"""Dealing groups of rows to parts of given sizes, so that every label is spread as the rows are.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", 2011), for
groups of rows in place of rows, which scikit-learn does not have: the label with the fewest rows left is dealt first,
each of its groups to the part that still wants most of that label.

Which rows belong together, and must never lie on both sides of a fold: equal texts, and the user's own groups.

Folds: which rows are learned from and which are held out, each row held out once.

Rows with equal texts, or of one group, never lie on both sides. scikit-learn deals single-label folds;
`mlxbert.data.folds` those it has nothing for: many labels, and one held-out part of a given size with groups.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from heads.errors import HeadError
from heads.forward_chaining import as_times, forward_folds
from heads.install import install_fix
from mlxbert.data.competitions import FoldKind
from mlxbert.data.frames import plain
from mlxbert.data.strata import FoldError, FoldWarning, bin_strata, class_strata, label_strata


def one_label(strata: np.ndarray) -> Any:
    """Return rows with one label each as a sparse (N, labels) matrix: 10,000 classes of as many rows are no table."""
    from scipy.sparse import csr_array

    numbers = np.unique(strata, return_inverse=True)[1].reshape(-1)
    return csr_array((np.ones(len(strata)), numbers, np.arange(len(strata) + 1)))


def deal_groups(groups: np.ndarray, labels: Any, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """The part of each row, (N,): rows of one group in one part.

    Args:
        groups: (N,) whole numbers, 0 … G − 1.
        labels: (N, L) bool, or sparse; L may be 0.
        shares: of the rows, one a part; they sum to 1.
        rng: decides ties and the order among equals.
    """
    from scipy.sparse import csc_array, csr_array

    count = int(groups.max()) + 1
    sizes = np.bincount(groups, minlength=count).astype(np.float64)
    members = csr_array((np.ones(len(groups)), (groups, np.arange(len(groups)))), shape=(count, len(groups)))
    held = csr_array(members @ csr_array(labels, dtype=np.float64))  # (G, L)
    by_label = csc_array(held)
    part = np.full(count, -1)
    wanted_rows = np.outer(shares, [sizes.sum()])[:, 0]
    left = np.asarray(held.sum(axis=0), np.float64).reshape(-1)
    wanted = np.outer(shares, left)  # (parts, L)
    # Large groups first, while there is room for them everywhere; equals in random order.
    order = rng.permutation(count)
    order = order[np.argsort(-sizes[order], kind="stable")]
    place = np.argsort(order)
    while (left > 0).any():
        label = int(np.where(left > 0, left, np.inf).argmin())
        column = slice(by_label.indptr[label], by_label.indptr[label + 1])
        mine, amounts = by_label.indices[column], by_label.data[column]
        free = part[mine] < 0
        for group in mine[free][np.lexsort((place[mine[free]], -amounts[free]))]:
            chosen = _hungriest(wanted[:, label], wanted_rows, rng)
            part[group] = chosen
            row = slice(held.indptr[group], held.indptr[group + 1])
            wanted[chosen, held.indices[row]] -= held.data[row]
            wanted_rows[chosen] -= sizes[group]
            left[held.indices[row]] -= held.data[row]
    for group in order[part[order] < 0]:
        chosen = _hungriest(wanted_rows, wanted_rows, rng)
        part[group] = chosen
        wanted_rows[chosen] -= sizes[group]
    return part[groups]


def _hungriest(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> int:
    """The index where `first` is largest; among equals where `second` is; among those, any."""
    best = np.flatnonzero(first >= first.max() - 1e-9)
    if len(best) > 1:
        best = best[second[best] >= second[best].max() - 1e-9]
    return int(best[0] if len(best) == 1 else rng.choice(best))


def normalized(text: str) -> str:
    """A text as it is compared: compatible characters made equal, case and the amount of white space left out."""
    # Only what is not one space already: of a text of 20 million characters each match is a string of its own.
    return re.sub(r"\s{2,}|[^\S ]", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def text_keys(texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Hashable]:
    """One key a row, equal where the texts are: both of a pair, in whichever order. Empty texts are equal, too."""
    firsts = [normalized(text) for text in texts]
    if pairs is None:
        return list(firsts)
    seconds = [normalized(text) for text in pairs]
    return [tuple(sorted(both)) for both in zip(firsts, seconds, strict=True)]


def join_rows(rows: int, *keys: Iterable[Any] | None) -> np.ndarray:
    """The group of each row, (N,) int64 from 0 in order of first appearance.

    Rows with an equal key of any kind are in one group, and so are rows that a chain of such pairs connects. A missing
    key (None, NaN) joins nothing.
    """
    parent = list(range(rows))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for kind in keys:
        first: dict[Any, int] = {}
        for row, key in enumerate(() if kind is None else kind):
            key = plain(key)
            if key is None:
                continue
            one, two = root(first.setdefault(key, row)), root(row)
            parent[max(one, two)] = min(one, two)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root(row), len(numbers)) for row in range(rows)], np.int64)


__all__ = ["Fold", "FoldError", "FoldWarning", "fold_numbers", "folds_sha256", "make_folds", "validation_fold"]


@dataclass(frozen=True, eq=False)
class Fold:
    """Row numbers, increasing, int64.

    Attributes:
        train: to learn from.
        valid: held out.
    """

    train: np.ndarray
    valid: np.ndarray


def make_folds(
    kind: FoldKind,
    texts: Sequence[str],
    *,
    pairs: Sequence[str] | None = None,
    targets: Any = None,
    groups: Sequence[Any] | None = None,
    times: Any = None,
    known_at: Any = None,
    folds: int = 5,
    valid_size: float | None = None,
    seed: int = 0,
    label_names: Sequence[str] | None = None,
) -> tuple[Fold, ...]:
    """Deal N rows into folds; the same arguments give the same folds.

    Args:
        kind: "plain", "stratified" (by class), "multilabel_stratified" (targets (N, L)), "binned" (by a number),
            "group" (needs `groups`), or "forward" (needs `times`; training rows are all earlier than held-out ones).
        texts: N; rows whose texts are equal but for case and white space stay on one side.
        pairs: N second texts.
        targets: for the stratified kinds and "binned".
        groups: N values; rows of one value stay on one side; a missing one joins none. Not with "forward".
        times: N dates or numbers, when a row's prediction is made.
        known_at: N, when its target is known: later than `times`; None: before the next distinct time.
        folds: how many; 1: one held-out part of `valid_size`.
        valid_size: a share of the rows (below 1), or their number; only with `folds=1`, where 0.2 is the default.
        seed: from 0 to 2³² − 1; "forward" does not use it.
        label_names: L, for the warning about rare labels.

    Raises:
        FoldError: an argument is missing, wrong, or of another length; there are fewer groups of rows than folds; a
            class is too rare for the folds, or lacking in one (single labels only).

    Warns:
        FoldWarning: a label is too rare for the folds (many labels); training rows are left out of forward-chaining
            folds because their text comes again in the held-out part.
    """
    rows = len(texts)
    share = _checked(kind, rows, folds, valid_size, seed)
    for name, values in (("pairs", pairs), ("targets", targets), ("groups", groups), ("times", times)):
        if values is not None and len(values) != rows:
            raise FoldError(f"{name} has {len(values)} values for {rows} rows; fix: one a row")
    keys = text_keys(texts, pairs)
    if kind == "forward":
        if groups is not None:
            raise FoldError("fold_kind 'forward' takes no groups=: a group has rows early and late; fix: leave it out")
        return _forward(times, known_at, keys, folds, share)
    if kind == "group" and groups is None:
        raise FoldError("fold_kind 'group' needs groups=; fix: name the column")
    together = join_rows(rows, keys, groups)
    parts = max(folds, 2)
    count = int(together.max()) + 1
    if count < parts:
        raise FoldError(_too_few(len(set(keys)), rows, count, parts))
    if kind not in ("plain", "group") and targets is None:
        raise FoldError(f"fold_kind {kind!r} needs targets=; fix: give them, or fold_kind='plain'")
    strata = np.zeros(rows, np.int64)
    if kind == "stratified":
        strata = class_strata(targets, together, parts)
    elif kind == "binned":
        strata = bin_strata(targets, parts)
    if folds == 1 or kind == "multilabel_stratified":
        several = kind == "multilabel_stratified"
        labels = label_strata(targets, together, parts, label_names) if several else one_label(strata)
        shares = [1 - share, share] if folds == 1 else [1 / folds] * folds
        number = deal_groups(together, labels, shares, np.random.default_rng(seed))
    else:
        number = _by_scikit_learn(strata, together, folds, seed)
    held_out = [1] if folds == 1 else range(folds)
    made = tuple(Fold(np.flatnonzero(number != part), np.flatnonzero(number == part)) for part in held_out)
    _check(made, strata if kind == "stratified" else None)
    return made


def validation_fold(
    train_texts: Sequence[str],
    valid_texts: Sequence[str],
    *,
    train_pairs: Sequence[str] | None = None,
    valid_pairs: Sequence[str] | None = None,
) -> Fold:
    """The one fold of a training and a validation file, whose rows are numbered on, training first.

    Raises:
        FoldError: no training row is left.

    Warns:
        FoldWarning: training rows are left out because their text is in the validation file.
    """
    if (train_pairs is None) != (valid_pairs is None):
        raise FoldError("only one of training and validation rows has second texts; fix: the same columns in both")
    held_out = set(text_keys(valid_texts, valid_pairs))
    keep = np.array([key not in held_out for key in text_keys(train_texts, train_pairs)], bool)
    if not keep.all():
        _warn_of_repeats(int((~keep).sum()), len(keep), 3)
    _refuse_all_repeated(keep)
    fold = Fold(np.flatnonzero(keep), np.arange(len(keep), len(keep) + len(valid_texts)))
    _check((fold,), None)
    return fold


def fold_numbers(folds: Sequence[Fold], rows: int) -> np.ndarray:
    """The fold that holds out each row, (N,) int64; −1 for a row that none does."""
    numbers = np.full(rows, -1, np.int64)
    for number, fold in enumerate(folds):
        numbers[fold.valid] = number
    return numbers


def folds_sha256(folds: Sequence[Fold]) -> str:
    """Of all row numbers, in hex: a resumed run compares it before it goes on."""
    digest = hashlib.sha256()
    for fold in folds:
        for part in (fold.train, fold.valid):
            digest.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
    return digest.hexdigest()


def _checked(kind: str, rows: int, folds: int, valid_size: float | None, seed: int) -> float:
    """The held-out share for one fold; 0 for several."""
    if kind not in get_args(FoldKind):
        raise FoldError(f"fold_kind {kind!r} is not known; known: {', '.join(get_args(FoldKind))}")
    for name, value, least in (("folds", folds, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**32:
            raise FoldError(f"{name} must be a whole number from {least} on, not {value!r}")
    if rows < max(folds, 2):
        raise FoldError(f"{rows} rows are too few for {max(folds, 2)} parts; fix: fewer folds, or more data")
    if folds > 1:
        if valid_size is not None:
            raise FoldError(f"valid_size={valid_size} goes with folds=1, not with {folds} folds; fix: leave one out")
        return 0.0
    size = 0.2 if valid_size is None else valid_size
    number = isinstance(size, int | float) and not isinstance(size, bool)
    # A command line's 200 arrives as 200.0; 1.0 is all of them, as a share is.
    share = size / rows if number and (isinstance(size, int) or size > 1) and size == int(size) else size
    if not number or not 0 < share < 1:
        raise FoldError(f"valid_size must be a share between 0 and 1, or fewer than {rows} rows, not {size!r}")
    return share


def _by_scikit_learn(strata: np.ndarray, together: np.ndarray, folds: int, seed: int) -> np.ndarray:
    try:
        from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
    except ModuleNotFoundError as error:
        raise FoldError(f"folds need scikit-learn; fix: {install_fix('kaggle')}") from error
    shuffled = {"n_splits": folds, "shuffle": True, "random_state": seed}
    alone = int(together.max()) + 1 == len(together)
    if strata.any():
        splitter = StratifiedKFold(**shuffled) if alone else StratifiedGroupKFold(**shuffled)
    elif alone:
        splitter = KFold(**shuffled)
    else:
        # It deals the largest group first and equals by their number: new numbers are its shuffling.
        splitter = GroupKFold(folds)
        together = np.random.default_rng(seed).permutation(int(together.max()) + 1)[together]
    number = np.full(len(strata), -1, np.int64)
    for part, (_, valid) in enumerate(splitter.split(strata, strata, None if alone else together)):
        number[valid] = part
    return number


def _forward(times: Any, known_at: Any, keys: Sequence[Any], folds: int, share: float) -> tuple[Fold, ...]:
    if times is None:
        raise FoldError("fold_kind 'forward' needs times=; fix: name the column")
    try:
        made, known = as_times(times, "times"), None if known_at is None else as_times(known_at, "known_at")
        if known is None:
            # Without a horizon: known after its own time, before the next one.
            made = 2 * np.unique(made, return_inverse=True)[1].reshape(-1)
            known = made + 1
        elif known.shape != made.shape or (known <= made).any():
            raise FoldError("known_at must have one time a row, each later than in times; fix: the horizon's end")
        if folds > 1:
            parts = list(forward_folds(made, known, folds))
        else:
            distinct = np.unique(made)
            first = distinct[-max(1, round(share * len(distinct)))]
            parts = [(np.flatnonzero(known <= first), np.flatnonzero(made >= first))]
    except HeadError as error:
        raise FoldError(str(error)) from error
    result = []
    for train, valid in parts:
        held_out = {keys[row] for row in valid}
        keep = np.array([keys[row] not in held_out for row in train], bool)
        if not keep.all():
            _warn_of_repeats(int((~keep).sum()), len(keep), 4)
        _refuse_all_repeated(keep)
        result.append(Fold(train[keep], valid))
    _check(result, None)
    return tuple(result)


def _too_few(texts: int, rows: int, count: int, parts: int) -> str:
    """Why rows that belong together are too few, and what helps."""
    fewer = f", or --folds {count}" if count > 1 else ""
    if texts < parts:
        what = f"all {rows} texts are equal" if texts == 1 else f"the {rows} rows have {texts} different texts"
        return (
            f"{what}, and equal texts are kept together in one fold: {parts} parts cannot be made; "
            f"fix: --text with columns that differ from row to row{fewer}"
        )
    return (
        f"the {rows} rows fall into {count} group{'s' if count > 1 else ''} that must stay together, too few for "
        f"{parts} parts; fix: another --group, or none{fewer}"
    )


def _refuse_all_repeated(keep: np.ndarray) -> None:
    if len(keep) and not keep.any():
        raise FoldError(
            "every text to learn from comes again in the held-out part, and equal texts are kept together; "
            "fix: --text with columns that differ from row to row"
        )


def _warn_of_repeats(count: int, rows: int, stacklevel: int) -> None:
    warnings.warn(
        f"{count} of {rows} training rows are left out: their texts come again in the held-out part",
        FoldWarning,
        stacklevel=stacklevel,
    )


def _check(folds: Sequence[Fold], strata: np.ndarray | None) -> None:
    """Raises FoldError for a side without rows, or (with strata) without one of the classes."""
    classes = 0 if strata is None else len(np.unique(strata))
    for number, fold in enumerate(folds):
        for side, rows in (("to learn from", fold.train), ("held out", fold.valid)):
            if not len(rows):
                raise FoldError(f"fold {number} has no row {side}; fix: fewer folds, or smaller groups")
            if strata is not None and len(np.unique(strata[rows])) < classes:
                raise FoldError(f"fold {number} lacks a class among the rows {side}; fix: fewer folds, another seed")
