"""Folds: what holds for every kind, on made and on real data, and what is refused."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest

from heads.command_line import install_fix
from heads.forward_chaining import as_times, check_forward, windows
from mlxbert.data.competitions import FOLD_KINDS, FoldKind, fold_kinds, get_competition
from mlxbert.data.folds import (
    Fold,
    FoldError,
    FoldWarning,
    folds_sha256,
    join_rows,
    make_folds,
    normalized,
    text_keys,
    validation_fold,
)
from mlxbert.data.frames import Table
from mlxbert.data.infer_task import infer_task
from mlxbert.data.reading import read_data
from mlxbert.errors import MLXBertError
from mlxbert.runs.prepare import check_labels
from tests.support.competition_files import real_file

pytest.importorskip("sklearn")

KINDS: tuple[FoldKind, ...] = ("plain", "stratified", "multilabel_stratified", "binned", "group")
N = 400


def sample(seed: int = 0, repeat: int = 7) -> dict[str, Any]:
    """N rows of three classes, four labels, a number; every `repeat`-th text is another row's in another case."""
    rng = np.random.default_rng(seed)
    texts = [f"text {i}" for i in range(N)]
    for row in range(0, N, repeat):
        texts[row] = f" TEXT\t{rng.integers(N)} "
    classes = rng.choice(["a", "b", "c"], N, p=[0.6, 0.3, 0.1])
    labels = (rng.random((N, 4)) < [0.4, 0.1, 0.05, 0.3]).astype(np.float32)
    return {"texts": texts, "classes": classes, "labels": labels, "numbers": rng.lognormal(size=N)}


