"""Wrong conversions, on purpose: the mapping gate must see each one with room to spare, and name its layer.

They are found by what a module is (a Linear, a norm, a table), so that every registered architecture gets all of them.
The random model has every parameter random (transformers' own initialisation has LayerNorm at 1 and 0 and biases at 0,
under which swapped tensors compute the same), at scales like those of trained encoders.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
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
from mlxbert.activations import gelu_tanh
from mlxbert.model_arrays import named_parameters
from mlxbert.models.architecture import architecture, config_from_hf, supported
from mlxbert.models.base import Encoder, module_at
from tests.support.tiny import tiny_model

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
Mutate = Callable[[Encoder, int], None]


class Recorded:
    """A reference that has answered already: the same numbers for every mutation, and PyTorch runs once."""

    def __init__(self, model: Any, probes: tuple[Probe, ...]):
        reference = Reference(model, type(model).__name__)
        self.class_name, self.unexpected, self.notes = reference.class_name, (), ()
        self.probes = probes
        self._outputs = {probe.name: reference.run(probe) for probe in probes}

    def run(self, probe: Probe) -> ReferenceOutput:
        return self._outputs[probe.name]


def randomized_(model: Any, seed: int = 0) -> Any:
    """Every parameter random, in place; matrices keep the variance of what passes through them."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("LayerNorm.weight"):
            value = 1 + 0.2 * noise
        elif parameter.ndim == 1:
            value = 0.1 * noise
        elif "embeddings" in name:
            value = 0.3 * noise
        else:
            value = noise / parameter.shape[1] ** 0.5
        parameter.data.copy_(value)
    return model.eval()


def core_of(model: Any) -> Encoder:
    """The MLX side, filled by name: what a right conversion gives."""
    config = model.config.to_dict()
    core = architecture(config["model_type"]).encoder(config_from_hf(config))
    core.load_weights([(name, mx.array(tensor.numpy())) for name, tensor in model.state_dict().items()])
    core.eval()
    return core


@cache
def random_pair(model_type: str) -> tuple[Recorded, Encoder]:
    model = tiny_model(architecture(model_type).encoder_class, attn_implementation="eager", **SIZES)
    core = core_of(randomized_(model))
    return Recorded(model, make_probes(core.config)), core


@cache
def minilm_pair(directory: Path) -> tuple[Recorded, Encoder]:
    model = transformers.BertModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    core = core_of(model)
    # Two short ones: the layers are real, and what is tested here is the gate.
    probes = tuple(probe for probe in make_probes(core.config) if 7 < probe.shape[1] <= 64 or probe.shape == (4, 7))
    return Recorded(model, probes), core


def gate(recorded: Recorded, core: Encoder) -> ParityReport:
    provenance = Provenance("random", None, {}, "the written weights", seed=0)
    return compare(recorded, core, core, recorded.probes, written_dtype="float32", provenance=provenance)


def mutated(core: Encoder, mutate: Mutate, layer: int) -> Encoder:
    wrong = copy.deepcopy(core)
    mutate(wrong, layer)
    return wrong


def linears(core: Encoder, i: int) -> list[nn.Module]:
    """The Linears of layer `i`, in order of computation."""
    return [module_at(core, path) for path in linear_paths(core, i + 1)]


def linear_paths(core: Encoder, stage: int) -> list[str]:
    return [path for group in core.linears() if group.stage == stage for path in group.paths]


def square(core: Encoder, i: int) -> list[Any]:
    """Those of them whose matrices have one shape; the first ones read the layer's input."""
    return [linear for linear in linears(core, i) if len(set(linear.weight.shape)) == 1]


def norms(core: Encoder, depth: int) -> list[Any]:
    """The norms at a depth: 0 for the embeddings, i + 1 for layer i."""
    names = [name for name in named_parameters(core) if core.is_norm(name) and core.depth_of(name) == depth]
    return [module_at(core, path) for path in sorted({name.rpartition(".")[0] for name in names})]


