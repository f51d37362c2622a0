"""`Embed` and `Predict` on a real local Ray: two actors, one killed in the middle of a batch."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlxbert.data.frames import DataWarning
from mlxbert.encode import SentenceEncoder
from mlxbert.runs import Run
from tests.support.ray_driver import LIMIT, ROWS, texts

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, runs: dict[str, Run]) -> Iterator[Path]:
    """The folder that `ray_driver` filled: without internet, dashboard, usage statistics and a home to write to."""
    out = tmp_path_factory.mktemp("ray")
    # Ray's sockets lie below it, and the path of a socket has at most 103 characters.
    sockets = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    job = {"out": out, "checkpoint": tiny_checkpoint, "run": runs["binary"].path, "sockets": sockets}
    (out / "job.json").write_text(json.dumps(job, default=str))
    # Ray chooses the threads of an actor, unless the environment does.
    own = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {
        "HOME": "/dev/null",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "MLX_DISABLE_COMPILE": "1",  # g++ takes seconds in each actor
    }
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ray_driver", str(out / "job.json")],
        env=environment,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed, _ = driver.communicate(timeout=LIMIT)
        assert driver.returncode == 0, printed[-5000:]
        yield out
    finally:
        _kill(driver, sockets)
        shutil.rmtree(sockets, ignore_errors=True)


def _kill(driver: subprocess.Popen[str], sockets: Path) -> None:
    """End the driver, and what it started: the processes of its group, and those with its folder in their command."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,command="], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        pid, _, command = line.strip().partition(" ")
        if str(sockets) in command:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _log(results: Path) -> list[Any]:
    return [json.loads(line) for line in (results / "log").read_text().splitlines()]


def test_an_actor_is_killed_and_no_row_is_lost_or_there_twice(results: Path, tiny_checkpoint: Path) -> None:
    assert (results / "log.killed").exists()
    assert len({process for process, *_ in _log(results)}) == 3  # two actors, and the one that Ray started again
    embedded = pd.read_pickle(results / "embedded")
    assert list(embedded.columns) == ["row", "text", "vector"]
    assert embedded["row"].tolist() == list(range(ROWS))
    given = texts()["text"].fillna("").tolist()
    assert embedded["text"].fillna("").tolist() == given
    expected = SentenceEncoder.from_pretrained(tiny_checkpoint, pooling="mean").encode(given)
    vectors = np.stack(embedded["vector"])
    assert vectors.dtype == np.float32
    assert np.abs(vectors - expected).max() <= 1e-6


def test_the_killed_batch_was_computed_again(results: Path) -> None:
    rows = [row for *_, batch in _log(results) for row in batch]
    assert len(rows) == ROWS + 10
    assert set(rows) == set(range(ROWS))


def test_an_actor_of_one_cpu_has_one_thread(results: Path) -> None:
    assert {tuple(threads) for _, *threads, _ in _log(results)} == {(1, "1")}


def test_the_predictions_are_those_of_the_run(results: Path, runs: dict[str, Run]) -> None:
    predicted = pd.read_pickle(results / "predicted")
    with pytest.warns(DataWarning):  # one row has no text
        expected = runs["binary"].predict(texts(), id="row")
    assert predicted["row"].tolist() == list(range(ROWS))
    assert list(predicted.columns) == ["row", "text", *expected.columns[1:]]
    for name in expected.columns[1:]:
        given, found = expected[name].to_numpy(), predicted[name].to_numpy()
        assert (found == given).all() if given.dtype == object else np.abs(found - given).max() <= 1e-6


def test_the_example_writes_every_row(results: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(results / "example")
    assert sorted(table["id"].to_pylist()) == list(range(100))
    assert table.schema.field("embedding").type.list_size == 48
    assert table.schema.field("embedding").type.value_type == "float"


def test_a_model_that_is_not_there_is_named(results: Path) -> None:
    assert "/not/there: no such directory" in pickle.loads((results / "error").read_bytes())
