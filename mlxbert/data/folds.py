"""Folds: which rows are learned from and which are held out; each row is held out once.

Rows with equal texts, or of one group, are never on both sides. scikit-learn deals the folds of one label. This module
adds what it does not have: many labels, and one held-out part of a given size with groups.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from heads.command_line import install_fix
from heads.errors import HeadError
from heads.forward_chaining import as_times, forward_folds
from mlxbert.data.competitions import FoldKind
from mlxbert.data.frames import plain, shown
from mlxbert.errors import MLXBertError, MLXBertWarning, first_ten

_MAX_BINS = 10


class FoldError(MLXBertError):
    """Folds that cannot be made, or would be of no use."""


class FoldWarning(MLXBertWarning):
    """The folds can be used, but they leave something out."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Row numbers, increasing, int64.

    Attributes:
        train: of the rows to learn from.
        valid: of the held-out rows.
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
        texts: N; rows whose texts differ only by case and white space stay on one side.
        pairs: N second texts.
        targets: for the stratified kinds and "binned".
        groups: N values; rows of one value stay on one side; a missing value joins none. Not with "forward".
        times: N dates or numbers: when a row's prediction is made.
        known_at: N times, later than `times`: when a row's target is known; None: before the next distinct time.
        folds: how many; 1: one held-out part of `valid_size`.
        valid_size: a share of the rows (below 1), or their number; only with `folds=1`, where 0.2 is the default.
        seed: from 0 to 2³² − 1; "forward" does not use it.
        label_names: L, for the warning about rare labels.

    Raises:
        FoldError: an argument is missing, wrong, or of another length; there are fewer groups of rows than folds; a
            class is too rare for the folds, or absent from one (single labels only).

    Warns:
        FoldWarning: a label is too rare for the folds (many labels); training rows are left out of forward-chaining
            folds because their text is in the held-out part, too.
    """
    rows = len(texts)
    share = _held_out_share(kind, rows, folds, valid_size, seed)
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
    row_groups = join_rows(rows, keys, groups)
    parts = max(folds, 2)
    count = int(row_groups.max()) + 1
    if count < parts:
        raise FoldError(_too_few_groups(len(set(keys)), rows, count, parts))
    if kind not in ("plain", "group") and targets is None:
        raise FoldError(f"fold_kind {kind!r} needs targets=; fix: give them, or fold_kind='plain'")
    strata = np.zeros(rows, np.int64)
    if kind == "stratified":
        strata = _class_strata(targets, row_groups, parts)
    elif kind == "binned":
        strata = _bin_strata(targets, parts)
    if folds == 1 or kind == "multilabel_stratified":
        is_multilabel = kind == "multilabel_stratified"
        labels = _label_strata(targets, row_groups, parts, label_names) if is_multilabel else one_label(strata)
        shares = [1 - share, share] if folds == 1 else [1 / folds] * folds
        part = _deal_groups(row_groups, labels, shares, np.random.default_rng(seed))
    else:
        part = _deal_by_scikit_learn(strata, row_groups, folds, seed)
    held_out = [1] if folds == 1 else range(folds)
    dealt = tuple(Fold(np.flatnonzero(part != number), np.flatnonzero(part == number)) for number in held_out)
    _check(dealt, strata if kind == "stratified" else None)
    return dealt


def validation_fold(
    train_texts: Sequence[str],
    valid_texts: Sequence[str],
    *,
    train_pairs: Sequence[str] | None = None,
    valid_pairs: Sequence[str] | None = None,
) -> Fold:
    """Return the fold of a training and a validation file; row numbers go on from the first to the second.

    Raises:
        FoldError: no training row is left.

    Warns:
        FoldWarning: training rows are left out because their text is in the validation file.
    """
    if (train_pairs is None) != (valid_pairs is None):
        raise FoldError("only one of training and validation rows has second texts; fix: the same columns in both")
    held_out = set(text_keys(valid_texts, valid_pairs))
    keep = np.array([key not in held_out for key in text_keys(train_texts, train_pairs)], bool)
    _report_repeats(keep, stacklevel=3)
    fold = Fold(np.flatnonzero(keep), np.arange(len(keep), len(keep) + len(valid_texts)))
    _check((fold,), None)
    return fold


def folds_sha256(folds: Sequence[Fold]) -> str:
    """Return a digest of all row numbers, in hex; a resumed run compares it."""
    digest = hashlib.sha256()
    for fold in folds:
        for part in (fold.train, fold.valid):
            digest.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
    return digest.hexdigest()


def _held_out_share(kind: str, rows: int, folds: int, valid_size: float | None, seed: int) -> float:
    """Check the arguments; return the held-out share for one fold, 0 for several."""
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
    is_number = isinstance(size, int | float) and not isinstance(size, bool)
    # A command line gives 200 as 200.0; 1.0 is the share of all rows.
    is_count = is_number and (isinstance(size, int) or size > 1) and size == int(size)
    share = size / rows if is_count else size
    if not is_number or not 0 < share < 1:
        raise FoldError(f"valid_size must be a share between 0 and 1, or fewer than {rows} rows, not {size!r}")
    return share


def normalized(text: str) -> str:
    """Return a text for comparison: compatible characters made equal, without case, with single spaces."""
    # Match nothing that is one space already: in a text of 20 million characters each match is a string.
    return re.sub(r"\s{2,}|[^\S ]", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def text_keys(texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Hashable]:
    """Return one key a row, equal where the texts are (of a pair in any order); empty texts are equal, too."""
    keys = [normalized(text) for text in texts]
    if pairs is None:
        return list(keys)
    return [tuple(sorted((key, normalized(pair)))) for key, pair in zip(keys, pairs, strict=True)]


def join_rows(rows: int, *keys: Iterable[Any] | None) -> np.ndarray:
    """Return the group of each row, (N,) int64, numbered from 0 in order of first appearance.

    Rows with an equal key of any kind are in one group, and so are rows that a chain of such pairs connects. A missing
    key (None, NaN) joins nothing.
    """
    with _installed():
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    joined: list[int] = []
    firsts: list[int] = []
    for kind in keys:
        first_row: dict[Any, int] = {}
        for row, key in enumerate(() if kind is None else kind):
            if (value := plain(key)) is not None:
                joined.append(row)
                firsts.append(first_row.setdefault(value, row))
    graph = coo_array((np.ones(len(joined), np.int8), (joined, firsts)), shape=(rows, rows))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


@contextmanager
def _installed() -> Iterator[None]:
    """Say how to install a package whose import fails; scikit-learn brings scipy."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise FoldError(f"folds need scikit-learn; fix: {install_fix('kaggle')}") from error


