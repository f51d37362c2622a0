"""The sentences that ship: calibration and held-out text have nothing in common, nor with the data of the tests."""

from __future__ import annotations

import itertools
import os
import re
from importlib.resources import files
from pathlib import Path

import pytest

from converter.quantize.recipes import HELD_OUT, built_in

FOLDER = files("converter.quantize").joinpath("sentences")
LISTS = {name: built_in(name).texts for name in ("calibration", *HELD_OUT)}
SENTENCES = [(name, text) for name, texts in LISTS.items() for text in texts]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    """Every `length` words in a row."""
    found = words(text)
    return set(zip(*(found[start:] for start in range(length)), strict=False))


def likeness(a: str, b: str) -> float:
    """Words in both, of those in either."""
    one, other = set(words(a)), set(words(b))
    return len(one & other) / len(one | other)


def test_the_readme_names_every_list_and_its_size() -> None:
    readme = FOLDER.joinpath("README.md").read_text(encoding="utf-8")
    listed = {name: int(count) for name, count in re.findall(r"^\| `(\w+)\.txt` \| (\d+) \|", readme, re.MULTILINE)}
    shipped = [file.name.removesuffix(".txt") for file in FOLDER.iterdir() if file.name.endswith(".txt")]
    assert sorted(listed) == sorted(shipped) == ["calibration", *(f"heldout_{name}" for name in HELD_OUT)]
    assert list(listed.values()) == [len(texts) for texts in LISTS.values()]


def test_no_two_share_five_words_in_a_row() -> None:
    owners: dict[tuple[str, ...], str] = {}
    for name, text in SENTENCES:
        for run in runs(text, 5):
            assert run not in owners, f"{name}: {text!r} and {owners[run]!r}"
        owners.update(dict.fromkeys(runs(text, 5), text))


def test_no_two_share_half_of_their_words() -> None:
    assert likeness("The cat sat on the mat.", "the cat sat on a mat") > 0.5  # what it takes to be found
    for (name, text), (other, near) in itertools.combinations(SENTENCES, 2):
        assert likeness(text, near) < 0.5, f"{name}: {text!r} and {other}: {near!r}"


def test_they_are_not_taken_from_the_data_of_the_tests() -> None:
    place = os.environ.get("MLXBERT_DATA")
    if not place:
        pytest.skip("MLXBERT_DATA is not set")
    ours = set().union(*(runs(text, 6) for _, text in SENTENCES))
    tables = [file for file in Path(place).rglob("*") if file.suffix in (".csv", ".tsv")]
    assert tables
    for file in tables:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        shared = ours & set().union(*(runs(line, 6) for line in lines))
        assert not shared, f"{file.name}: {shared}"
