"""Wrong conversions, on purpose: the mapping gate must see each one with room to spare, and name its layer.

They are found by what a module is (a Linear, a norm, a table), so that every registered architecture gets all of them.
The random model has every parameter random (transformers' own initialisation has LayerNorm at 1 and 0 and biases at 0,
under which swapped tensors compute the same), at scales like those of trained encoders. Mistakes with the options of
one architecture are declared in tests/support/family/.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from converter.parity.gates import compare
from converter.parity.probes import Probe, make_probes
from converter.parity.reference import Reference, ReferenceOutput
from converter.parity.report import LOCAL, MAPPING, PADDING, PRECISION, ParityReport, Provenance
from mlxbert.model_arrays import named_parameters
from mlxbert.models.architecture import architecture, config_from_hf, supported
from mlxbert.models.base import Encoder, Inputs, module_at
from mlxbert.models.config_fields import activation
from tests.support.encoder_pairs import filled
from tests.support.family import Mutation, family_of
from tests.support.tiny import in_config, tiny_model

torch = pytest.importorskip("torch", reason="the reference is PyTorch, which is not installed")
transformers = pytest.importorskip("transformers")

LAYERS = 3
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 40,
}
Mutate = Callable[[Encoder, int], Iterable[nn.Module]]
"""Makes layer i of an encoder wrong; the modules that it changed, none if it changed only how that layer is run."""


class Recorded:
    """A reference that has answered already: the same numbers for every mutation, and PyTorch runs once."""

    def __init__(self, model: Any, probes: tuple[Probe, ...]):
        reference = Reference(model, type(model).__name__)
        self.class_name, self.unexpected, self.notes = reference.class_name, (), ()
        self.fields: dict[str, Any] = model.config.to_dict()
        self.probes = probes
        self._outputs = {probe.name: reference.run(probe) for probe in probes}

    def run(self, probe: Probe) -> ReferenceOutput:
        return self._outputs[probe.name]


def sizes_of(model_type: str) -> dict[str, Any]:
    """`SIZES` under the architecture's names, without those that it does not have."""
    declared = architecture(model_type)
    known = {*declared.config.CHECKS, *declared.config.ALIASES.values()}
    return {name: value for name, value in in_config(declared, SIZES).items() if name in known}


@cache
def random_pair(model_type: str, variant: str | None = None, sized: bool = True) -> tuple[Recorded, Encoder]:
    """A recorded reference and our right encoder; of the tiny configuration, in `SIZES` or with a variant's fields."""
    fields = sizes_of(model_type) if sized else {}
    if variant is not None:
        fields |= family_of(model_type).variants[variant]
    encoder = architecture(model_type).encoder_class
    model = tiny_model(encoder, attn_implementation="eager", like_trained=True, **fields)
    core = filled(model)
    return Recorded(model, make_probes(core.config)), core


@cache
def minilm_pair(directory: Path) -> tuple[Recorded, Encoder]:
    model = transformers.BertModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    core = filled(model)
    # Two short ones: the layers are real, and what is tested here is the gate.
    probes = tuple(probe for probe in make_probes(core.config) if 7 < probe.shape[1] <= 64 or probe.shape == (4, 7))
    return Recorded(model, probes), core


def gate(recorded: Recorded, core: Encoder) -> ParityReport:
    provenance = Provenance("random", None, {}, "the written weights", seed=0)
    return compare(recorded, core, core, recorded.probes, written_dtype="float32", provenance=provenance)


def mutated(core: Encoder, mutate: Mutate, layer: int) -> tuple[Encoder, list[int]]:
    """A copy that is wrong, and the layers that are: those that read a changed module."""
    wrong = copy.deepcopy(core)
    changed = {id(module) for module in mutate(wrong, layer)}
    readers = [i for i in range(wrong.num_layers) if changed & {id(module) for module in modules_of(wrong, i)}]
    return wrong, readers or [layer]


def modules_of(core: Encoder, i: int) -> list[nn.Module]:
    """The modules that layer `i` reads, inner ones included."""
    return [inner for module in core.layer_modules(i) for inner in module.modules()]


