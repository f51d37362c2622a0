"""A checkpoint is read in the memory of one tensor: nothing is mapped, nothing is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
COUNT, ROWS = 25, 2 << 20  # 25 tensors of 8 MiB
SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np, ml_dtypes  # the base that every reader has
from converter.readers.weight_files import read_weights

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

np.empty(1 << 20).fill(1)
before = peak()
total = 0.0
for entry in read_weights(Path(sys.argv[1])).entries.values():
    total += float(entry.read()[0])
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(peak() - before, total)
"""


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_peak_memory_stays_near_one_tensor(form: str, tmp_path: Path) -> None:
    state = {f"t{i}": torch.full((ROWS,), float(i)) for i in range(COUNT)}
    path = tmp_path / "model"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    assert path.stat().st_size > 200e6
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    growth, total = map(float, run.stdout.split())
    assert total == sum(range(COUNT))
    # two tensors may overlap: the next one is allocated before the last one's name is bound anew
    assert growth < 2 * ROWS * 4 + 12e6
