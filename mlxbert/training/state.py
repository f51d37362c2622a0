"""The state of a training on disk: one file that is there whole or not at all, and the kept weights beside it.

    state.safetensors        the state of a `TrainStep`, and the loop's `Position` as JSON in the file's metadata
    kept-<step>.safetensors  the weights that are kept so far; the position has the step of the valid file

The kept weights are written before the state that names them, and older ones are deleted after it: whenever the
process dies, the state names a file that is there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import mlx.core as mx
import numpy as np

from mlxbert.adapters.linear import is_adapter
from mlxbert.errors import MLXBertError, first_ten
from mlxbert.files.output_file import replacing
from mlxbert.files.reading import from_json
from mlxbert.files.safetensors import PlannedTensor, read_safetensors, write_safetensors
from mlxbert.training.gradients import SCALARS, seed_of
from mlxbert.training.optimizer import CORE, Arrays
from mlxbert.training.step import TrainStep

STATE = "state.safetensors"
_DTYPES = {mx.float32: "F32", mx.int32: "I32", mx.uint32: "U32", mx.float16: "F16", mx.bfloat16: "BF16"}
_DICTS = ("weights", "frozen", "means", "squares", "average")
_COUNTERS = ("step", "updates", "batches", "good_steps")
_RANDOM = "random"
_FIX = "free some space and resume the run"


class SaveError(MLXBertError):
    """The saved state cannot be read, or is of another training."""


@dataclass(frozen=True)
class Kept:
    """Step and epoch of the weights that are kept so far."""

    step: int
    epoch: float


@dataclass
class Position:
    """The progress of the training loop.

    Attributes:
        epoch: finished epochs.
        batch: finished batches of this epoch.
        batches_done: of all epochs.
        kept: the weights that are kept so far.
        top: the best value of the metric so far; None: it was undefined.
        stale: evaluations since the best one.
        stopped: whether early stopping has ended the training.
        seconds: that the training took until here, over all sessions.
    """

    epoch: int = 0
    batch: int = 0
    batches_done: int = 0
    kept: Kept | None = None
    top: float | None = None
    stale: int = 0
    stopped: bool = False
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], file: Path, *, batches: int) -> Self:
        """Return the position that `to_dict` wrote into `file`, of a training with `batches` an epoch.

        Raises:
            SaveError: a field is missing, of the wrong type, or beyond this training.
        """
        fix = damage_fix(file)
        position = from_json(cls, fields, place=str(file), fix=fix, error=SaveError)
        counts = (position.epoch, position.batch, position.batches_done, position.stale)
        if min(counts) < 0 or position.batch >= batches:
            raise SaveError(f"{file}: batch {position.batch} of epoch {position.epoch} does not exist; {fix}")
        return position


def step_state(step: TrainStep) -> Arrays:
    """Return everything that `step` depends on, also between two batches of a step, and MLX's random state.

    The frozen weights of an encoder with adapters are left out.

    Keys: "weights.<name>", "frozen.", "means.", "squares.", "average." likewise; "sums.<name>", "sums_loss",
    "sums_weight" and "sums_rows" of accumulated batches; "step", "updates", "batches", "good_steps", "loss_scale";
    "random", the key.
    """
    state: Arrays = {f"{kind}.{name}": array for kind in _DICTS for name, array in _saved(step, kind).items()}
    if step.sums is not None:
        state |= {f"sums.{name}": array for name, array in step.whole_gradients().items()}
        state |= {f"sums_{name}": step.sums[name] for name in SCALARS}
    state |= {name: mx.array(getattr(step, name), mx.int32) for name in _COUNTERS}
    state["loss_scale"] = mx.array(step.loss_scale, mx.float32)  # a power of two: exact
    random: Any = mx.random.state
    state[_RANDOM] = mx.array(random[0])
    mx.eval(state)
    return state


def _saved(step: TrainStep, kind: str) -> Arrays:
    """Return one of the step's dicts, without the weights below adapters: the checkpoint has them."""
    arrays: Arrays = getattr(step, kind)
    if kind != "frozen" or step.model.core.lora is None:
        return arrays
    return {name: array for name, array in arrays.items() if not name.startswith(CORE) or is_adapter(name)}