def linears(core: Encoder, i: int) -> list[Any]:
    """The Linears of layer `i`, each once, in order of computation."""
    paths = dict.fromkeys(path for group in core.linears() if group.stage == i + 1 for path in group.paths)
    return [module_at(core, path) for path in paths]


def square(core: Encoder, i: int) -> list[Any]:
    """Those of them whose matrices have one shape; the first ones read the layer's input."""
    return [linear for linear in linears(core, i) if len(set(linear.weight.shape)) == 1]


def fused(core: Encoder, i: int) -> Any | None:
    """The Linear of queries, keys and values in one, if the layer has one."""
    first = linears(core, i)[0]
    rows, width = first.weight.shape
    return first if rows == 3 * width else None


def norms(core: Encoder, i: int) -> list[Any]:
    """The norms of layer `i`."""
    paths = {id(module): path for path, module in core.named_modules()}
    found = [module for module in modules_of(core, i) if isinstance(module, nn.LayerNorm | nn.RMSNorm)]
    return sorted(found, key=lambda module: paths[id(module)])


def swap(a: Any, b: Any) -> list[nn.Module]:
    """Exchange the parameters of two modules."""
    for name in ("weight", "bias"):
        if name in a:
            a[name], b[name] = b[name], a[name]
    return [a, b]


def with_method(core: Encoder, **methods: Any) -> None:
    """Let the encoder have other methods."""
    core.__class__ = type("Mutant", (type(core),), methods)


def with_layers(core: Encoder, count: int, place: Callable[[int], int]) -> None:
    """Let the encoder have `count` layers, of which the j-th is `place(j)` of its own."""
    base = type(core)

    def run_layer(self: Any, j: int, *inputs: Any) -> Any:
        return base.run_layer(self, place(j), *inputs)

    with_method(core, run_layer=run_layer, num_layers=property(lambda self: count))


def swap_projections(core: Encoder, i: int, a: int, b: int) -> list[nn.Module]:
    """Exchange two of queries, keys and values (0, 1, 2)."""
    joined = fused(core, i)
    if joined is None:
        return swap(square(core, i)[a], square(core, i)[b])
    order = [{a: b, b: a}.get(part, part) for part in range(3)]
    for name in ("weight", "bias"):
        if name in joined:
            parts = mx.split(joined[name], 3)
            joined[name] = mx.concatenate([parts[part] for part in order])
    return [joined]


def swap_queries_and_keys(core: Encoder, i: int) -> list[nn.Module]:
    return swap_projections(core, i, 0, 1)


def swap_keys_and_values(core: Encoder, i: int) -> list[nn.Module]:
    return swap_projections(core, i, 1, 2)


def transpose_queries(core: Encoder, i: int) -> list[nn.Module]:
    joined = fused(core, i)
    if joined is None:
        return transpose(square(core, i)[0])
    queries, *others = mx.split(joined.weight, 3)
    joined.weight = mx.concatenate([queries.T, *others])
    return [joined]


def transpose_attention_output(core: Encoder, i: int) -> list[nn.Module]:
    return transpose(square(core, i)[-1])


def transpose(linear: Any) -> list[nn.Module]:
    linear.weight = linear.weight.T
    return [linear]


def misplace_norm(core: Encoder, i: int) -> list[nn.Module]:
    """The weight and the bias of a norm exchanged; without a bias, the weight at the wrong features."""
    norm = norms(core, i)[-1]
    if "bias" in norm:
        norm.weight, norm.bias = norm.bias, norm.weight
    else:
        norm.weight = mx.roll(norm.weight, 1)
    return [norm]


def swap_the_two_norms(core: Encoder, i: int) -> list[nn.Module]:
    """The norms of the layer exchanged; a layer with one norm gets the next layer's."""
    here = norms(core, i)
    if len(here) > 1:
        return swap(*here[:2])
    here[0].update(norms(core, i + 1)[-1].parameters())
    return here