def _too_few_groups(texts: int, rows: int, count: int, parts: int) -> str:
    """Return why the groups of rows are too few, and the fix."""
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


def _class_strata(targets: Iterable[Any], row_groups: np.ndarray, folds: int) -> np.ndarray:
    """Return the class number of each row, (N,) int64.

    Raises:
        FoldError: a target is missing, there is only one class, or a class is in fewer groups of rows than folds.
    """
    values = [plain(value) for value in targets]
    _refuse_missing(values)
    numbers: dict[Any, int] = {}
    strata = np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)
    if len(numbers) < 2:
        raise FoldError(f"the target has one class only ({shown(values[0])}); fix: is it the right column?")
    # Count all classes at once: one by one, 100,000 classes take hours.
    rows = np.bincount(strata)
    groups = np.bincount(np.unique(np.stack([strata, np.asarray(row_groups)]), axis=1)[0], minlength=len(numbers))
    rare = [
        f"{shown(value)}: {_counted(rows[number], 'row')}, {_counted(groups[number], 'different text or group')}"
        for value, number in numbers.items()
        if groups[number] < folds
    ]
    if rare:
        raise FoldError(
            f"{len(rare)} of {len(numbers)} classes: too rare for {folds} folds, equal texts and groups being kept "
            "together; fix: fewer folds, --text with columns that differ from row to row, or merge or drop the class\n"
            + first_ten(rare)
        )
    return strata


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s".replace("text or", "texts or")


