"""Ray: embed many texts on several processes, or machines, into Parquet.

    pip install ".[cpu,kaggle,ray]"                       # on a Mac ".[kaggle,ray]"
    python -m examples.ray_embed mlx_models/minilm --rows 10000 --actors 2 -o embeddings

Without a running cluster it starts a local Ray. On a cluster (`ray job submit`, or RAY_ADDRESS) every node needs
mlxbert, and the model under the same path.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from heads.command_line import install_fix

WORDS = ("the", "a", "cat", "dog", "house", "tree", "river", "sleeps", "runs", "waits", "on", "near", "red", "old")


def texts(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch of `ray.data.range` with a text of 20 words for every row."""
    import numpy as np

    made = [" ".join(np.random.default_rng(row).choice(WORDS, 20)) for row in batch["id"].tolist()]
    return {"id": batch["id"], "text": np.array(made, object)}


def main(argv: list[str] | None = None) -> int:
    """Embed the rows, write them, and return their number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a converted directory")
    parser.add_argument("--rows", type=int, default=10_000, help="(default: 10000)")
    parser.add_argument("--actors", type=int, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("-o", "--out", type=Path, default=Path("embeddings"), help="(default: embeddings)")
    options = parser.parse_args(argv)
    try:
        import ray
        from ray.data import ActorPoolStrategy, range
    except ModuleNotFoundError:
        raise SystemExit(f"ray is not installed; fix: {install_fix('ray')}") from None
    from mlxbert.ray import Embed

    if not ray.is_initialized():
        # One CPU more than the actors take. Ray Data reads on it, and would wait for ever if there were none.
        ray.init(num_cpus=options.actors + 1, include_dashboard=False)
    rows = range(options.rows, override_num_blocks=max(4 * options.actors, options.rows // 10_000))
    embedded = rows.map_batches(texts).map_batches(
        Embed,
        fn_constructor_kwargs={"model": str(options.model.resolve()), "text": "text"},
        compute=ActorPoolStrategy(size=options.actors),
        num_cpus=1,
        batch_size=1024,
        batch_format="pyarrow",
    )
    start = time.perf_counter()
    embedded.write_parquet(str(options.out.resolve()))
    seconds = time.perf_counter() - start
    print(f"{options.rows} rows in {seconds:.1f} s with {options.actors} actors, written to {options.out}")
    return options.rows


if __name__ == "__main__":
    main()