def use_another_activation(core: Encoder, i: int) -> list[nn.Module]:
    """GELU by tanh for GELU by erf, or the other way round."""
    field = next(name for name, check in core.config.CHECKS.items() if check is activation)
    config = replace(core.config, **{field: "gelu_new" if core.config.hidden_act == "gelu" else "gelu"})
    other = core.architecture.encoder(config, add_pooling_layer=core.has_pooler)
    other.load_weights(list(named_parameters(core).items()))
    other.eval()
    base = type(core)

    def run_layer(self: Any, j: int, *inputs: Any) -> Any:
        return other.run_layer(j, *inputs) if j == i else base.run_layer(self, j, *inputs)

    with_method(core, run_layer=run_layer)
    return []


def drop_layer(core: Encoder, i: int) -> list[nn.Module]:
    with_layers(core, core.num_layers - 1, lambda j: j if j < i else j + 1)
    return []


def change_output(core: Encoder, i: int) -> list[nn.Module]:
    """The last Linear without its bias; one that has none by one per cent too large."""
    linear = linears(core, i)[-1]
    if "bias" in linear:
        linear.bias = mx.zeros_like(linear.bias)
    else:
        linear.weight = 1.01 * linear.weight
    return [linear]


def set_first_eps(core: Encoder, i: int, eps: float = 1e-3) -> list[nn.Module]:
    norm = norms(core, i)[0]
    norm.eps = eps
    return [norm]


def set_last_eps(core: Encoder, i: int, eps: float = 1e-3) -> list[nn.Module]:
    norm = norms(core, i)[-1]
    norm.eps = eps
    return [norm]


def ignore_mask(core: Encoder, i: int) -> list[nn.Module]:
    """Let layer `i` have the context of a batch without a mask."""
    base = type(core)
    without: dict[str, Any] = {}

    def embed_inputs(self: Any, inputs: Inputs) -> Any:
        without["context"] = base.embed_inputs(self, replace(inputs, mask=None))[1]
        return base.embed_inputs(self, inputs)

    def run_layer(self: Any, j: int, x: mx.array, context: Any, *inputs: Any) -> Any:
        return base.run_layer(self, j, x, without["context"] if j == i else context, *inputs)

    with_method(core, embed_inputs=embed_inputs, run_layer=run_layer)
    return []


IN_ONE_LAYER = (
    *(swap_queries_and_keys, swap_keys_and_values, transpose_queries, transpose_attention_output),
    *(misplace_norm, swap_the_two_norms, use_another_activation, drop_layer, change_output),
    *(set_first_eps, set_last_eps, ignore_mask),
)


def outside_the_layers(model_type: str) -> dict[str, tuple[Callable[[Encoder], None], str]]:
    """Mistakes outside the layers, for what the tiny encoder has there, and the name of what is wrong."""
    declared = architecture(model_type)
    fields = {"model_type": model_type, **declared.tiny}
    core = declared.encoder(declared.config.from_hf(fields), add_pooling_layer=True)
    modules = dict(core.named_modules())
    found: dict[str, tuple[Callable[[Encoder], None], str]] = {
        f"shift the table of {kind}": (_rolled(path), "embeddings")
        for kind, path in declared.tables.items()
        # One token type cannot be exchanged with another.
        if path in modules and modules[path].weight.shape[0] > 1
    }
    folder = declared.tables["word"].rpartition(".")[0]
    for path in (path for path, module in modules.items() if isinstance(module, nn.LayerNorm | nn.RMSNorm)):
        if path.startswith(f"{folder}."):
            found[f"another eps of {path}"] = (_with_eps(path), "embeddings")
    for group in core.linears():
        if group.stage == 0:
            found |= {f"shift {path}": (_rolled(path), "embeddings") for path in group.paths}
        elif group.stage == core.num_layers + 1:
            found |= {f"transpose {path}": (_transposed(path), "pooler") for path in group.paths}
    return found


def _rolled(path: str) -> Callable[[Encoder], None]:
    def change(core: Encoder) -> None:
        module = module_at(core, path)
        module.weight = mx.roll(module.weight, 1, 0)

    return change


def _with_eps(path: str) -> Callable[[Encoder], None]:
    def change(core: Encoder) -> None:
        module_at(core, path).eps = 1e-3

    return change


def _transposed(path: str) -> Callable[[Encoder], None]:
    def change(core: Encoder) -> None:
        transpose(module_at(core, path))

    return change


