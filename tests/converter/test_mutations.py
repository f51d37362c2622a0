"""Wrong conversions, on purpose: the mapping gate must see each one with room to spare, and name its layer.

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
import pytest

from converter.parity.gates import compare
from converter.parity.probes import Probe, make_probes
from converter.parity.reference import Reference, ReferenceOutput
from converter.parity.report import LOCAL, MAPPING, PADDING, PRECISION, ParityReport, Provenance
from mlxbert.activations import gelu_tanh
from mlxbert.models.bert import BertAttention, BertConfig, BertCore

torch = pytest.importorskip("torch", reason="the reference is PyTorch, which is not installed")
transformers = pytest.importorskip("transformers")

LAYERS = 3
CONFIG = {
    "model_type": "bert",
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 40,
}


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


def core_of(model: Any, config: dict[str, Any]) -> BertCore:
    """The MLX side, filled by name: what a right conversion gives."""
    core = BertCore(BertConfig.from_hf(config))
    core.load_weights([(name, mx.array(tensor.numpy())) for name, tensor in model.state_dict().items()])
    core.eval()
    return core


@cache
def random_pair() -> tuple[Recorded, BertCore]:
    fields = {name: value for name, value in CONFIG.items() if name != "model_type"}
    model = transformers.BertModel(transformers.BertConfig(**fields, attn_implementation="eager"))
    core = core_of(randomized_(model), CONFIG)
    return Recorded(model, make_probes(core.config)), core


@cache
def minilm_pair(directory: Path) -> tuple[Recorded, BertCore]:
    model = transformers.BertModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    core = core_of(model, model.config.to_dict())
    # Two short ones: the layers are real, and what is tested here is the gate.
    probes = tuple(probe for probe in make_probes(core.config) if 7 < probe.shape[1] <= 64 or probe.shape == (4, 7))
    return Recorded(model, probes), core


def gate(recorded: Recorded, core: BertCore) -> ParityReport:
    provenance = Provenance("random", None, {}, "the written weights", seed=0)
    return compare(recorded, core, core, recorded.probes, written_dtype="float32", provenance=provenance)


def mutated(core: BertCore, mutate: Callable[[BertCore, int], None], layer: int) -> BertCore:
    wrong = copy.deepcopy(core)
    mutate(wrong, layer)
    return wrong


def swap_query_and_key(core: BertCore, i: int) -> None:
    attention = core.encoder.layer[i].attention.self
    attention.query, attention.key = attention.key, attention.query


def swap_key_and_value(core: BertCore, i: int) -> None:
    attention = core.encoder.layer[i].attention.self
    attention.key, attention.value = attention.value, attention.key


def transpose_query(core: BertCore, i: int) -> None:
    query = core.encoder.layer[i].attention.self.query
    query.weight = query.weight.T


def transpose_attention_output(core: BertCore, i: int) -> None:
    dense = core.encoder.layer[i].attention.output.dense
    dense.weight = dense.weight.T


def swap_norm_weight_and_bias(core: BertCore, i: int) -> None:
    norm = core.encoder.layer[i].output.LayerNorm
    norm.weight, norm.bias = norm.bias, norm.weight


def swap_the_two_norms(core: BertCore, i: int) -> None:
    layer = core.encoder.layer[i]
    layer.output.LayerNorm, layer.attention.output.LayerNorm = (
        layer.attention.output.LayerNorm,
        layer.output.LayerNorm,
    )


def use_tanh_gelu(core: BertCore, i: int) -> None:
    core.encoder.layer[i].intermediate._activation = gelu_tanh


def drop_layer(core: BertCore, i: int) -> None:
    del core.encoder.layer[i]


def skip_output_bias(core: BertCore, i: int) -> None:
    dense = core.encoder.layer[i].output.dense
    dense.bias = mx.zeros_like(dense.bias)


def set_attention_eps(core: BertCore, i: int, eps: float = 1e-3) -> None:
    core.encoder.layer[i].attention.output.LayerNorm.eps = eps


def set_output_eps(core: BertCore, i: int, eps: float = 1e-3) -> None:
    core.encoder.layer[i].output.LayerNorm.eps = eps


def ignore_mask(core: BertCore, i: int) -> None:
    class IgnoresMask(BertAttention):
        def __call__(self, x: mx.array, mask: Any = None, output_attentions: bool = False) -> Any:
            return super().__call__(x, None, output_attentions)

    core.encoder.layer[i].attention.__class__ = IgnoresMask


def swap_token_type_rows(core: BertCore) -> None:
    table = core.embeddings.token_type_embeddings
    table.weight = table.weight[::-1]


def set_embeddings_eps(core: BertCore) -> None:
    core.embeddings.LayerNorm.eps = 1e-3


def shift_positions(core: BertCore) -> None:
    table = core.embeddings.position_embeddings
    table.weight = mx.roll(table.weight, 1, 0)


def transpose_pooler(core: BertCore) -> None:
    core.pooler.dense.weight = core.pooler.dense.weight.T


IN_ONE_LAYER = (
    *(swap_query_and_key, swap_key_and_value, transpose_query, transpose_attention_output),
    *(swap_norm_weight_and_bias, swap_the_two_norms, use_tanh_gelu, drop_layer, skip_output_bias),
    *(set_attention_eps, set_output_eps, ignore_mask),
)
OUTSIDE_THE_LAYERS: dict[Callable[[BertCore], None], str] = {
    swap_token_type_rows: "embeddings",
    set_embeddings_eps: "embeddings",
    shift_positions: "embeddings",
    transpose_pooler: "pooler",
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


def test_a_right_conversion_passes_within_half_the_limits() -> None:
    recorded, core = random_pair()
    report = gate(recorded, core)
    assert report.passed
    assert report.first_diverging_layer is None
    for point in report.points:
        assert point.max_rel is not None
        assert point.max_rel < point.limit / 2, point


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("mutate", IN_ONE_LAYER)
def test_a_wrong_layer_is_named(mutate: Callable[[BertCore, int], None], layer: int) -> None:
    recorded, core = random_pair()
    report = gate(recorded, mutated(core, mutate, layer))
    assert_caught(report, f"encoder.layer.{layer}")
    if mutate is not drop_layer:  # which moves every layer after it
        assert wrong_alone(report) == [f"encoder.layer.{layer}"]


@pytest.mark.parametrize("mutate", OUTSIDE_THE_LAYERS)
def test_wrong_embeddings_and_pooler_are_named(mutate: Callable[[BertCore], None]) -> None:
    recorded, core = random_pair()
    report = gate(recorded, mutated(core, lambda wrong, _: mutate(wrong), 0))
    assert_caught(report, OUTSIDE_THE_LAYERS[mutate])
    assert wrong_alone(report) == [OUTSIDE_THE_LAYERS[mutate]]


def test_a_layer_that_sees_padding_fails_the_padding_check_too() -> None:
    recorded, core = random_pair()
    report = gate(recorded, mutated(core, ignore_mask, 1))
    assert next(point.name for point in report.select(MAPPING, PADDING) if not point.passed) == "encoder.layer.1"


def test_a_missing_last_layer_and_pooler_are_said_to_be_missing() -> None:
    recorded, core = random_pair()
    wrong = mutated(core, drop_layer, LAYERS - 1)
    del wrong.pooler
    failures = "\n".join(gate(recorded, wrong).failures)
    assert f"layer-local: encoder.layer.{LAYERS - 1}: the MLX model does not have it" in failures
    assert "cumulative: pooler: the MLX model does not have it" in failures


def test_a_layer_too_many_is_a_failure() -> None:
    recorded, core = random_pair()
    wrong = copy.deepcopy(core)
    wrong.encoder.layer.append(copy.deepcopy(wrong.encoder.layer[-1]))
    assert_caught(gate(recorded, wrong), f"encoder.layer.{LAYERS}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_number_that_is_not_finite_fails(value: float) -> None:
    def poison(core: BertCore, i: int) -> None:
        core.encoder.layer[i].output.LayerNorm.bias[3] = value

    recorded, core = random_pair()
    report = gate(recorded, mutated(core, poison, 1))
    assert_caught(report, "encoder.layer.1")
    assert wrong_alone(report) == ["encoder.layer.1"]
    what = "NaN" if value != value else "infinity"
    assert f"mapping gate, layer-local: encoder.layer.1: {what} in MLX" in "\n".join(report.failures)


def test_a_nan_in_the_written_weights_fails_the_precision_gate_alone() -> None:
    recorded, core = random_pair()
    written = copy.deepcopy(core)
    written.encoder.layer[2].output.dense.bias[0] = float("nan")
    provenance = Provenance("random", None, {}, "the source", seed=0)
    report = compare(recorded, core, written, recorded.probes, written_dtype="float32", provenance=provenance)
    assert report.gate_passed(MAPPING)
    assert not report.gate_passed(PRECISION)
    assert not report.passed
    assert report.first_diverging_layer is None


@pytest.mark.parametrize(
    "mutate",
    [swap_query_and_key, set_attention_eps, set_output_eps, use_tanh_gelu, transpose_attention_output, drop_layer],
)
def test_a_wrong_layer_of_a_real_model_is_named(minilm_source: Path, mutate: Callable[[BertCore, int], None]) -> None:
    recorded, core = minilm_pair(minilm_source)
    assert_caught(gate(recorded, mutated(core, mutate, 3)), "encoder.layer.3")


def test_the_real_model_itself_passes(minilm_source: Path) -> None:
    assert gate(*minilm_pair(minilm_source)).passed


@pytest.mark.parametrize("layer", [0, 3, 5])
def test_even_the_default_eps_of_other_frameworks_is_caught_in_a_real_model(minilm_source: Path, layer: int) -> None:
    def forget_eps(core: BertCore, i: int) -> None:
        set_attention_eps(core, i, 1e-5)
        set_output_eps(core, i, 1e-5)

    recorded, core = minilm_pair(minilm_source)
    # 1e-5 for 1e-12 moves some 1e-5 here: too little for five times the limit, enough to be seen and named.
    assert_caught(gate(recorded, mutated(core, forget_eps, layer)), f"encoder.layer.{layer}", to_spare=1)