def restore_step(step: TrainStep, state: Mapping[str, mx.array]) -> None:
    """Restore a state of `step_state`, bit for bit, in a `step` with the same model, rules and settings.

    Raises:
        SaveError: a tensor is missing, unknown, of another shape or dtype, or a counter is negative; then nothing is
            changed.
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
        raise SaveError(
            "the saved state is not one of this model and these settings; fix: resume with those of the run\n"
            + first_ten(problems)
        )
    mx.eval(dict(state))  # a file is read lazily, and the next save may replace it
    numbers = {name: cast(Any, state[name].item()) for name in (*_COUNTERS, "loss_scale")}
    for name, number in numbers.items():
        # The file has no checksum: do not go on with a counter in which a byte is wrong.
        if not 0 <= number < math.inf or (name == "loss_scale" and number == 0):
            raise SaveError(
                f"{name} is {number}, which no training has; fix: delete the saved state, and this model starts anew"
            )
    for kind in _DICTS:
        setattr(step, kind, getattr(step, kind) | {name: state[f"{kind}.{name}"] for name in _saved(step, kind)})
    sums = None
    if "sums_loss" in state:
        gradients = {name: state[f"sums.{name}"] for name in step.weights}
        sums = {"gradients": gradients, **{name: state[f"sums_{name}"] for name in SCALARS}}
    step.restore_sums(sums)
    for name in _COUNTERS:
        setattr(step, name, int(numbers[name]))
    step.loss_scale = float(numbers["loss_scale"])
    mx.random.seed(seed_of(cast(Any, state[_RANDOM].tolist())))
    step.show()


def write_arrays(file: Path, arrays: Arrays, about: Mapping[str, Any] | None = None) -> None:
    """Write `arrays` and a JSON-able `about` to `file`, whole or not at all.

    Raises:
        WriteError: the disk is full, or the file cannot be written; an earlier file is still there.
    """
    planned = [
        PlannedTensor(name, tuple(array.shape), _DTYPES[array.dtype], partial(np.array, array))
        for name, array in arrays.items()
    ]
    metadata = {"format": "mlx", "mlxbert": json.dumps(about or {})}
    needed = sum(tensor.nbytes for tensor in planned)
    with replacing(file, needed=needed, fix=_FIX, follow_links=False) as out:
        write_safetensors(out, planned, metadata=metadata, fix=_FIX)


def read_arrays(file: Path) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays and the `about` of `write_arrays`, in memory.

    Raises:
        SaveError: the file is gone, not regular, or damaged.
    """
    content = read_safetensors(file, SaveError, fix=damage_fix(file))
    if content is None:
        raise SaveError(f"{file} is not there; {damage_fix(file)}")
    arrays, metadata = content
    try:
        about = json.loads(metadata["mlxbert"])
        mx.eval(arrays)
    except (RuntimeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SaveError(f"{file} is damaged ({error}); {damage_fix(file)}") from error
    if not isinstance(about, dict):
        raise SaveError(f"{file} is damaged (no position in it); {damage_fix(file)}")
    return arrays, about


def kept_file(directory: Path, step: int) -> Path:
    """Return the path of the kept weights of `step`."""
    return directory / f"kept-{step}.safetensors"


def delete_other_kept(directory: Path, step: int | None) -> None:
    """Delete all kept weights but those of `step`."""
    for file in directory.glob("kept-*.safetensors"):
        if step is None or file != kept_file(directory, step):
            file.unlink(missing_ok=True)


def damage_fix(file: Path) -> str:
    """Return the fix for a damaged file of a saved state."""
    return f"fix: delete {file.parent}, and this model starts anew"