def has_last_norm(core: Encoder) -> bool:
    """Whether the encoder's last hidden state is not its last layer's output."""
    x = mx.random.normal((1, 2, core.config.hidden_size), key=mx.random.key(0))
    return not mx.array_equal(core.finish(x), x)


def first_wrong_without(core: Encoder, i: int) -> int:
    """The layer that is named if layer `i` is left out: the first whose place is taken by one with other modules."""
    last = core.num_layers - 1
    for j in range(i, last):
        if {*map(id, core.layer_modules(j))} != {*map(id, core.layer_modules(j + 1))}:
            return j
    # The last but one is now taken for the last, and normed.
    return last - 1 if has_last_norm(core) else last


def assert_caught(report: ParityReport, name: str, *, to_spare: float = 5) -> None:
    """The gate fails, names the module first, and its error alone is `to_spare` times the limit."""
    assert not report.passed
    assert not report.gate_passed(MAPPING)
    assert report.first_diverging_layer == name
    (point,) = [point for point in report.select(MAPPING, LOCAL) if point.name == name]
    assert point.problem is not None or (point.max_rel is not None and point.max_rel >= to_spare * point.limit)
    assert any(line.startswith(f"mapping gate, layer-local: {name}: ") for line in report.failures)


def wrong_alone(report: ParityReport) -> list[str]:
    return [point.name for point in report.select(MAPPING, LOCAL) if not point.passed]


each_architecture = pytest.mark.parametrize("model_type", supported())


@each_architecture
def test_a_right_conversion_passes_within_half_the_limits(model_type: str) -> None:
    recorded, core = random_pair(model_type)
    report = gate(recorded, core)
    assert report.passed
    assert report.model_type == model_type
    assert report.first_diverging_layer is None
    for point in report.points:
        assert point.max_rel is not None
        assert point.max_rel < point.limit / 2, point


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("mutate", IN_ONE_LAYER)
@each_architecture
def test_a_wrong_layer_is_named(model_type: str, mutate: Mutate, layer: int) -> None:
    recorded, core = random_pair(model_type)
    wrong, places = mutated(core, mutate, layer)
    report = gate(recorded, wrong)
    if mutate is drop_layer:
        assert_caught(report, core.layer_name(first_wrong_without(core, layer)))
    else:
        assert_caught(report, core.layer_name(places[0]))
        assert wrong_alone(report) == [core.layer_name(i) for i in places]


@pytest.mark.parametrize(
    ("model_type", "mutation"),
    [(model_type, mutation) for model_type in supported() for mutation in outside_the_layers(model_type)],
)
def test_wrong_embeddings_and_pooler_are_named(model_type: str, mutation: str) -> None:
    recorded, core = random_pair(model_type)
    mutate, name = outside_the_layers(model_type)[mutation]
    wrong = copy.deepcopy(core)
    mutate(wrong)
    report = gate(recorded, wrong)
    assert_caught(report, name)
    assert wrong_alone(report) == [name]


DECLARED = [(model_type, mutation) for model_type in supported() for mutation in family_of(model_type).mutations]


@pytest.mark.parametrize(("model_type", "mutation"), DECLARED, ids=lambda value: getattr(value, "name", value))
def test_a_declared_mistake_is_named(model_type: str, mutation: Mutation) -> None:
    recorded, core = random_pair(model_type, mutation.variant, sized=False)
    wrong = copy.deepcopy(core)
    if mutation.config:
        wrong = configured(core, recorded.fields | mutation.config)
        assert wrong.config != core.config
    if mutation.change is not None:
        mutation.change(wrong)
    last = core.num_layers - 1
    where = last if mutation.where == "finish" else mutation.where
    assert_caught(gate(recorded, wrong), where if isinstance(where, str) else wrong.layer_name(where))


