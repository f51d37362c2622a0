"""The contract of an encoder: what every architecture provides, and the code that all of them share.

An architecture is a file in this folder: configuration (`EncoderConfig`), modules, an `Encoder` built of them, and the
facts that `mlxbert.models.architecture` registers. The rest of the project uses only this contract.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.arrays import host_values
from mlxbert.model_arrays import InputError, check_range, mask_of, whole_numbers
from mlxbert.models.architecture import POOLER as POOLER
from mlxbert.models.architecture import Architecture, architecture
from mlxbert.models.shards import run_in_shards
from mlxbert.pooling import pool

if TYPE_CHECKING:
    from mlxbert.adapters.settings import LoRA
    from mlxbert.quantization import PackedWeights

Context = dict[str, mx.array]
"""Arrays that the layers need besides their input: masks, and arrays that depend on parameters or positions."""

LayerRunner = Callable[[int, mx.array, Context, bool], tuple[mx.array, mx.array | None]]
"""`Encoder.run_layer` or something that computes the same."""


# The encoder


@dataclass(frozen=True)
class Inputs:
    """The checked arguments of an encoder.

    Attributes:
        shape: (B, L).
        ids: (B, L); None if only `embeds` are given.
        mask: 1 for real tokens; (B, L), (B, L, L) or (B, H, L, L); None: all are real.
        types: (B, L); None: all 0.
        positions: (B, L) or (1, L); None: the architecture's own.
        embeds: (B, L, E), replaces the rows of the word embeddings; None: the ids' rows.
    """

    shape: tuple[int, int]
    ids: mx.array | None = None
    mask: mx.array | None = None
    types: mx.array | None = None
    positions: mx.array | None = None
    embeds: mx.array | None = None

    def counted_positions(self, padding: int) -> mx.array:
        """Return positions (B, L) from `padding` + 1 on, and `padding` at ids of padding; the mask is ignored.

        transformers `create_position_ids_from_input_ids`. Without ids they are counted through, (1, L), as
        `create_position_ids_from_inputs_embeds` does.
        """
        if self.ids is None:
            return mx.arange(padding + 1, padding + 1 + self.shape[1])[None]
        real = (self.ids != padding).astype(mx.int32)
        return mx.cumsum(real, axis=1) * real + padding

    @property
    def keep(self) -> mx.array | None:
        """The mask as booleans that broadcast to (B, H, L, L), True = attend; None: attend to all.

        Never an additive mask: a row with no kept key is then uniform instead of NaN.
        """
        if self.mask is None:
            return None
        keep = self.mask.astype(mx.bool_)
        return keep[:, None, None, :] if keep.ndim == 2 else keep[:, None] if keep.ndim == 3 else keep


@dataclass(frozen=True)
class BertOutput:
    """Output of an encoder; the field names are those of transformers.

    Attributes:
        last_hidden_state: (B, L, D).
        pooler_output: (B, D), tanh of the first token's dense layer; None for an encoder without a pooler.
        hidden_states: on request, embeddings and each layer's output: num_layers + 1 arrays (B, L, D).
        attentions: on request, each layer's attention weights after softmax, (B, H, L, L).
    """

    last_hidden_state: mx.array
    pooler_output: mx.array | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None

    def pool(self, strategy: str = "mean", mask: mx.array | None = None) -> mx.array:
        """Return one vector a text, (B, D); `mask` (B, L) is 1 for real tokens. See `mlxbert.pooling.POOLING`."""
        return pool(strategy, self.last_hidden_state, mask, self.pooler_output)


@dataclass(frozen=True)
class LinearGroup:
    """Linear layers that read the same array.

    Attributes:
        stage: when they run: 0 in `embed`, i + 1 in layer i, `num_layers` + 1 after the layers (the pooler).
        paths: their paths in the module tree, in order of computation. A Linear that runs several times is in several
            groups.
    """

    stage: int
    paths: tuple[str, ...]


class Encoder(nn.Module, ABC):
    """Token ids to hidden states; the module tree has the names of the checkpoint's tensors.

    The forward pass, parity layer by layer, calibration, gradient checkpointing and learning rates by depth use only
    `embed`, `run_layer`, `finish` and `pool`. A pooler is the child `pooler`, called with (B, L, D).

    Attributes:
        config: the configuration.
        packed: the packed weights of a quantized checkpoint, for `save`; None otherwise.
        lora: the settings of its adapters; None: it has none.
        layer_runner: computes layers instead of `run_layer`; None: `run_layer`.
        splits_batches: whether a large batch may be computed in shards, each on its own thread.
    """

    def __init__(self, config: Any):
        super().__init__()
        # Every module that draws its first weights adds to a chain of keys, and `mx.grad` follows a chain that nobody
        # evaluated by recursion: some ten thousand modules, and the process ends by a stack overflow.
        mx.eval(mx.random.state)
        self.config = config
        self.packed: PackedWeights | None = None
        self.lora: LoRA | None = None
        self.layer_runner: LayerRunner | None = None
        self.splits_batches = True

    # An architecture implements these.

    @abstractmethod
    def embed_inputs(self, inputs: Inputs) -> tuple[mx.array, Context]:
        """Return the embeddings (B, L, D), and every array that the layers need beside them."""

    @abstractmethod
    def run_layer(
        self, i: int, x: mx.array, context: Context, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Run layer `i`: (B, L, D) to (B, L, D), and on request its attention weights (B, H, L, L)."""

    layers_path: ClassVar[str]
    """The path of the list of layers, if they share no parameters; else the next three are the architecture's own."""
    above_layers: ClassVar[tuple[str, ...]] = (POOLER,)
    """What the names of the tensors above the layers begin with."""

    def layer_modules(self, i: int) -> tuple[nn.Module, ...]:
        """Return the modules whose parameters layer `i` reads; layers may share them."""
        return (module_at(self, f"{self.layers_path}.{i}"),)

    def layer_name(self, i: int) -> str:
        """Return the name of layer `i` in reports: the path of its module, if no other layer uses it."""
        return f"{self.layers_path}.{i}"

    def depth_of(self, name: str) -> int:
        """Return how deep a tensor lies: 0 in the embeddings, i + 1 in layer i, `num_layers` above the layers.

        For a tensor that several layers share, it is the lowest of their depths.
        """
        match = re.match(rf"{re.escape(self.layers_path)}\.(\d+)\.", name)
        if match is not None:
            return int(match[1]) + 1
        return self.num_layers if name.startswith(self.above_layers) else 0

    def finish(self, x: mx.array) -> mx.array:
        """Turn the last layer's output into the last hidden state, (B, L, D): a final norm, if there is one."""
        return x

    def set_dropout(self, probability: float) -> None:
        """Drop this share of hidden values and attention weights in training, instead of what the config says.

        Raises:
            ValueError: not from 0 to below 1.
        """
        if not 0 <= probability < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {probability}")
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module._p_1 = 1 - probability

    @property
    def padding_rows(self) -> Mapping[str, int]:
        """Return name of a table's tensor -> its row without a gradient: torch's `padding_idx`."""
        pad = self.config.pad_token_id
        return {} if pad is None else {self.architecture.word_embeddings: pad}

    # The rest uses them.

    @property
    def architecture(self) -> Architecture:
        """The facts about this encoder's architecture."""
        return architecture(self.config.model_type)

    @property
    def core(self) -> Encoder:
        """The encoder itself: a model with a head has it under the same name."""
        return self

    @property
    def num_layers(self) -> int:
        """The number of layers that run in sequence."""
        return int(self.config.num_layers)

    @property
    def tables(self) -> Mapping[str, str]:
        """Those of the architecture's embedding tables that this encoder has."""
        paths = {path for path, _ in self.named_modules()}
        return {kind: path for kind, path in self.architecture.tables.items() if path in paths}

    @property
    def has_pooler(self) -> bool:
        """Whether the checkpoint has a pooler."""
        return "pooler" in self

    def pool(self, x: mx.array) -> mx.array | None:
        """Return the pooler's output (B, D) for the last hidden state; None without a pooler."""
        return self.pooler(x) if self.has_pooler else None

    def decode(self, x: mx.array) -> mx.array:
        """Use the word embeddings backwards: (…, E) -> (…, vocabulary), without a bias."""
        return module_at(self, self.architecture.tables["word"]).as_linear(x)

    def is_norm(self, name: str) -> bool:
        """Return whether a tensor of this name belongs to a normalization, which is neither decayed nor quantized."""
        return isinstance(module_at(self, name.rpartition(".")[0]), nn.LayerNorm | nn.RMSNorm)

    def embed(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: mx.array | None = None,
    ) -> tuple[mx.array, Context]:
        """Check a batch, and return its embeddings (B, L, D) and the other arrays that the layers need.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as `__call__`'s.

        Raises:
            InputError: as `__call__`.
        """
        return self.embed_inputs(self._checked(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds))

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        *,
        inputs_embeds: mx.array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BertOutput:
        """Encode a batch of token ids.

        In evaluation mode on a CPU, a large batch is computed in this call, in shards on several threads
        (`splits_batches`). Otherwise MLX computes when a result is read.

        Args:
            input_ids: (B, L) whole numbers below `vocab_size`; an `mx.array`, a NumPy array or lists.
            attention_mask: 1 for real tokens and 0 for padding: (B, L), (B, L, L) or (B, H, L, L), where the
                third axis may be 1; None: all are real.
            token_type_ids: (B, L), 0 for the first text and 1 for the second; None: all 0. An encoder without token
                types takes only 0, or, if its tokenizer gives types, ignores them as transformers does.
            position_ids: (B, L) or (1, L); None: as the architecture counts them.
            inputs_embeds: (B, L, E), instead of the rows of the word embeddings; `input_ids` beside them only mark
                padding.
            output_hidden_states: also return the embeddings' and each layer's output.
            output_attentions: also return each layer's attention weights.

        Raises:
            InputError: a shape that does not fit, a text that is too long, or an id outside its table. Inside
                `mx.compile` and `mx.vmap`, where ids have no values yet, such an id gives a row of NaN.
        """
        inputs = self._checked(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        run = partial(self._run, output_hidden_states, output_attentions)
        whole = self.training or not self.splits_batches or self.layer_runner is not None
        states, attentions = run(inputs) if whole else run_in_shards(self, inputs, run)
        return BertOutput(
            last_hidden_state=states[-1],
            pooler_output=self.pool(states[-1]),
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _run(
        self,
        output_hidden_states: bool,
        output_attentions: bool,
        inputs: Inputs,
        begin: Callable[[mx.array], None] | None = None,
    ) -> list[list[mx.array]]:
        """Return the requested hidden states, the last one at least, and the requested attention weights.

        `begin` is called with the output of every second layer.
        """
        x, context = self.embed_inputs(inputs)
        run_layer = self.layer_runner or self.run_layer
        # Keep only requested outputs, so that later layers can reuse the memory.
        states = [x] if output_hidden_states else []
        attentions = []
        for i in range(self.num_layers):
            x, weights = run_layer(i, x, context, output_attentions)
            if begin is not None and i % 2 == 0:
                begin(x)
            if output_hidden_states:
                states.append(x)
            if weights is not None:
                attentions.append(weights)
        return [[*states[:-1], self.finish(x)], attentions]

    def check_ids(self, inputs: Mapping[str, mx.array]) -> None:
        """Check a batch on the host before a compiled function, which cannot check its ids.

        Raises:
            InputError: an id outside its table.
        """
        for name, rows in self.config.table_rows.items():
            values = host_values(inputs[name]) if name in inputs else None
            if values is not None:
                check_range(name, values, rows)

    @contextmanager
    def watched(self, call: Callable[[str, nn.Module, mx.array], mx.array]) -> Iterator[None]:
        """Compute, inside, every Linear of the encoder by `call(path, linear, x)`; restore them afterwards."""
        linears = [(path, module) for path, module in self.named_modules() if _is_linear(module)]
        before = self.splits_batches
        try:
            self.splits_batches = False  # `call` gets the whole batch
            for path, linear in linears:
                put_module(self, path, _Watched(path, linear, call))
            yield
        finally:
            self.splits_batches = before
            for path, linear in linears:
                put_module(self, path, linear)

    def linears(self) -> tuple[LinearGroup, ...]:
        """Return every Linear in order of computation, those that read the same array as one group.

        They are found by running the encoder on two tokens, which only builds the graph.
        """
        groups: list[tuple[int, mx.array, list[str]]] = []
        stage = 0

        def note(path: str, linear: nn.Module, x: mx.array) -> mx.array:
            if groups and groups[-1][0] == stage and groups[-1][1] is x:
                groups[-1][2].append(path)
            else:
                groups.append((stage, x, [path]))
            output: mx.array = linear(x)
            return output

        with self.watched(note):
            x, context = self.embed(mx.zeros((1, min(2, self.config.max_length)), mx.int32))
            for i in range(self.num_layers):
                stage = i + 1
                x, _ = self.run_layer(i, x, context)
            stage = self.num_layers + 1
            self.pool(self.finish(x))
        return tuple(LinearGroup(stage, tuple(paths)) for stage, _, paths in groups)

    def _checked(self, input_ids: Any, attention_mask: Any, types: Any, positions: Any, embeds: Any) -> Inputs:
        """Return the arguments of a call as arrays of the right shape."""
        ids = None if input_ids is None else whole_numbers("input_ids", input_ids)
        if ids is None and embeds is None:
            raise InputError("input_ids are missing; fix: give input_ids, or inputs_embeds in their place")
        if ids is not None and (ids.ndim != 2 or ids.size == 0):
            raise InputError(f"input_ids has shape {ids.shape}; expected (batch, length), both at least 1")
        if embeds is not None and (embeds.ndim != 3 or embeds.size == 0):
            raise InputError(f"inputs_embeds has shape {embeds.shape}; expected (batch, length, width)")
        if embeds is not None and ids is not None and embeds.shape[:2] != ids.shape:
            raise InputError(f"inputs_embeds has shape {embeds.shape}; expected {(*ids.shape, 'width')}")
        B, L = embeds.shape[:2] if ids is None else ids.shape
        limit = self.config.longest_input
        if limit < L and positions is None:
            raise InputError(f"input_ids: {L} tokens, but this model has {limit} positions; truncate to {limit}")
        if types is not None:
            types = whole_numbers("token_type_ids", types)
            _check_shape("token_type_ids", types, (B, L))
            if "token_type_ids" not in self.config.table_rows:
                values = host_values(types)
                if values is not None and not self.architecture.has_token_types:
                    _refuse_types(values)
                types = None
        mask = None if attention_mask is None else mask_of("attention_mask", attention_mask)
        if mask is not None and mask.ndim not in (3, 4):
            _check_shape("attention_mask", mask, (B, L))
        elif mask is not None:
            heads = self.config.num_attention_heads
            full = (B, L, L) if mask.ndim == 3 else (B, heads, L, L)
            if mask.shape[-1] != L or any(have not in (1, want) for have, want in zip(mask.shape, full, strict=True)):
                raise InputError(f"attention_mask has shape {mask.shape}; expected {full}, or 1 in the place of one")
        if mask is not None:
            values = host_values(mask)
            if values is not None and values.all():
                mask = None  # the same numbers without a pass over the scores
        if positions is not None:
            positions = whole_numbers("position_ids", positions)
            if positions.shape != (1, L):
                _check_shape("position_ids", positions, (B, L))
        return Inputs((B, L), ids, mask, types, positions, embeds)


class _Watched(nn.Module):
    """A Linear that another function computes."""

    def __init__(self, path: str, linear: nn.Module, call: Callable[[str, nn.Module, mx.array], mx.array]):
        super().__init__()
        # A tuple under a private name: neither a parameter nor a child.
        self._call = (path, linear, call)

    def __call__(self, x: mx.array) -> mx.array:
        path, linear, call = self._call
        return call(path, linear, x)


def module_at(module: nn.Module, path: str) -> Any:
    """Return the module at a dotted path of the tree; a number is an index of a list."""
    place: Any = module
    for name in path.split(".") if path else ():
        place = place[int(name)] if isinstance(place, list) else place[name]
    return place


def put_module(module: nn.Module, path: str, new: nn.Module) -> None:
    """Replace the module at a dotted path of the tree."""
    parent, _, leaf = path.rpartition(".")
    place = module_at(module, parent)
    place[int(leaf) if isinstance(place, list) else leaf] = new


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.QuantizedLinear)


def _refuse_types(types: Any) -> None:
    """Refuse token types other than 0, for an encoder that has none."""
    if types.any():
        raise InputError(
            "token_type_ids: this model has no token types; fix: leave token_type_ids out, as its own tokenizer does"
        )


def _check_shape(name: str, array: mx.array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise InputError(f"{name} has shape {array.shape}; expected {shape}, that of input_ids")
