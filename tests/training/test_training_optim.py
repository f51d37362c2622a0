"""Schedules, parameter groups, default rates and re-initialized layers."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from heads.binary import BinaryClassificationHead
from heads.ordinal import OrdinalRegressionHead
from mlxbert.backend.device import BlasStatus
from mlxbert.model_arrays import named_parameters
from mlxbert.models.bert import BertConfig, BertCore
from mlxbert.training.gradients import parts
from mlxbert.training.optimizer import (
    SHAPES,
    AdamW,
    ConfigurationError,
    Rule,
    Schedule,
    default_rates,
    parameter_rules,
    reinitialize_top,
    squared_norms,
    trainable,
)
from mlxbert.with_head import BertWithHead

CONFIG = BertConfig(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=16,
    initializer_range=0.05,
)


def make_model(pooling: str = "mean") -> BertWithHead:
    mx.random.seed(0)
    return BertWithHead(BertCore(CONFIG), BinaryClassificationHead(32), pooling)


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("kind", SHAPES)
def test_schedules_are_transformers(kind: str, warmup: int) -> None:
    torch = pytest.importorskip("torch", reason="the reference is PyTorch, which is not installed")
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    arguments: dict[str, Any] = {"num_warmup_steps": warmup, "num_training_steps": 20}
    if kind == "constant":
        reference = transformers.get_constant_schedule_with_warmup(optimizer, warmup)
    elif kind == "polynomial":
        reference = transformers.get_polynomial_decay_schedule_with_warmup(
            optimizer, **arguments, lr_end=0.1, power=2.0
        )
    else:
        reference = getattr(transformers, f"get_{kind}_schedule_with_warmup")(optimizer, **arguments)
    end = 0.1 if kind == "polynomial" else 0.0
    schedule = Schedule(20, kind, warmup, end=end, power=2.0, first_step_is_zero=True)
    for step in range(21):  # beyond its end the cosine of transformers rises again
        assert schedule.factor(step) == pytest.approx(reference.get_last_lr()[0], abs=1e-12), step
        optimizer.step()
        reference.step()


def test_no_step_of_the_warmup_is_lost_by_default() -> None:
    schedule = Schedule(10, "linear", 4)
    assert [schedule.factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule.factor(10) == schedule.factor(99) == 0.0
    assert Schedule(4, "linear", 4).factor(3) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "zigzag"}, "schedule 'zigzag' is unknown; known: linear, cosine, constant, polynomial"),
        ({"total_steps": 0}, "schedule: total_steps must be at least 1, not 0"),
        ({"warmup_steps": 11}, "schedule: warmup_steps is 11; fix: from 0 to total_steps, 10"),
        ({"end": 2.0}, "schedule: end must be from 0 to 1, a part of the peak rate, not 2.0"),
        ({"power": 0.0}, "schedule: power must be above 0, not 0.0"),
    ],
)
def test_wrong_schedules_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Schedule(**{"total_steps": 10, **arguments})
    assert str(caught.value) == message


def test_rules_go_by_name() -> None:
    rules = parameter_rules(make_model(), rate=1.0, head_rate=7.0, weight_decay=0.1, layer_decay=0.5)
    word, layer = "core.embeddings.word_embeddings.weight", "core.encoder.layer"
    assert rules[word] == Rule(0.125, 0.1)
    assert rules["core.embeddings.LayerNorm.weight"] == Rule(0.125, 0.0)
    assert rules[f"{layer}.0.attention.self.query.weight"] == Rule(0.25, 0.1)
    assert rules[f"{layer}.0.attention.self.query.bias"] == Rule(0.25, 0.0)
    assert rules[f"{layer}.1.output.LayerNorm.weight"] == Rule(0.5, 0.0)
    assert rules[f"{layer}.2.output.dense.weight"] == Rule(1.0, 0.1)
    assert rules["head.output.weight"] == Rule(7.0, 0.1)
    assert rules["head.output.bias"] == Rule(7.0, 0.0)
    assert set(rules) == set(named_parameters(make_model()))
    frozen = {name for name, rule in rules.items() if rule.frozen}
    assert frozen == {"core.pooler.dense.weight", "core.pooler.dense.bias"}
    assert trainable(rules) == [name for name in rules if name not in frozen]


def test_a_pooler_in_use_is_trained_at_the_top_layers_rate() -> None:
    rules = parameter_rules(make_model("pooler"), rate=1.0, layer_decay=0.5)
    assert rules["core.pooler.dense.weight"] == Rule(1.0, 0.01)


def test_poolings_and_heads_with_parameters_of_their_own_have_rules() -> None:
    for pooling in ("attention", "weighted_layers"):
        model = make_model(pooling)
        rules = parameter_rules(model, rate=1.0, head_rate=2.0)
        own = [name for name in rules if name.startswith("pooling.")]
        assert own
        assert {rules[name].rate for name in own} == {2.0}
    assert parameter_rules(make_model("weighted_layers"), rate=1.0)["pooling.layer_logits"].weight_decay == 0.0
    ordinal = BertWithHead(BertCore(CONFIG), OrdinalRegressionHead(32, classes=(1, 2, 3)), "mean")
    vectors = {name for name, array in named_parameters(ordinal).items() if array.ndim < 2}
    assert {rule.weight_decay for name, rule in parameter_rules(ordinal, rate=1.0).items() if name in vectors} == {0.0}


def test_freezing_layers_freezes_what_lies_below() -> None:
    for options, below in (({"freeze_embeddings": True}, 0), ({"freeze_layers": 2}, 2)):
        rules = parameter_rules(make_model("pooler"), rate=1.0, **options)  # type: ignore[arg-type]
        frozen = {name for name, rule in rules.items() if rule.frozen}
        prefixes = ("core.embeddings.", *(f"core.encoder.layer.{i}." for i in range(below)))
        assert frozen == {name for name in rules if name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": -1.0}, "rate must be a number from 0, not -1.0"),
        ({"rate": float("nan")}, "rate must be a number from 0, not nan"),
        ({"head_rate": float("inf")}, "head_rate must be a number from 0, not inf"),
        ({"weight_decay": -0.1}, "weight_decay must be a number from 0, not -0.1"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0 and at most 1 (no decay), not 0.0"),
        ({"freeze_layers": 4}, "freeze_layers is 4; fix: from 0 to 3, the encoder's layers"),
    ],
)
def test_wrong_groups_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parameter_rules(make_model(), **{"rate": 1.0, **arguments})
    assert str(caught.value) == message


def test_a_model_all_frozen_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^every parameter is frozen; fix: leave at least the head to train$"
    ):
        trainable({"head.output.weight": Rule(1.0, 0.0, frozen=True)})


@pytest.mark.parametrize("name", ["beta1", "beta2", "eps"])
def test_wrong_adam_numbers_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^AdamW: {name} must be .* not 1\.5$"):
        AdamW(**{name: 1.5})


@pytest.mark.parametrize(
    ("hidden", "layers", "rate", "head_rate"),
    [
        *((128, 2, 1.5e-4, 1.5e-3), (256, 4, 1.5e-4, 1.5e-3), (384, 6, 1.5e-4, 1.5e-3)),
        *((512, 8, 8e-5, 3e-4), (384, 12, 7e-5, 2e-4), (768, 6, 7e-5, 2e-4)),
        *((768, 12, 3e-5, 3e-5), (768, 22, 2e-5, 2e-5), (1024, 24, 2e-5, 2e-5)),
    ],
)
def test_default_rates(hidden: int, layers: int, rate: float, head_rate: float) -> None:
    """Measured up to MiniLM-L6; published from base on; between them powers of the size that meet both."""
    config = BertConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2)
    assert default_rates(config) == pytest.approx((rate, head_rate))


def test_reinitializing_changes_the_top_alone_and_goes_by_the_seed() -> None:
    for pooling, expected in (
        ("mean", ["core.encoder.layer.2."]),
        ("pooler", ["core.encoder.layer.2.", "core.pooler."]),
    ):
        model = make_model(pooling)
        before = {name: np.array(array) for name, array in named_parameters(model).items()}
        state = mx.random.state[0].tolist()
        names = reinitialize_top(model, 1, seed=4)
        assert mx.random.state[0].tolist() == state
        after = {name: np.array(array) for name, array in named_parameters(model).items()}
        assert set(names) == {name for name in before if name.startswith(tuple(expected))}
        for name in before:
            if name not in names:
                np.testing.assert_array_equal(after[name], before[name])
            elif name.endswith(".bias"):
                assert not after[name].any()
            elif "LayerNorm" in name:
                assert (after[name] == 1).all()
            else:
                assert after[name].std() == pytest.approx(CONFIG.initializer_range, rel=0.1)
        reinitialize_top(model, 1, seed=4)
        for name, array in named_parameters(model).items():
            np.testing.assert_array_equal(np.array(array), after[name])
    assert reinitialize_top(make_model(), 0, seed=1) == []
    with pytest.raises(ConfigurationError, match=r"^reinitialize_top: 4 layers; fix: from 0 to 3$"):
        reinitialize_top(make_model(), 4, seed=1)


def test_the_norm_does_not_depend_on_how_an_array_lies_in_memory() -> None:
    """A gradient lies as its product left it, one read from a saved state in the order of its indices."""
    values = np.random.default_rng(0).normal(size=(384, 300)).astype(np.float32)
    transposed = mx.array(np.ascontiguousarray(values.T)).T
    assert not memoryview(transposed).c_contiguous
    for squared in (squared_norms, mx.compile(squared_norms)):
        assert squared({"w": transposed})["w"].item() == squared({"w": mx.array(values)})["w"].item()


def test_parameters_are_dealt_to_two_streams_of_a_cpu_with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"a": 5, "b": 40, "c": 20, "d": 20}
    monkeypatch.setattr("mlxbert.backend.threads.use_fast_blas", lambda: BlasStatus(True, None, "", 2))
    made = parts(sizes)
    assert [part.names for part in made] == [("b", "a"), ("c", "d")]
    assert made[0].stream != made[1].stream == parts(sizes)[1].stream
    assert [part.names for part in parts({"a": 1})] == [("a",)]
    monkeypatch.setattr("mlxbert.backend.threads.use_fast_blas", lambda: BlasStatus(True, None, "", 1))
    assert [part.names for part in parts(sizes)] == [("b", "c", "d", "a")]
