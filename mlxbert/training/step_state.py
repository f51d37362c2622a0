"""Everything a `TrainStep` depends on as one flat dict of arrays, to be saved and restored bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import mlx.core as mx

from mlxbert.errors import MLXBertError, first_ten
from mlxbert.training.gradients import SCALARS
from mlxbert.training.optim import Arrays
from mlxbert.training.random_state import seed_of
from mlxbert.training.step import TrainStep

_DICTS = ("weights", "frozen", "means", "squares", "average")
_COUNTERS = ("step", "updates", "batches", "good_steps")
RANDOM = "random"


class StateError(MLXBertError):
    """A state that is not one of this step."""


def step_state(step: TrainStep) -> Arrays:
    """The state of `step`, of a half accumulated one too, and MLX's random state; `mx.save_safetensors` takes it.

    Keys: "weights.<name>", "frozen.", "means.", "squares.", "average." likewise; "sums.<name>", "sums_loss",
    "sums_weight" and "sums_rows" of batches accumulated; "step", "updates", "batches", "good_steps",
    "loss_scale"; "random", the key.
    """
    state: Arrays = {f"{kind}.{name}": array for kind in _DICTS for name, array in getattr(step, kind).items()}
    if step.sums is not None:
        state |= {f"sums.{name}": array for name, array in step.sums["gradients"].items()}
        state |= {f"sums_{name}": step.sums[name] for name in SCALARS}
    state |= {name: mx.array(getattr(step, name), mx.int32) for name in _COUNTERS}
    state["loss_scale"] = mx.array(step.loss_scale, mx.float32)  # a power of two: exact
    random: Any = mx.random.state
    state[RANDOM] = mx.array(random[0])
    mx.eval(state)
    return state


def restore_step(step: TrainStep, state: Mapping[str, mx.array]) -> None:
    """Make `step`, built with the same model, rules and settings, what `step_state` was called on.

    Raises:
        StateError: a tensor is missing, unknown, of another shape or dtype, or a counter is negative: nothing is
            changed then.
    """
    expected = {key: array for key, array in step_state(step).items() if not key.startswith("sums")}
    if "sums_loss" in state:
        expected |= {f"sums.{name}": array for name, array in step.weights.items()}
        expected |= {f"sums_{name}": expected["loss_scale"] for name in SCALARS}
    problems = [f"missing: {key}" for key in expected if key not in state]
    problems += [f"unknown: {key}" for key in state if key not in expected]
    problems += [
        f"{key} is {state[key].shape} {state[key].dtype}, this run has {array.shape} {array.dtype}"
        for key, array in expected.items()
        if key in state and (state[key].shape, state[key].dtype) != (array.shape, array.dtype)
    ]
    if problems:
        raise StateError(
            "the saved state is not one of this model and these settings; fix: resume with those of the run\n"
            + first_ten(problems)
        )
    mx.eval(dict(state))  # a file is read lazily, and the next save may replace it
    numbers = {name: cast(Any, state[name].item()) for name in (*_COUNTERS, "loss_scale")}
    for name, number in numbers.items():
        # A flipped byte has no checksum here; what it makes of a counter must not go on.
        if not 0 <= number < math.inf or (name == "loss_scale" and number == 0):
            raise StateError(
                f"{name} is {number}, which no training has; fix: delete the saved state, and this model starts anew"
            )
    for kind in _DICTS:
        setattr(step, kind, {name: state[f"{kind}.{name}"] for name in getattr(step, kind)})
    step.sums = None
    if "sums_loss" in state:
        gradients = {name: state[f"sums.{name}"] for name in step.weights}
        step.sums = {"gradients": gradients, **{name: state[f"sums_{name}"] for name in SCALARS}}
    for name in _COUNTERS:
        setattr(step, name, int(numbers[name]))
    step.loss_scale = float(numbers["loss_scale"])
    mx.random.seed(seed_of(cast(Any, state[RANDOM].tolist())))
    step.show()
