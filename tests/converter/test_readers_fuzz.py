"""Damaged files of every format: what is read is right, or one SourceError says that it cannot be.

"Right" for a flipped byte in a format without checksums is what the damaged file itself says; what this file
shows is that no damage raises anything else, runs anything, or hangs.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import save_file

from converter.readers.source_files import SourceError
from converter.readers.weight_files import read_weights
from tests.support.checkpoint_builders import raw

STATE = {
    "bert.a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "bert.b.bias": torch.arange(5, dtype=torch.float16),
    "bert.c": torch.arange(6, dtype=torch.int64).reshape(2, 3),
}
CHECKPOINT = {"epoch": 3, "hyper_parameters": {"lr": 0.1, "device": torch.device("cpu")}, "state_dict": STATE}


def legacy(path: Path) -> None:
    torch.save(CHECKPOINT, path, _use_new_zipfile_serialization=False)


def npz(save: Callable[..., None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            save(file, **{key: tensor.numpy() for key, tensor in STATE.items()})

    return write


WRITERS: dict[str, Callable[[Path], Any]] = {
    "safetensors": lambda path: save_file(STATE, path),
    "zip": lambda path: torch.save(OrderedDict(CHECKPOINT), path),
    "legacy": legacy,
    "npz": npz(np.savez),
    "npz compressed": npz(np.savez_compressed),
}
HAS_CHECKSUMS = ("zip", "npz", "npz compressed")


def damaged(data: bytes, seed: int) -> bytes:
    """Flip bits, overwrite a run, cut off, remove, or repeat a piece, at a seeded place."""
    rng = random.Random(seed)
    at = rng.randrange(len(data))
    run = rng.randrange(1, 9)
    kind = seed % 5
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + bytes(rng.choices([0, 1, 0x7F, 0xFF, 0x2E], k=run)) + data[at + run :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[at + run :]
    return data[: at + run] + data[at:]


@pytest.mark.parametrize("form", WRITERS)
def test_damage_is_read_right_or_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    WRITERS[form](path)
    whole = path.read_bytes()
    expected = {key: raw(tensor) for key, tensor in STATE.items()}
    assert {key: e.read().tobytes() for key, e in read_weights(path).entries.items()} == expected
    read = refused = 0
    for seed in range(400):
        path.write_bytes(damaged(whole, seed))
        try:
            got = {key: entry.read() for key, entry in read_weights(path).entries.items()}
        except SourceError as error:
            first = str(error).splitlines()[0]
            assert "fix: " in first, first
            assert first.isprintable(), first
            refused += 1
            continue
        read += 1
        if form in HAS_CHECKSUMS and set(got) == set(expected):
            assert {key: array.tobytes() for key, array in got.items()} == expected, seed
    assert refused > 100
    assert read + refused == 400


@pytest.mark.parametrize("form", WRITERS)
def test_every_truncation_is_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    WRITERS[form](path)
    whole = path.read_bytes()
    step = max(1, len(whole) // 200)
    for length in range(0, len(whole), step):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError, match="fix: "):
            read_weights(path)