def _label_strata(targets: Any, row_groups: np.ndarray, folds: int, names: Sequence[str] | None = None) -> np.ndarray:
    """Return which labels each row has, (N, L) bool; an unknown label (−1, None) counts as absent.

    Raises:
        FoldError: the targets are not (N, L), or have other values than 0, 1 and unknown.

    Warns:
        FoldWarning: the positives or negatives of a label are in fewer groups of rows than folds, so that its metrics
            are undefined in some fold.
    """
    table = np.asarray(targets)
    if table.ndim != 2 or len(table) != len(row_groups):
        raise FoldError(
            f"multilabel targets have shape {table.shape}; expected ({len(row_groups)}, labels) of 0 and 1"
        )
    values = np.array([[-1 if (cell := plain(value)) is None else cell for value in row] for row in table], np.float64)
    is_wrong = ~np.isin(values, (-1, 0, 1))
    if is_wrong.any():
        row, column = np.argwhere(is_wrong)[0]
        raise FoldError(f"multilabel targets: row {row}, label {column} is {table[row, column]}; expected 0, 1 or −1")
    names = [str(i) for i in range(values.shape[1])] if names is None else names
    rare = []
    for column, name in enumerate(names):
        counts = [len(np.unique(row_groups[values[:, column] == value])) for value in (1, 0)]
        if min(counts) < folds:
            rare.append(f"{name} ({(values[:, column] == 1).sum()} positives)")
    if rare:
        more = f" … and {len(rare) - 10} more" if len(rare) > 10 else ""
        warnings.warn(
            f"{len(rare)} of {len(names)} labels are too rare to be in each of {folds} folds: "
            f"{', '.join(rare[:10])}{more}",
            FoldWarning,
            stacklevel=3,
        )
    return values == 1


