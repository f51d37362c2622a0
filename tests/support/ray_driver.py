"""A local Ray, and everything that the tests see of it: ``python -m tests.support.ray_driver JOB.json``.

A process of its own, so that a test can end it, whatever Ray does. The job names a folder for the results ("out"), a
"checkpoint", a "run" and a short folder for Ray's sockets ("sockets").
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlxbert.ray import Embed, Predict

LIMIT = 150
"""Seconds. On an idle machine everything takes 20."""
ROWS = 160
"""Rows of the texts."""


def texts() -> pd.DataFrame:
    """Return rows with different texts; one has none."""
    rng = np.random.default_rng(0)
    made: list[Any] = [" ".join(rng.choice(list("abcdef"), 2 + row % 9)) for row in range(ROWS)]
    made[7] = None
    return pd.DataFrame({"row": np.arange(ROWS), "text": made})


class Dying(Embed):
    """Embeds; the process that embeds the third batch kills itself in the middle of it, once.

    Each batch leaves a line in `log`: the process, its threads, and the batch's rows.
    """

    def __init__(self, log: str, **options: Any):
        super().__init__(**options)
        self.log = Path(log)

    def __call__(self, batch: Any) -> Any:
        from mlxbert.backend.threads import thread_count

        embedded = super().__call__(batch)
        line = [os.getpid(), thread_count(), os.environ.get("RAYON_NUM_THREADS"), batch["row"].tolist()]
        with self.log.open("a") as file:  # a line is written at once
            file.write(json.dumps(line) + "\n")
        if len(self.log.read_text().splitlines()) >= 3:
            try:
                self.log.with_suffix(".killed").touch(exist_ok=False)
            except FileExistsError:
                return embedded
            os.kill(os.getpid(), signal.SIGKILL)
        return embedded


def main() -> None:
    """Run all parts on one Ray."""
    job = json.loads(Path(sys.argv[1]).read_text())
    signal.alarm(LIMIT)  # ends this process, and Ray's end with it, also if whoever started it is dead
    import ray
    from ray.data import ActorPoolStrategy, DataContext, from_pandas

    import examples.ray_embed

    ray.init(
        num_cpus=3,  # two actors, and one to read on
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        _temp_dir=job["sockets"],
        _node_ip_address="127.0.0.1",
    )
    try:
        DataContext.get_current().execution_options.preserve_order = True
        out, pool = Path(job["out"]), {"compute": ActorPoolStrategy(size=2), "num_cpus": 1, "batch_size": 10}
        rows = from_pandas(texts()).repartition(8).materialize()
        options = {"log": str(out / "log"), "model": job["checkpoint"], "column": "vector"}
        rows.map_batches(Dying, fn_constructor_kwargs=options, **pool).to_pandas().to_pickle(out / "embedded")
        predicted = rows.map_batches(
            Predict, fn_constructor_kwargs={"run": job["run"]}, batch_format="pyarrow", **pool
        )
        predicted.to_pandas().to_pickle(out / "predicted")
        examples.ray_embed.main([job["checkpoint"], "--rows", "100", "--actors", "1", "-o", str(out / "example")])
        try:
            pool["compute"] = ActorPoolStrategy(size=1)
            rows.map_batches(Embed, fn_constructor_kwargs={"model": "/not/there"}, **pool).materialize()
        except Exception as error:
            (out / "error").write_bytes(pickle.dumps(str(error)))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
