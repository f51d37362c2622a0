"""Compute a batch in shards of its rows on a CPU, each on its own thread; see `mlxbert.backend.threads`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx

from mlxbert.backend.threads import begin, compute, is_traced, shares, streams, thread_count

if TYPE_CHECKING:
    from mlxbert.models.base import Encoder, Inputs

Run = Callable[..., list[list[mx.array]]]


def run_in_shards(core: Encoder, inputs: Inputs, run: Run) -> list[list[mx.array]]:
    """Return `run(inputs)`: a large batch is computed in shards on several threads.

    Any other batch is begun to be computed while the rest of its graph is built.

    The number of shards changes the last bits, and depends only on the batch's shape and the number of threads. While
    a transformation of MLX runs, the batch stays whole, because results that are computed have no gradient.

    Args:
        core: the encoder that runs; in evaluation mode.
        inputs: the checked batch.
        run: returns lists of arrays of first axis B; takes inputs, and on request `begin`, which it calls with arrays
            on the way.

    Raises:
        InputError: an id outside its table.
    """
    rows = shares(inputs.shape[0], math.prod(inputs.shape), thread_count())
    if is_traced():
        return run(inputs)
    if len(rows) == 1:
        return run(inputs, begin=begin)
    # Of the whole batch, because a message names the place of an id.
    ids = {"token_type_ids": inputs.types, "position_ids": inputs.positions}
    if inputs.embeds is None:
        ids["input_ids"] = inputs.ids
    core.check_ids({name: array for name, array in ids.items() if array is not None})
    shards = [_rows(inputs, part) for part in rows]
    # On this thread's stream, before others read them.
    mx.eval(core.parameters(), *(list(_arrays(shard).values()) for shard in shards))
    chosen = streams(len(rows))
    outputs: dict[int, list[list[mx.array]]] = {}

    def build(i: int) -> list[list[mx.array]]:
        with mx.stream(chosen[i]):
            outputs[i] = run(shards[i])
        return outputs[i]

    compute([partial(build, i) for i in range(len(shards))])
    lists = zip(*(outputs[i] for i in range(len(shards))), strict=True)
    return [[mx.concatenate(list(parts)) for parts in zip(*arrays, strict=True)] for arrays in lists]


def _rows(inputs: Inputs, part: slice) -> Inputs:
    """Return some rows of a batch; an array of one row is for all of them."""
    arrays = {name: array if len(array) == 1 else array[part] for name, array in _arrays(inputs).items()}
    return replace(inputs, shape=(part.stop - part.start, inputs.shape[1]), **arrays)


def _arrays(inputs: Inputs) -> dict[str, mx.array]:
    given = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return {name: array for name, array in given.items() if isinstance(array, mx.array)}
