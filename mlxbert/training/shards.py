"""A batch in shards of its rows, to be computed at the same time: see `mlxbert.training.streams`."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxbert.training.optim import Arrays

# Below, a shard takes less time than handing it over.
_LEAST_TOKENS = 256


@dataclass(frozen=True)
class Shard:
    """Some rows of a batch: what `Gradients.of` takes, and the stream that they are computed on."""

    stream: mx.Stream
    inputs: Arrays
    targets: mx.array
    rows: mx.array


def split_batch(inputs: Arrays, targets: mx.array, rows: mx.array, streams: list[mx.Stream]) -> list[Shard]:
    """One shard for each stream, as equal as can be: fewer where a shard would have under 256 tokens.

    Args:
        inputs: "input_ids" (B, L), and others of first axis B.
        targets: first axis B.
        rows: (B,).
        streams: at least one; the first is used first.
    """
    count = min(len(streams), max(inputs["input_ids"].size // _LEAST_TOKENS, 1), len(rows))
    if count == 1:
        return [Shard(streams[0], inputs, targets, rows)]
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(len(rows)), count)])[:-1].tolist()
    split = {name: mx.split(array, ends) for name, array in inputs.items()}
    all_targets, all_rows = mx.split(targets, ends), mx.split(rows, ends)
    mx.eval(split, all_targets, all_rows)  # on this stream, before others read them
    return [
        Shard(stream, {name: parts[i] for name, parts in split.items()}, all_targets[i], all_rows[i])
        for i, stream in enumerate(streams[:count])
    ]