def configured(core: Encoder, fields: dict[str, Any]) -> Encoder:
    """The weights under another configuration; a parameter that only this one has keeps its first value."""
    wrong = core.architecture.encoder(config_from_hf(fields), add_pooling_layer=core.has_pooler)
    wanted = {name: array.shape for name, array in named_parameters(wrong).items()}
    weights = [(name, array) for name, array in named_parameters(core).items() if name in wanted]
    assert all(array.shape == wanted[name] for name, array in weights), "a wrong field must leave the shapes"
    wrong.load_weights(weights, strict=False)
    wrong.eval()
    return wrong


@each_architecture
def test_a_layer_that_sees_padding_fails_the_padding_check_too(model_type: str) -> None:
    recorded, core = random_pair(model_type)
    report = gate(recorded, mutated(core, ignore_mask, 1)[0])
    assert next(point.name for point in report.select(MAPPING, PADDING) if not point.passed) == core.layer_name(1)


@each_architecture
def test_a_missing_last_layer_and_pooler_are_said_to_be_missing(model_type: str) -> None:
    recorded, core = random_pair(model_type)
    wrong, _ = mutated(core, drop_layer, core.num_layers - 1)
    if core.has_pooler:
        del wrong.pooler
    failures = "\n".join(gate(recorded, wrong).failures)
    assert f"layer-local: {core.layer_name(core.num_layers - 1)}: the MLX model does not have it" in failures
    assert ("cumulative: pooler: the MLX model does not have it" in failures) == core.has_pooler


@each_architecture
def test_a_layer_too_many_is_a_failure(model_type: str) -> None:
    recorded, core = random_pair(model_type)
    wrong, count = copy.deepcopy(core), core.num_layers
    with_layers(wrong, count + 1, lambda j: min(j, count - 1))
    # The last one is now taken for an inner one, and not normed.
    assert_caught(gate(recorded, wrong), wrong.layer_name(count - 1 if has_last_norm(core) else count))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_number_that_is_not_finite_fails(value: float) -> None:
    def poison(core: Encoder, i: int) -> list[nn.Module]:
        norms(core, i)[-1].bias[3] = value
        return []

    recorded, core = random_pair("bert")
    report = gate(recorded, mutated(core, poison, 1)[0])
    assert_caught(report, "encoder.layer.1")
    assert wrong_alone(report) == ["encoder.layer.1"]
    what = "NaN" if value != value else "infinity"
    assert f"mapping gate, layer-local: encoder.layer.1: {what} in MLX" in "\n".join(report.failures)


def test_a_nan_in_the_written_weights_fails_the_precision_gate_alone() -> None:
    recorded, core = random_pair("bert")
    written = copy.deepcopy(core)
    linear: Any = linears(written, 2)[-1]
    linear.bias[0] = float("nan")
    provenance = Provenance("random", None, {}, "the source", seed=0)
    report = compare(recorded, core, written, recorded.probes, written_dtype="float32", provenance=provenance)
    assert report.gate_passed(MAPPING)
    assert not report.gate_passed(PRECISION)
    assert not report.passed
    assert report.first_diverging_layer is None


@pytest.mark.parametrize(
    "mutate",
    [
        *(swap_queries_and_keys, set_first_eps, set_last_eps),
        *(use_another_activation, transpose_attention_output, drop_layer),
    ],
)
def test_a_wrong_layer_of_a_real_model_is_named(minilm_source: Path, mutate: Mutate) -> None:
    recorded, core = minilm_pair(minilm_source)
    assert_caught(gate(recorded, mutated(core, mutate, 3)[0]), "encoder.layer.3")


def test_the_real_model_itself_passes(minilm_source: Path) -> None:
    assert gate(*minilm_pair(minilm_source)).passed


@pytest.mark.parametrize("layer", [0, 3, 5])
def test_even_the_default_eps_of_other_frameworks_is_caught_in_a_real_model(minilm_source: Path, layer: int) -> None:
    def forget_eps(core: Encoder, i: int) -> list[nn.Module]:
        return [*set_first_eps(core, i, 1e-5), *set_last_eps(core, i, 1e-5)]

    recorded, core = minilm_pair(minilm_source)
    # 1e-5 for 1e-12 moves some 1e-5 here: too little for five times the limit, enough to be seen and named.
    assert_caught(gate(recorded, mutated(core, forget_eps, layer)[0]), f"encoder.layer.{layer}", to_spare=1)