def swap(a: Any, b: Any) -> None:
    """Exchange the parameters of two modules."""
    a.weight, b.weight, a.bias, b.bias = b.weight, a.weight, b.bias, a.bias


def with_method(core: Encoder, **methods: Any) -> None:
    """Let the encoder have other methods."""
    core.__class__ = type("Mutant", (type(core),), methods)


def with_layers(core: Encoder, count: int, place: Callable[[int], int]) -> None:
    """Let the encoder have `count` layers, of which the j-th is `place(j)` of its own."""
    base = type(core)

    def run_layer(self: Any, j: int, *inputs: Any) -> Any:
        return base.run_layer(self, place(j), *inputs)

    with_method(core, run_layer=run_layer, num_layers=property(lambda self: count))


def swap_first_and_second_linear(core: Encoder, i: int) -> None:
    swap(*linears(core, i)[:2])


def swap_second_and_third_linear(core: Encoder, i: int) -> None:
    swap(*square(core, i)[1:3])


def transpose_first_linear(core: Encoder, i: int) -> None:
    linear = square(core, i)[0]
    linear.weight = linear.weight.T


def transpose_attention_output(core: Encoder, i: int) -> None:
    linear = square(core, i)[-1]
    linear.weight = linear.weight.T


def swap_norm_weight_and_bias(core: Encoder, i: int) -> None:
    norm = norms(core, i + 1)[-1]
    norm.weight, norm.bias = norm.bias, norm.weight


def swap_the_two_norms(core: Encoder, i: int) -> None:
    swap(*norms(core, i + 1))


def use_tanh_gelu(core: Encoder, i: int) -> None:
    (activated,) = [m for layer in core.layer_modules(i) for m in layer.modules() if hasattr(m, "_activation")]
    activated._activation = gelu_tanh


def drop_layer(core: Encoder, i: int) -> None:
    with_layers(core, core.num_layers - 1, lambda j: j if j < i else j + 1)


def skip_output_bias(core: Encoder, i: int) -> None:
    linear: Any = linears(core, i)[-1]
    linear.bias = mx.zeros_like(linear.bias)


def set_attention_eps(core: Encoder, i: int, eps: float = 1e-3) -> None:
    norms(core, i + 1)[0].eps = eps


def set_output_eps(core: Encoder, i: int, eps: float = 1e-3) -> None:
    norms(core, i + 1)[-1].eps = eps


def ignore_mask(core: Encoder, i: int) -> None:
    base = type(core)

    def run_layer(self: Any, j: int, x: mx.array, context: Any, *inputs: Any) -> Any:
        seen = {name: array for name, array in context.items() if array.dtype != mx.bool_}
        return base.run_layer(self, j, x, seen if j == i else context, *inputs)

    with_method(core, run_layer=run_layer)


def shift_table(kind: str) -> Callable[[Encoder], None]:
    def shift(core: Encoder) -> None:
        table = module_at(core, core.architecture.tables[kind])
        table.weight = mx.roll(table.weight, 1, 0)

    return shift


def set_embeddings_eps(core: Encoder) -> None:
    for norm in norms(core, 0):
        norm.eps = 1e-3


def transpose_pooler(core: Encoder) -> None:
    (path,) = linear_paths(core, core.num_layers + 1)
    pooler = module_at(core, path)
    pooler.weight = pooler.weight.T


IN_ONE_LAYER = (
    *(swap_first_and_second_linear, swap_second_and_third_linear, transpose_first_linear, transpose_attention_output),
    *(swap_norm_weight_and_bias, swap_the_two_norms, use_tanh_gelu, drop_layer, skip_output_bias),
    *(set_attention_eps, set_output_eps, ignore_mask),
)
OUTSIDE_THE_LAYERS: dict[str, tuple[Callable[[Encoder], None], str]] = {
    "shift words": (shift_table("word"), "embeddings"),
    "shift positions": (shift_table("position"), "embeddings"),
    "swap token types": (shift_table("token_type"), "embeddings"),
    "embeddings eps": (set_embeddings_eps, "embeddings"),
    "transpose pooler": (transpose_pooler, "pooler"),
}


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
    report = gate(recorded, mutated(core, mutate, layer))
    assert_caught(report, core.layer_name(layer))
    if mutate is not drop_layer:  # which moves every layer after it
        assert wrong_alone(report) == [core.layer_name(layer)]