def folds_of(kind: FoldKind, data: dict[str, Any], **options: Any) -> tuple[Fold, ...]:
    targets = {"stratified": data["classes"], "multilabel_stratified": data["labels"], "binned": data["numbers"]}
    groups = options.pop("groups", data.get("groups"))
    if kind == "group" and groups is None:
        groups = [None if i % 9 == 0 else i // 12 for i in range(N)]
    return make_folds(kind, data["texts"], targets=targets.get(kind), groups=groups, **options)


def check_sides(folds: Sequence[Fold], texts: Sequence[str], groups: Sequence[Any] | None = None) -> None:
    """No row, text or group on both sides of a fold; row numbers increase."""
    for fold in folds:
        assert len(fold.train)
        assert len(fold.valid)
        assert not set(fold.train) & set(fold.valid)
        for rows in (fold.train, fold.valid):
            assert rows.dtype == np.int64
            assert (np.diff(rows) > 0).all()
        for keys in ([" ".join(text.lower().split()) for text in texts], groups):
            if keys is not None:
                train = {keys[row] for row in fold.train if keys[row] is not None}
                assert not train & {keys[row] for row in fold.valid}


def check_once(folds: Sequence[Fold], rows: int) -> None:
    """Every row held out once, and learned from in all other folds."""
    assert sorted(np.concatenate([fold.valid for fold in folds])) == list(range(rows))
    for fold in folds:
        assert len(fold.train) + len(fold.valid) == rows


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("folds", [2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_held_out_once_and_nothing_lies_on_both_sides(kind: FoldKind, folds: int, seed: int) -> None:
    # With more repeats, groups of 12 would chain into one.
    data = sample(seed, 80 if kind == "group" else 7)
    data["groups"] = [None if i % 9 == 0 else i // 12 for i in range(N)] if kind == "group" else None
    made = folds_of(kind, data, folds=folds, seed=seed)
    assert len(made) == folds
    check_once(made, N)
    check_sides(made, data["texts"], data["groups"])
    for fold in made:
        assert abs(len(fold.valid) - N / folds) <= 0.06 * N


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("folds", [1, 4])
def test_strata_are_spread_as_the_rows_are(folds: int, alone: bool) -> None:
    data = sample(3, N if alone else 7)
    classes = np.stack([data["classes"] == name for name in "abc"], axis=1)
    quarters = np.digitize(data["numbers"], np.quantile(data["numbers"], [0.25, 0.5, 0.75]))
    for kind, table in (
        ("stratified", classes),
        ("multilabel_stratified", data["labels"]),
        ("binned", np.eye(4)[quarters]),
    ):
        for fold in folds_of(kind, data, folds=folds):  # type: ignore[arg-type]
            for rows in (fold.train, fold.valid):
                assert np.abs(table[rows].mean(axis=0) - table.mean(axis=0)).max() <= 0.035, kind


@pytest.mark.parametrize("kind", KINDS)
def test_stratified_kinds_take_groups_as_well(kind: FoldKind) -> None:
    data = sample(4, 80)
    groups = np.random.default_rng(1).integers(0, 60, N).tolist()
    made = folds_of(kind, data, groups=groups, folds=4)
    check_once(made, N)
    check_sides(made, data["texts"], groups)


@pytest.mark.parametrize("folds", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: FoldKind, folds: int) -> None:
    data = sample()
    made = [folds_sha256(folds_of(kind, data, folds=folds, seed=seed)) for seed in (0, 0, 1)]
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_the_digest_sees_a_row_move() -> None:
    one, two = np.arange(3), np.arange(3, 5)
    assert folds_sha256([Fold(one, two)]) != folds_sha256([Fold(two, one)])
    assert folds_sha256([Fold(one, two)]) != folds_sha256([Fold(np.arange(4), two[1:])])


@pytest.mark.parametrize(("valid_size", "rows"), [(None, 80), (0.3, 120), (50, 50), (50.0, 50), (0.05, 20)])
@pytest.mark.parametrize("kind", KINDS)
def test_one_fold_holds_out_what_is_asked_for(kind: FoldKind, valid_size: float | None, rows: int) -> None:
    data = sample(0, 80 if kind == "group" else 7)
    (fold,) = folds_of(kind, data, folds=1, valid_size=valid_size)
    check_sides([fold], data["texts"])
    assert len(fold.train) + len(fold.valid) == N
    assert abs(len(fold.valid) - rows) <= 4


def test_equal_texts_and_groups_chain() -> None:
    assert normalized("  Ｆｉｒｅ \n NOW") == "fire now"
    keys = text_keys(["a", "A ", "b", "c", ""])
    assert join_rows(5, keys).tolist() == [0, 0, 1, 2, 3]
    assert join_rows(5, keys, [None, 1, 1, float("nan"), float("nan")]).tolist() == [0, 0, 0, 1, 2]
    assert join_rows(4, ["x", "y", "z", "x"], [1, 2, 1, 2]).tolist() == [0, 0, 0, 0]
    assert join_rows(2, None).tolist() == [0, 1]
    pairs = text_keys(["a", "B", "a"], ["b", "A", "c"])
    assert pairs[0] == pairs[1] != pairs[2]
    assert join_rows(3, text_keys(["", " ", "x"])).tolist() == [0, 0, 1]


@pytest.mark.parametrize("folds", [1, 4])
def test_forward_chaining_never_sees_the_future(folds: int) -> None:
    days = np.random.default_rng(0).integers(0, 50, N)
    made = make_folds("forward", [f"t{i}" for i in range(N)], times=days, folds=folds)
    assert len(made) == folds
    last = -1
    for fold in made:
        assert days[fold.train].max() < days[fold.valid].min()
        assert days[fold.valid].min() > last
        last = days[fold.valid].max()
    assert last == days.max()
    held_out = np.concatenate([fold.valid for fold in made])
    assert len(set(held_out.tolist())) == len(held_out)  # no row twice
    if folds == 1:
        assert sorted(set(days[made[0].valid])) == sorted(set(days))[-10:]


def test_forward_chaining_with_a_horizon_leaves_the_overlap_out() -> None:
    cut = windows(np.arange(60), window=6, horizon=3)
    texts = [str(row) for row in cut.history]
    for folds in (1, 4):
        for fold in make_folds("forward", texts, times=cut.made_at, known_at=cut.known_at, folds=folds):
            check_forward(cut.known_at[fold.train], cut.made_at[fold.valid], "test")
            assert fold.valid.min() - fold.train.max() == 3


def test_forward_chaining_leaves_out_training_rows_whose_text_comes_again() -> None:
    texts = [f"t{i}" for i in range(20)]
    texts[19] = "T0"
    with pytest.warns(FoldWarning) as caught:
        folds = make_folds("forward", texts, times=[f"2020-01-{i + 1:02}" for i in range(20)], folds=3)
    assert [str(one.message) for one in caught] == [
        "1 of 15 training rows are left out: their texts come again in the held-out part"
    ]
    assert caught[0].filename == __file__
    check_sides(folds, texts)
    assert [len(fold.train) for fold in folds] == [5, 10, 14]


def test_a_validation_file() -> None:
    with pytest.warns(FoldWarning, match=r"^1 of 3 training rows are left out: ") as caught:
        fold = validation_fold(["a", "b", "c"], ["B", "d"])
    assert caught[0].filename == __file__
    assert fold.train.tolist() == [0, 2]
    assert fold.valid.tolist() == [3, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fold = validation_fold(["a", "b"], ["a"], train_pairs=["x", "y"], valid_pairs=["z"])
    assert fold.train.tolist() == [0, 1]
    with pytest.raises(FoldError, match=r"^only one of training and validation rows has second texts"):
        validation_fold(["a"], ["b"], train_pairs=["x"])
    with pytest.warns(FoldWarning), pytest.raises(FoldError, match=r"^every text to learn from comes again in the"):
        validation_fold(["a"], ["A"])


def test_a_rare_class_is_refused_and_a_rare_label_warned_of() -> None:
    texts = [f"t{i}" for i in range(40)]
    classes = ["a"] * 20 + ["b"] * 17 + ["c"] * 3
    with pytest.raises(FoldError) as caught:
        make_folds("stratified", texts, targets=classes)
    assert str(caught.value) == (
        "1 of 3 classes: too rare for 5 folds, equal texts and groups being kept together; "
        "fix: fewer folds, --text with columns that differ from row to row, or merge or drop the class\n"
        "  c: 3 rows, 3 different texts or groups"
    )
    assert len(make_folds("stratified", texts, targets=classes, folds=3)) == 3
    labels = np.zeros((40, 3))
    labels[:20, 0] = 1
    labels[:2, 1] = 1
    labels[1:, 2] = 1
    with pytest.warns(FoldWarning) as warned:
        folds = make_folds("multilabel_stratified", texts, targets=labels, label_names=["x", "y", "z"])
    assert [str(one.message) for one in warned] == [
        "2 of 3 labels are too rare to be in each of 5 folds: y (2 positives), z (39 positives)"
    ]
    assert warned[0].filename == __file__
    assert sorted(labels[fold.valid, 0].sum() for fold in folds) == [4] * 5
    assert max(labels[fold.valid, 1].sum() for fold in folds) == 1


def test_unknown_labels_count_as_absent() -> None:
    texts = [f"t{i}" for i in range(20)]
    labels = np.array([[1 if i < 10 else -1 if i < 15 else 0] for i in range(20)])
    check_once(make_folds("multilabel_stratified", texts, targets=labels), 20)


def test_bins_of_tied_and_of_several_numbers() -> None:
    texts = [f"t{i}" for i in range(100)]
    numbers = np.r_[np.zeros(90), np.arange(10)]
    folds = make_folds("binned", texts, targets=numbers)
    assert all(2 >= (numbers[fold.valid] > 1).sum() >= 1 for fold in folds)
    check_once(make_folds("binned", texts, targets=np.stack([numbers, -numbers], axis=1)), 100)
    check_once(make_folds("binned", texts, targets=np.ones(100)), 100)
    check_once(make_folds("binned", texts[:6], targets=np.arange(6), folds=3), 6)


TEXTS = [f"t{i}" for i in range(10)]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "strat",
            {},
            "fold_kind 'strat' is not known; known: plain, stratified, binned, multilabel_stratified",
        ),
        ("plain", {"folds": 0}, "folds must be a whole number from 1 on, not 0"),
        ("plain", {"folds": True}, "folds must be a whole number from 1 on, not True"),
        ("plain", {"seed": -1}, "seed must be a whole number from 0 on, not -1"),
        ("plain", {"folds": 11}, "10 rows are too few for 11 parts; fix: fewer folds, or more data"),
        ("plain", {"valid_size": 0.1}, "valid_size=0.1 goes with folds=1, not with 5 folds; fix: leave one out"),
        (
            "plain",
            {"folds": 1, "valid_size": 1.0},
            "valid_size must be a share between 0 and 1, or fewer than 10",
        ),
        ("plain", {"folds": 1, "valid_size": 0}, "valid_size must be a share between 0 and 1, or fewer than 10"),
        ("plain", {"pairs": ["a"]}, "pairs has 1 values for 10 rows; fix: one a row"),
        (
            "plain",
            {"groups": [1] * 10},
            "the 10 rows fall into 1 group that must stay together, too few for 5 parts; fix: another",
        ),
        ("group", {}, "fold_kind 'group' needs groups=; fix: name the column"),
        ("binned", {}, "fold_kind 'binned' needs targets=; fix: give them, or fold_kind='plain'"),
        ("forward", {}, "fold_kind 'forward' needs times=; fix: name the column"),
        (
            "forward",
            {"groups": [1] * 10},
            "fold_kind 'forward' takes no groups=: a group has rows early and late",
        ),
        (
            "forward",
            {"times": [1] * 10},
            "forward_folds: 5 folds need more than 5 forecast times, not 1; fix: fewer folds, or another column of "
            "times",
        ),
        ("forward", {"times": [1] * 10, "folds": 1}, "fold 0 has no row to learn from; "),
        ("forward", {"times": ["x"] * 10}, "times: not dates ("),
        ("forward", {"times": range(10), "known_at": range(10)}, "known_at must have one time a row, each later than"),
        ("stratified", {"targets": [1] * 10}, "the target has one class only (1); fix: is it the right column?"),
        (
            "stratified",
            {"targets": [None, 1] * 5},
            "5 targets are missing (first: row 0); fix: drop these rows, ",
        ),
        ("binned", {"targets": [float("nan"), 1.0] * 5}, "5 targets are missing (first: row 0); fix: drop these rows"),
        ("binned", {"targets": [1, float("inf")] * 5}, "the target of row 1 is infinite; fix: drop the row"),
        ("binned", {"targets": list("abcdefghij")}, "binned folds need numbers for targets; fix: fold_kind='plain'"),
        ("multilabel_stratified", {"targets": [1] * 10}, "multilabel targets have shape (10,); expected (10, labels)"),
        (
            "multilabel_stratified",
            {"targets": [[0, 2]] * 10},
            "multilabel targets: row 0, label 1 is 2; expected",
        ),
    ],
)
def test_what_is_refused(kind: FoldKind, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MLXBertError) as caught:
        make_folds(kind, TEXTS, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_fold_that_lacks_a_class_is_refused() -> None:
    groups = [3, 5, 0, 2, 5, 4, 2, 2, 2, 3, 1, 4, 0]  # found by search
    with pytest.raises(FoldError) as caught:
        make_folds("stratified", [f"t{i}" for i in range(13)], targets=[*"aabaabbabbbab"], groups=groups, folds=3)
    assert str(caught.value) == "fold 1 lacks a class among the rows held out; fix: fewer folds, another seed"
    # Too rare by groups, though not by rows.
    with pytest.raises(FoldError, match="classes: too rare for 2 folds") as rare:
        make_folds(
            "stratified", [f"t{i}" for i in range(12)], targets=[*"aaaaaabbbbbb"], groups=[0] * 6 + [1] * 6, folds=2
        )
    assert str(rare.value).endswith("\n  a: 6 rows, 1 different text or group\n  b: 6 rows, 1 different text or group")


def check_coverage(kind: str, targets: Any, *held_out: list[int]) -> None:
    rows = np.arange(len(targets))
    folds = [Fold(np.setdiff1d(rows, one), np.array(one)) for one in held_out]
    check_labels(folds, np.asarray(targets), infer_task(targets), kind)


def test_plain_folds_without_a_class_are_refused_and_the_users_own_warned_of() -> None:
    targets = [*"aabbabac", *"abcabcab"]
    with pytest.raises(FoldError, match="plain folds leave a side without a class; fix: fold_kind='strat") as bad:
        check_coverage("plain", targets, [0, 1], [7, 10, 13])
    assert str(bad.value).splitlines()[1:] == [
        "  fold 0 has no 'b' held out",
        "  fold 0 has no 'c' held out",
        "  fold 1 has no 'c' to learn from",
        "  fold 1 has no 'a' held out",
        "  fold 1 has no 'b' held out",
    ]
    with pytest.warns(FoldWarning, match="^not every metric is defined: fold 0 has no 'c' held out$"):
        check_coverage("group", targets, [0, 2])
    with pytest.raises(FoldError, match=r"^fold 0 has one class only to learn from \(a\); fix: fewer folds"):
        check_coverage("forward", [*"aaab"], [2, 3])
    for kind, valid in (("stratified", [0, 1]), ("plain", [0, 2, 7])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_coverage(kind, targets, valid)


def test_labels_that_a_side_lacks_are_warned_of() -> None:
    targets = np.array([[1, 0], [1, 1], [1, 0], [0, 0]])
    with pytest.warns(FoldWarning) as caught:
        check_coverage("group", targets, [1, 2])
    assert str(caught[0].message) == (
        "not every metric is defined: fold 0 has no positive of '1' to learn from, "
        "fold 0 has no negative of '0' held out"
    )


def test_rows_with_times_are_dealt_by_them() -> None:
    assert fold_kinds("binary", None)[0] == "stratified"
    assert fold_kinds("binary", "day")[0] == "forward"
    assert fold_kinds("time_series", "day") == ("forward",)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(FoldError, match=f"^folds need scikit-learn; fix: {re.escape(install_fix('kaggle'))}$"):
        make_folds("plain", TEXTS)


def test_every_kind_of_the_competitions_is_here() -> None:
    assert {kind for kinds in FOLD_KINDS.values() for kind in kinds} == {*KINDS, "forward"} == set(get_args(FoldKind))


@pytest.mark.parametrize("folds", [1, 5])
@pytest.mark.parametrize("name", ["titanic", "house-prices", "disaster-tweets", "jigsaw-toxic", "alexa-stars"])
def test_real_data(name: str, folds: int) -> None:
    competition = get_competition(name)
    table = Table(read_data(real_file(competition, competition.train)).frame)
    texts = competition.text.render(table).texts
    columns = [table.column(target).values for target in competition.target]
    targets = np.array(columns).T if competition.task == "multilabel" else np.array(columns[0])
    assert competition.fold_kind is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make_folds(competition.fold_kind, texts, targets=targets, folds=folds, label_names=competition.target)
    rare = ["2 of 6 labels are too rare to be in each of 5 folds: severe_toxic (3 positives), threat (2 positives)"]
    assert [str(one.message) for one in caught] == (rare if name == "jigsaw-toxic" and folds == 5 else [])
    check_sides(made, texts)
    if folds == 5:
        check_once(made, table.rows)
    for fold in made:
        assert abs(len(fold.valid) / table.rows - 0.2) <= 0.025
        if competition.task in ("binary", "ordinal"):
            for label in np.unique(targets):
                assert abs((targets[fold.valid] == label).mean() - (targets == label).mean()) <= 0.02
        elif competition.task == "multilabel":
            assert np.abs(targets[fold.valid].mean(axis=0) - targets.mean(axis=0)).max() <= 0.02
        else:
            spread = [np.quantile(np.log(values), [0.1, 0.5, 0.9]) for values in (targets[fold.valid], targets)]
            assert np.abs(spread[0] - spread[1]).max() <= 0.08


def test_real_time_series() -> None:
    competition = get_competition("airline-passengers")
    table = Table(read_data(real_file(competition, competition.train)).frame)
    months = as_times(table.column("Month").values, "Month")
    cut = windows(table.column("Passengers").values, window=24, horizon=12, times=months)
    made = make_folds("forward", [str(row) for row in cut.history], times=cut.made_at, known_at=cut.known_at, folds=4)
    for fold in made:
        check_forward(cut.known_at[fold.train], cut.made_at[fold.valid], "airline")
