"""`TrainStep`: the gradients of the accumulated batches, then one update of the weights.

With the mean loss l_i of batch i (`Head.loss`), and the divisor of that mean w_i (`Head.loss_weight`: real rows, their
class weights, their known labels), the step minimizes

    L = Σ w_i l_i / Σ w_i

So four batches of 8 are one batch of 32, a short last batch counts by its rows, and workers that add up their `Sums`
are one worker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from mlxbert.backend.device import reuse_memory
from mlxbert.backend.threads import evaluate, streams
from mlxbert.errors import MLXBertError
from mlxbert.model_arrays import named_parameters
from mlxbert.quantization import refuse_training
from mlxbert.training.gradients import (
    AWP,
    COMPUTE_DTYPES,
    FGM,
    MOST_SHARDS,
    SCALARS,
    Gradients,
    Shard,
    Sums,
    add_up,
    in_dtype,
    parts,
    seed_of,
    split_batch,
    split_state,
    take,
)
from mlxbert.training.optimizer import (
    AdamW,
    Arrays,
    ConfigurationError,
    Rule,
    Schedule,
    clip_factor,
    ema_decay,
    ema_update,
    global_norm,
    squared_norms,
    trainable,
)
from mlxbert.training.parallel import World
from mlxbert.training.word_rows import INDEX, WordRows, squared_rows, word_rows

# float16 gradients below 6e-8 are 0, so the loss is scaled up: half as much after an overflow, twice as much after
# this many good steps (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740, section 3.2).
_FIRST_SCALE = 2.0**10
_LARGEST_SCALE = 2.0**24
_STEPS_TO_GROW = 1000
# AdamW squares the gradient, and float32 ends at 3.4e38.
_LARGEST_NORM = 1e19


class TrainingError(MLXBertError):
    """The training cannot go on; the saved state stays."""


class NonFiniteLossError(TrainingError):
    """The loss or its gradient is NaN or infinite; the weights are those before the step."""


@dataclass(frozen=True)
class StepSettings:
    """All settings of a step except rates and schedule.

    Attributes:
        optimizer: with its constants.
        max_norm: of the gradient, over all parameters; None: no clipping.
        ema_decay: of the moving average of the weights; None: no average.
        compute_dtype: of the encoder: "float32", "bfloat16" or "float16". Weights, optimizer, head and loss are always
            float32, and so are the sums in softmax and LayerNorm.
        checkpoint_layers: recompute each layer's activations in the backward pass: less memory, more time.
        adversarial: use the mean of the clean and the adversarial gradient; the reported loss is the clean one.
        on_nonfinite: "stop": raise `NonFiniteLossError`; "skip": leave such a batch, or step, out.
        compiled: use `mx.compile`.
    """

    optimizer: AdamW = field(default_factory=AdamW)
    max_norm: float | None = 1.0
    ema_decay: float | None = None
    compute_dtype: str = "float32"
    checkpoint_layers: bool = False
    adversarial: FGM | AWP | None = None
    on_nonfinite: str = "stop"
    compiled: bool = True

    def __post_init__(self) -> None:
        if self.compute_dtype not in COMPUTE_DTYPES:
            known = ", ".join(COMPUTE_DTYPES)
            raise ConfigurationError(f"compute_dtype {self.compute_dtype!r} is unknown; known: {known}")
        if self.on_nonfinite not in ("stop", "skip"):
            raise ConfigurationError(f"on_nonfinite must be 'stop' or 'skip', not {self.on_nonfinite!r}")
        if self.max_norm is not None and not self.max_norm > 0:
            raise ConfigurationError(f"max_norm must be above 0, or None for no clipping, not {self.max_norm}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigurationError(f"ema_decay must be at least 0 and below 1, or None, not {self.ema_decay}")


@dataclass(frozen=True)
class StepReport:
    """What a step did: number (from 1), mean loss, real rows, schedule factor, gradient norm before clipping."""

    step: int
    loss: float
    rows: int
    factor: float
    norm: float
    skipped: bool


class TrainStep:
    """Trains `model`, which always has the current weights, in float32.

    In a world of several ranks each one is given the whole batches, and computes its part of their rows.

    Attributes:
        step: finished steps, also skipped ones; the schedule's position.
        updates: steps that changed the weights; AdamW's t.
        batches: accumulated batches of the current step.
        sums: of these batches, of this rank's rows; None: there are none.
        words: the rows of the word embeddings whose gradients are in `sums`; None: all rows.
    """

    def __init__(
        self,
        model: Any,
        rules: Mapping[str, Rule],
        schedule: Schedule,
        settings: StepSettings | None = None,
        world: World | None = None,
    ):
        """Take over `model`, with the rules of `parameter_rules`.

        Raises:
            ConfigurationError: everything is frozen, or the settings do not go with several ranks.
            QuantizationError: the model is quantized, and has no adapters (the message says what to train instead).
        """
        if model.core.lora is None:
            refuse_training(model)
        reuse_memory(training=True)
        self.model, self.schedule = model, schedule
        self.settings = settings or StepSettings()
        self.world = world or World()
        if self.world.size > 1 and self.settings.adversarial is not None:
            raise ConfigurationError(
                "adversarial training needs the gradient of the whole batch, and each of several processes has only "
                "its rows; fix: train in one process (--workers trains folds side by side), or without adversarial"
            )
        self.rules = dict(rules)
        names = trainable(self.rules)
        masters = {name: in_dtype(array, mx.float32) for name, array in named_parameters(model).items()}
        self.weights: Arrays = {name: masters[name] for name in names}
        self.frozen: Arrays = {name: array for name, array in masters.items() if name not in self.weights}
        self.means: Arrays = {name: mx.zeros_like(array) for name, array in self.weights.items()}
        self.squares: Arrays = {name: mx.zeros_like(array) for name, array in self.weights.items()}
        # + 0 makes new arrays, because an update may reuse the weights' memory.
        keeps_average = self.settings.ema_decay is not None
        self.average: Arrays = {name: array + 0 for name, array in self.weights.items()} if keeps_average else {}
        self.sums: Sums | None = None
        self.words: WordRows | None = None
        # The different ids of the step's batches: with several ranks, only their rows are sent.
        self._used: np.ndarray = np.zeros(0, np.int32)
        self.step, self.updates, self.batches, self.good_steps = 0, 0, 0, 0
        self.loss_scale = _FIRST_SCALE if self.settings.compute_dtype == "float16" else 1.0
        self._gradients = Gradients(
            model, names, self.settings.compute_dtype, self.settings.checkpoint_layers, self.settings.adversarial
        )
        # The random state is an input and an output, for heads that draw from it: a constant one would repeat.
        compiled = self.settings.compiled
        random: Any = {"inputs": mx.random.state, "outputs": mx.random.state}
        self._sums = mx.compile(self._gradients.of, **random) if compiled else self._gradients.of
        self._add_up = mx.compile(add_up) if compiled else add_up
        self._apply = mx.compile(self._update) if compiled else self._update
        self._squared_norms = mx.compile(squared_norms) if compiled else squared_norms
        self._squared_rows = mx.compile(squared_rows) if compiled else squared_rows
        self._table = self._gradients.words if self._gradients.words in self.weights else None
        # An adversarial step needs the gradient of the whole batch before it goes on.
        self._streams = streams(1 if self.settings.adversarial else MOST_SHARDS)
        # Of the word embeddings, sums and norm take only the rows in use, and the update takes every row.
        sizes = {name: array.size for name, array in self.weights.items()}
        self._parts = parts(sizes)
        self._sum_parts = parts({name: 0 if name == self._table else size for name, size in sizes.items()})
        self.show()
        mx.eval(self.weights, self.frozen, self.means, self.squares, self.average)

    def __call__(self, batches: Iterable[tuple[Mapping[str, Any], Any, Any]]) -> StepReport:
        """Take one step on batches of (inputs, targets, rows), as for `accumulate`."""
        for inputs, targets, rows in batches:
            self.accumulate(inputs, targets, rows)
        return self.update()

    def accumulate(self, inputs: Mapping[str, Any], targets: Any, rows: Any = None) -> float:
        """Add one batch's gradients; return its mean loss.

        Args:
            inputs: keyword arguments of the model: input_ids, attention_mask, …; first axis B.
            targets: from `head.encode_targets`.
            rows: (B,), 1 for real rows and 0 for fillers; None: all are real.

        Raises:
            NonFiniteLossError: with on_nonfinite="stop"; the message has step and batch.
            InputError: an id is outside its table.
        """
        arrays = {name: mx.array(value) for name, value in inputs.items() if value is not None}
        self.model.core.check_ids(arrays)
        targets = mx.array(targets)
        real = mx.ones((len(targets),)) if rows is None else mx.array(rows).astype(mx.float32)
        words = None
        if self._table is not None and arrays["input_ids"].size:  # the model refuses an empty batch
            words, arrays[INDEX] = word_rows(arrays["input_ids"], len(self.weights[self._table]))
        found = self._compute(self._shards(arrays, targets, real), words)
        self.batches += 1
        own = [sum(_number(sums[name]) for sums in found) for name in ("loss", "weight")]
        loss, weight = self.world.add(f"batch {self.batches} of step {self.step + 1}", own)
        value = loss / weight if weight else loss
        if math.isfinite(value):
            self._add(found or [self._nothing(words)], words)
            if self.world.size > 1 and words is not None:
                self._used = np.union1d(self._used, np.array(words.used))
        elif self.settings.on_nonfinite == "stop":
            raise NonFiniteLossError(
                f"step {self.step + 1}, batch {self.batches} of it: the loss is {value}; the weights are "
                "those of before it; fix: look at its rows, lower the rate, or on_nonfinite='skip'"
            )
        return value

    def update(self) -> StepReport:
        """Change the weights by the gradients since the last update.

        Raises:
            TrainingError: no batch was accumulated.
            NonFiniteLossError: the gradient is not finite, with on_nonfinite="stop" (in float16 the loss scale is
                halved first, as long as possible).
        """
        if self.batches == 0:
            raise TrainingError(f"step {self.step + 1}: nothing to update by; fix: accumulate a batch first")
        factor = self.schedule.factor(self.step)
        batches, self.batches = self.batches, 0
        sums, self.sums = self.sums, None
        words, self.words = self.words, None
        used, self._used = self._used, np.zeros(0, np.int32)
        if sums is not None:
            sums = self._over_ranks(sums, words, used)
        self.step += 1
        weight = 0.0 if sums is None else _number(sums["weight"])
        # No real row, or none with a label, or every batch left out: then no weight decay either.
        if sums is None or weight == 0:
            return StepReport(self.step, math.nan, 0, factor, math.nan, skipped=True)
        loss, rows = _number(sums["loss"]) / weight, int(_number(sums["rows"]))
        norm = _number(self._norm(sums["gradients"], words)) / (weight * self.loss_scale)
        clipped = norm * clip_factor(norm, self.settings.max_norm)
        if not clipped < _LARGEST_NORM:  # NaN, too
            self._overflowed(norm, batches)
            return StepReport(self.step, loss, rows, factor, norm, skipped=True)
        self.updates += 1
        scalars = self.settings.optimizer.scalars(self.rules, factor, self.updates)
        scale = clip_factor(norm, self.settings.max_norm) / (weight * self.loss_scale)
        scalars["gradient"] = mx.array(scale, mx.float32)
        if self.settings.ema_decay is not None:
            scalars["average"] = mx.array(ema_decay(self.settings.ema_decay, self.updates), mx.float32)
        self._change(sums.pop("gradients"), words, scalars)
        self.show()
        self._grow_scale()
        return StepReport(self.step, loss, rows, factor, norm, skipped=False)

    def show(self, weights: Arrays | None = None) -> None:
        """Put the current weights, or others such as `average`, into the model; frozen weights stay."""
        shown = {**self.frozen, **self.weights, **(weights or {})}
        self.model.update(tree_unflatten(list(shown.items())))

    def whole_gradients(self) -> Arrays:
        """Return the gradients of `sums`, that of the word embeddings with all rows."""
        assert self.sums is not None
        gradients: Arrays = dict(self.sums["gradients"])
        if self.words is not None and self._table is not None:
            gradients[self._table] = self.words.whole(gradients[self._table], len(self.weights[self._table]))
            mx.eval(gradients[self._table])  # on this stream, before others read it
        return gradients

    def restore_sums(self, sums: Sums | None) -> None:
        """Put back saved sums, with the gradients of all rows of the word embeddings; every rank gives the same.

        They are of whole batches: a single process has saved them. So rank 0 has them, and the others have nothing.
        """
        self.sums, self.words = sums, None
        if sums is None or self.world.size == 1:
            return
        if self._table is not None:
            table = np.array(sums["gradients"][self._table])
            self._used = np.flatnonzero((table != 0).any(axis=1)).astype(np.int32)
        if self.world.rank:
            self.sums = self._nothing(None)

    def _shards(self, inputs: Arrays, targets: mx.array, rows: mx.array) -> list[Shard]:
        """Return the shards of this rank's rows; none if the batch has fewer rows than there are ranks."""
        own = self.world.part(len(rows))
        if own.start == own.stop:
            return []
        if self.world.size > 1:
            inputs = {name: array[own] for name, array in inputs.items()}
            targets, rows = targets[own], rows[own]
            mx.eval(inputs, targets, rows)  # on this stream, before others read them
        return split_batch(inputs, targets, rows, self._streams, first=own.start)

    def _nothing(self, words: WordRows | None) -> Sums:
        """Return the sums of no rows."""
        shapes = {name: array.shape for name, array in self.weights.items()}
        if words is not None and self._table is not None:
            shapes[self._table] = (len(words.ids), *shapes[self._table][1:])
        return {
            "gradients": {name: mx.zeros(shape) for name, shape in shapes.items()},
            **{name: mx.array(0.0) for name in SCALARS},
        }

    def _over_ranks(self, sums: Sums, words: WordRows | None, used: np.ndarray) -> Sums:
        """Return the sums of all ranks, the same bits on each; of the word embeddings only `used` rows are sent."""
        if self.world.size == 1:
            return sums
        scalars = self.world.add(f"step {self.step + 1}", [_number(sums[name]) for name in SCALARS])
        gradients: Arrays = sums.pop("gradients")
        rows = mx.array(used.astype(np.int32)) if words is None and self._table is not None and len(used) else None
        if rows is not None and self._table is not None:
            shape, gradients[self._table] = gradients[self._table].shape, gradients[self._table][rows]
        gradients = self.world.sum(gradients)
        if rows is not None and self._table is not None:
            table = mx.zeros(shape)
            table[rows] = gradients[self._table]
            gradients[self._table] = table
            mx.eval(table)
        return {"gradients": gradients, **{n: mx.array(v, mx.float32) for n, v in zip(SCALARS, scalars, strict=True)}}

    def _compute(self, shards: list[Shard], words: WordRows | None = None) -> list[Sums]:
        """Return the sums of each shard; take a key for the batch from the random state, whatever the shards are."""
        key, own, after = split_state(3)
        batch_key = mx.array(key, mx.uint32)
        scale = mx.array(self.loss_scale, mx.float32)
        ids = () if words is None else (words.ids,)
        found: list[Sums] = []
        try:
            for shard in shards:
                # What does not draw by rows draws from a stream of the shard.
                mx.random.seed(seed_of((own[0], (own[1] + shard.first) % 2**32)))
                batch = (shard.inputs, shard.targets, shard.rows)
                first = mx.array(shard.first, mx.uint32)
                with mx.stream(shard.stream):
                    found.append(self._sums(self.weights, self.frozen, *batch, scale, batch_key, first, *ids))
        finally:
            self.show()  # tracing leaves placeholders in the model
            mx.random.seed(seed_of(after))
        if found:
            evaluate(found)
        return found

    def _add(self, found: list[Sums], words: WordRows | None) -> None:
        """Add the sums of a batch's shards to `sums`."""
        if self.sums is None and len(found) == 1:
            self.sums, self.words = found[0], words
            return
        gradients = [sums.pop("gradients") for sums in found]
        total: Arrays = {}
        if self._table is not None and words is not None:
            total |= self._add_up([take((self._table,), arrays) for arrays in gradients])
        before = [] if self.sums is None else [self.sums]
        if before:
            gradients = [self.whole_gradients(), *gradients]
            if self._table is not None and words is not None:
                total[self._table] = words.add(gradients[0].pop(self._table), total[self._table])
            self.sums = words = None
        outputs = [total]
        for part in self._sum_parts:
            with mx.stream(part.stream):
                outputs.append(self._add_up([take(part.names, arrays) for arrays in gradients]))
        mx.eval(total)
        evaluate(outputs[1:])
        for output in outputs[1:]:
            total.update(output)
        scalars = add_up([{name: sums[name] for name in SCALARS} for sums in (*before, *found)])
        mx.eval(scalars)
        self.sums, self.words = {"gradients": {name: total[name] for name in self.weights}, **scalars}, words

    def _norm(self, gradients: Arrays, words: WordRows | None = None) -> mx.array:
        squares: Arrays = {}
        for part in self._sum_parts:
            with mx.stream(part.stream):
                squares.update(self._squared_norms({n: gradients[n] for n in part.names if n != self._table}))
                if self._table is not None and self._table in part.names:
                    rows = self._squared_rows(gradients[self._table])
                    rows = rows if words is None else words.whole(rows, len(self.weights[self._table]))
                    squares[self._table] = rows.sum()
        evaluate([[squares[name] for name in part.names] for part in self._sum_parts])
        return global_norm({name: squares[name] for name in gradients})

    def _change(self, gradients: Arrays, words: WordRows | None, scalars: Arrays) -> None:
        """Update weights, means, squares and average, part by part."""
        old = (self.weights, self.means, self.squares, self.average)
        names = list(self.weights)
        by_rows: list[Arrays] = []
        if words is not None and self._table is not None:
            by_rows = [{name: arrays[name][words.ids] for name in arrays if name == self._table} for arrays in old]
            by_rows.append({self._table: gradients[self._table]})
            mx.eval(by_rows)  # before the table changes in place
            gradients[self._table] = mx.array(0.0)
        changed = []
        for part in self._parts:
            with mx.stream(part.stream):
                w, m, v, average, g = (take(part.names, arrays) for arrays in (*old, gradients))
                changed.append(self._apply(w, m, v, average, g, scalars))
                del w, m, v, average  # MLX then updates in place
        evaluate(changed)
        merged: list[Arrays] = [{}, {}, {}, {}]
        for new in changed:
            for whole, arrays in zip(merged, new, strict=True):
                whole.update(arrays)
        del changed, new, arrays
        if words is not None:
            w, m, v, average, g = by_rows
            for whole, rows in zip(merged, self._apply(w, m, v, average, g, scalars), strict=True):
                for name, values in rows.items():
                    whole[name] = words.replace(whole.pop(name), values)
            mx.eval(merged)
        self.weights, self.means, self.squares, self.average = (
            {name: arrays[name] for name in names if arrays} for arrays in merged
        )

    def _update(
        self, weights: Arrays, means: Arrays, squares: Arrays, average: Arrays, gradients: Arrays, scalars: Arrays
    ) -> tuple[Arrays, Arrays, Arrays, Arrays]:
        scaled = {name: gradient * scalars["gradient"] for name, gradient in gradients.items()}
        new = self.settings.optimizer.apply(weights, means, squares, scaled, self.rules, scalars)
        return *new, ema_update(average, new[0], scalars["average"]) if average else {}

    def _overflowed(self, norm: float, batches: int) -> None:
        self.good_steps = 0
        if self.settings.compute_dtype == "float16" and self.loss_scale > 2.0**-10:
            self.loss_scale /= 2
        elif self.settings.on_nonfinite == "stop":
            raise NonFiniteLossError(
                f"step {self.step}, {batches} batch(es): the gradient's norm is {norm}; the weights are "
                "those of before it; fix: look at its rows, lower the rate, or on_nonfinite='skip'"
            )

    def _grow_scale(self) -> None:
        self.good_steps += 1
        if self.settings.compute_dtype == "float16" and self.good_steps >= _STEPS_TO_GROW:
            self.loss_scale, self.good_steps = min(2 * self.loss_scale, _LARGEST_SCALE), 0


def _number(scalar: mx.array) -> float:
    return float(cast(Any, scalar.item()))