def _bin_strata(targets: Any, folds: int) -> np.ndarray:
    """Return the bin of each row's number by rank, (N,) int64: at most ten bins, none with fewer rows than folds.

    Several targets, (N, T), are binned by the mean of their ranks.

    Raises:
        FoldError: a target is missing or infinite.
    """
    from scipy.stats import rankdata

    table = np.asarray(targets)
    cells = [plain(value) for value in table.reshape(-1)]
    _refuse_missing(cells, table.shape[1] if table.ndim == 2 else 1)
    try:
        values = np.array(cells, np.float64).reshape(len(table), -1)
    except (TypeError, ValueError):
        raise FoldError("binned folds need numbers for targets; fix: fold_kind='plain'") from None
    if not np.isfinite(values).all():
        raise FoldError(f"the target of row {np.argwhere(~np.isfinite(values))[0][0]} is infinite; fix: drop the row")
    ranks = np.mean([rankdata(column) - 1 for column in values.T], axis=0)
    bins = max(1, min(_MAX_BINS, len(ranks) // (2 * folds)))
    bin_of = np.minimum(((rankdata(ranks) - 1) * bins / len(ranks)).astype(np.int64), bins - 1)
    # Where many rows share one value, the bins beside it can be nearly empty: each joins the next lower one.
    sizes: list[int] = []
    strata = np.zeros(len(bin_of), np.int64)
    for number in np.unique(bin_of):
        here = bin_of == number
        if not sizes or min(sizes[-1], here.sum()) >= folds:
            sizes.append(0)
        strata[here] = len(sizes) - 1
        sizes[-1] += int(here.sum())
    return strata


def _refuse_missing(values: Sequence[Any], columns: int = 1) -> None:
    missing = [i // columns for i, value in enumerate(values) if value is None]
    if missing:
        raise FoldError(
            f"{len(missing)} targets are missing (first: row {missing[0]}); fix: drop these rows, or fill them"
        )


def _deal_by_scikit_learn(strata: np.ndarray, row_groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    with _installed():
        from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
    options = {"n_splits": folds, "shuffle": True, "random_state": seed}
    are_single = int(row_groups.max()) + 1 == len(row_groups)
    if strata.any():
        splitter = StratifiedKFold(**options) if are_single else StratifiedGroupKFold(**options)
    elif are_single:
        splitter = KFold(**options)
    else:
        # It deals the largest group first, and equal ones by their number: shuffle the numbers.
        splitter = GroupKFold(folds)
        row_groups = np.random.default_rng(seed).permutation(int(row_groups.max()) + 1)[row_groups]
    part = np.full(len(strata), -1, np.int64)
    for number, (_, valid) in enumerate(splitter.split(strata, strata, None if are_single else row_groups)):
        part[valid] = number
    return part


def one_label(strata: np.ndarray) -> Any:
    """Return rows with one label each as a sparse (N, labels) matrix: 10,000 classes of as many rows are no table."""
    from scipy.sparse import csr_array

    numbers = np.unique(strata, return_inverse=True)[1].reshape(-1)
    return csr_array((np.ones(len(strata)), numbers, np.arange(len(strata) + 1)))


def _deal_groups(groups: np.ndarray, labels: Any, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Return the part of each row, (N,), with each group in one part, and every label spread as the rows are.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", 2011), of
    groups instead of rows: deal the label with the fewest rows left first, each of its groups to the part that still
    needs most of that label.

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
    # Large groups first, while every part has room for them; equals in random order.
    order = rng.permutation(count)
    order = order[np.argsort(-sizes[order], kind="stable")]
    place = np.argsort(order)
    while (left > 0).any():
        label = int(np.where(left > 0, left, np.inf).argmin())
        column = slice(by_label.indptr[label], by_label.indptr[label + 1])
        with_label, amounts = by_label.indices[column], by_label.data[column]
        free = part[with_label] < 0
        for group in with_label[free][np.lexsort((place[with_label[free]], -amounts[free]))]:
            chosen = _neediest(wanted[:, label], wanted_rows, rng)
            part[group] = chosen
            row = slice(held.indptr[group], held.indptr[group + 1])
            wanted[chosen, held.indices[row]] -= held.data[row]
            wanted_rows[chosen] -= sizes[group]
            left[held.indices[row]] -= held.data[row]
    for group in order[part[order] < 0]:
        chosen = _neediest(wanted_rows, wanted_rows, rng)
        part[group] = chosen
        wanted_rows[chosen] -= sizes[group]
    return part[groups]


def _neediest(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> int:
    """Return the index where `first` is largest, among equals where `second` is, and among those a random one."""
    best = np.flatnonzero(first >= first.max() - 1e-9)
    if len(best) > 1:
        best = best[second[best] >= second[best].max() - 1e-9]
    return int(best[0] if len(best) == 1 else rng.choice(best))


def _forward(times: Any, known_at: Any, keys: Sequence[Any], folds: int, share: float) -> tuple[Fold, ...]:
    """Return folds whose training rows are known before the held-out rows are predicted."""
    if times is None:
        raise FoldError("fold_kind 'forward' needs times=; fix: name the column")
    try:
        made_at, known = as_times(times, "times"), None if known_at is None else as_times(known_at, "known_at")
        if known is None:
            # Without a horizon, a target is known after its own time and before the next one.
            made_at = 2 * np.unique(made_at, return_inverse=True)[1].reshape(-1)
            known = made_at + 1
        elif known.shape != made_at.shape or (known <= made_at).any():
            raise FoldError("known_at must have one time a row, each later than in times; fix: the horizon's end")
        if folds > 1:
            parts = list(forward_folds(made_at, known, folds))
        else:
            distinct = np.unique(made_at)
            first = distinct[-max(1, round(share * len(distinct)))]
            parts = [(np.flatnonzero(known <= first), np.flatnonzero(made_at >= first))]
    except HeadError as error:
        raise FoldError(str(error)) from error
    dealt = []
    for train, valid in parts:
        held_out = {keys[row] for row in valid}
        keep = np.array([keys[row] not in held_out for row in train], bool)
        _report_repeats(keep, stacklevel=4)
        dealt.append(Fold(train[keep], valid))
    _check(dealt, None)
    return tuple(dealt)


def _report_repeats(keep: np.ndarray, stacklevel: int) -> None:
    """Warn of training rows whose text is held out, too; refuse if these are all."""
    if not keep.all():
        warnings.warn(
            f"{(~keep).sum()} of {len(keep)} training rows are left out: their texts come again in the held-out part",
            FoldWarning,
            stacklevel=stacklevel,
        )
    if len(keep) and not keep.any():
        raise FoldError(
            "every text to learn from comes again in the held-out part, and equal texts are kept together; "
            "fix: --text with columns that differ from row to row"
        )


def _check(folds: Sequence[Fold], strata: np.ndarray | None) -> None:
    """Raise FoldError for a side without rows, or (with strata) without one of the classes."""
    classes = 0 if strata is None else len(np.unique(strata))
    for number, fold in enumerate(folds):
        for side, rows in (("to learn from", fold.train), ("held out", fold.valid)):
            if not len(rows):
                raise FoldError(f"fold {number} has no row {side}; fix: fewer folds, or smaller groups")
            if strata is not None and len(np.unique(strata[rows])) < classes:
                raise FoldError(f"fold {number} lacks a class among the rows {side}; fix: fewer folds, another seed")