@pytest.mark.parametrize(
    ("model_type", "mutation"),
    [
        (model_type, mutation)
        for model_type in supported()
        for mutation in OUTSIDE_THE_LAYERS
        # One token type cannot be swapped with another.
        if mutation != "swap token types" or architecture(model_type).tiny.get("type_vocab_size") != 1
    ],
)
def test_wrong_embeddings_and_pooler_are_named(model_type: str, mutation: str) -> None:
    recorded, core = random_pair(model_type)
    mutate, name = OUTSIDE_THE_LAYERS[mutation]
    report = gate(recorded, mutated(core, lambda wrong, _: mutate(wrong), 0))
    assert_caught(report, name)
    assert wrong_alone(report) == [name]


@each_architecture
def test_a_layer_that_sees_padding_fails_the_padding_check_too(model_type: str) -> None:
    recorded, core = random_pair(model_type)
    report = gate(recorded, mutated(core, ignore_mask, 1))
    assert next(point.name for point in report.select(MAPPING, PADDING) if not point.passed) == core.layer_name(1)


@each_architecture
def test_a_missing_last_layer_and_pooler_are_said_to_be_missing(model_type: str) -> None:
    recorded, core = random_pair(model_type)
    wrong = mutated(core, drop_layer, LAYERS - 1)
    del wrong.pooler
    failures = "\n".join(gate(recorded, wrong).failures)
    assert f"layer-local: {core.layer_name(LAYERS - 1)}: the MLX model does not have it" in failures
    assert "cumulative: pooler: the MLX model does not have it" in failures


@each_architecture
def test_a_layer_too_many_is_a_failure(model_type: str) -> None:
    recorded, core = random_pair(model_type)
    wrong = copy.deepcopy(core)
    with_layers(wrong, LAYERS + 1, lambda j: min(j, LAYERS - 1))
    assert_caught(gate(recorded, wrong), core.layer_name(LAYERS))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_number_that_is_not_finite_fails(value: float) -> None:
    def poison(core: Encoder, i: int) -> None:
        norms(core, i + 1)[-1].bias[3] = value

    recorded, core = random_pair("bert")
    report = gate(recorded, mutated(core, poison, 1))
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
        *(swap_first_and_second_linear, set_attention_eps, set_output_eps),
        *(use_tanh_gelu, transpose_attention_output, drop_layer),
    ],
)
def test_a_wrong_layer_of_a_real_model_is_named(minilm_source: Path, mutate: Mutate) -> None:
    recorded, core = minilm_pair(minilm_source)
    assert_caught(gate(recorded, mutated(core, mutate, 3)), "encoder.layer.3")


def test_the_real_model_itself_passes(minilm_source: Path) -> None:
    assert gate(*minilm_pair(minilm_source)).passed


@pytest.mark.parametrize("layer", [0, 3, 5])
def test_even_the_default_eps_of_other_frameworks_is_caught_in_a_real_model(minilm_source: Path, layer: int) -> None:
    def forget_eps(core: Encoder, i: int) -> None:
        set_attention_eps(core, i, 1e-5)
        set_output_eps(core, i, 1e-5)

    recorded, core = minilm_pair(minilm_source)
    # 1e-5 for 1e-12 moves some 1e-5 here: too little for five times the limit, enough to be seen and named.
    assert_caught(gate(recorded, mutated(core, forget_eps, layer)), f"encoder.layer.{layer}", to_spare=1)
