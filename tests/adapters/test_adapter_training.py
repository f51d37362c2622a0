"""Training adapters: gradients, memory of the state, checkpointing, packed bases, and refusals; step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from heads.binary import BinaryClassificationHead
from mlxbert.adapters import LoRA, adapted, add_adapters, is_adapter
from mlxbert.checkpoint import load_core
from mlxbert.model_arrays import named_parameters
from mlxbert.models.architecture import architecture, supported
from mlxbert.quantization import PackedLinear
from mlxbert.training.config import TrainingConfig
from mlxbert.training.gradients import AWP
from mlxbert.training.optimizer import CORE, ConfigurationError, Schedule, parameter_rules
from mlxbert.training.state import STATE, read_arrays, restore_step, step_state, write_arrays
from mlxbert.training.step import StepSettings, TrainStep
from mlxbert.training.trainer import peak_rates
from mlxbert.with_head import BertWithHead
from tests.training.test_every_architecture import batch, config_of, largest_difference

DORA = LoRA(rank=4, layers=("all",), dora=True)


def model_of(model_type: str, lora: LoRA = DORA, dropout: float = 0.1) -> BertWithHead:
    mx.random.seed(5)
    core = architecture(model_type).encoder(config_of(model_type))
    core.set_dropout(dropout)
    add_adapters(core, lora)
    for layer in adapted(core).values():
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape)
    return BertWithHead(core, BinaryClassificationHead(core.config.hidden_size, dropout=dropout), "mean")


def step_of(model: BertWithHead, rules: dict[str, Any] | None = None, **settings: Any) -> TrainStep:
    given = parameter_rules(model, rate=1e-2, **(rules or {}))
    return TrainStep(model, given, Schedule(20, "cosine", 3), StepSettings(**{"compiled": False, **settings}))


def gradients(step: TrainStep, given: Any, seed: int = 3) -> dict[str, mx.array]:
    mx.random.seed(seed)
    step.accumulate(*given)
    found = step.whole_gradients()
    step.sums, step.batches = None, 0
    return found


@pytest.mark.parametrize("model_type", supported())
def test_only_adapters_and_head_are_trained_and_saved(model_type: str, tmp_path: Path) -> None:
    step = step_of(model_of(model_type), ema_decay=0.9)
    core = {name: array for name, array in step.frozen.items() if name.startswith(CORE) and not is_adapter(name)}
    before = {name: np.array(array) for name, array in core.items()}
    trained = set(step.weights)
    assert {name for name in trained if name.startswith(CORE)} <= {name for name in trained if is_adapter(name)}
    assert set(step.means) == set(step.squares) == set(step.average) == trained
    step([batch(model_type)])
    for name, array in before.items():
        np.testing.assert_array_equal(np.array(named_parameters(step.model)[name]), array)
    # The state has nothing of the base, and goes on to the bit.
    step.accumulate(*batch(model_type, 1))
    write_arrays(tmp_path / STATE, step_state(step))
    saved = read_arrays(tmp_path / STATE)[0]
    assert not [name for name in saved if name.removeprefix("frozen.") in core]
    step([batch(model_type, 2)])
    other = step_of(model_of(model_type), ema_decay=0.9)
    restore_step(other, saved)
    other([batch(model_type, 2)])
    for kind in ("weights", "means", "squares", "average"):
        for name, array in getattr(step, kind).items():
            assert np.array(array).tobytes() == np.array(getattr(other, kind)[name]).tobytes(), name


@pytest.mark.parametrize("model_type", supported())
def test_checkpointed_layers_give_adapters_the_same_gradients(model_type: str) -> None:
    plain, recomputed = (
        gradients(step_of(model_of(model_type, dropout=0.0), checkpoint_layers=checkpointed), batch(model_type))
        for checkpointed in (False, True)
    )
    assert all(float(mx.abs(array).max()) > 0 for array in plain.values())
    assert largest_difference(recomputed, plain) < 1e-5


@pytest.mark.parametrize("model_type", supported())
def test_rates_of_adapters_fall_with_their_layers_and_frozen_layers_have_none(model_type: str) -> None:
    model = model_of(model_type)
    rules = parameter_rules(model, rate=1.0, head_rate=7.0, layer_decay=0.5)
    rates = {
        model.core.depth_of(name.removeprefix(CORE)): rule.rate
        for name, rule in rules.items()
        if is_adapter(name) and not rule.frozen
    }
    in_order = [rates[depth] for depth in sorted(rates)]
    assert in_order == sorted(in_order)
    assert in_order[-1] == 1.0
    assert {rule.rate for name, rule in rules.items() if not name.startswith(CORE)} == {7.0}
    decays = {name.rpartition(".")[2]: rule.weight_decay for name, rule in rules.items() if is_adapter(name)}
    assert decays == {"lora_a": 0.01, "lora_b": 0.01, "magnitude": 0.0}
    step = step_of(model, {"freeze_layers": model.core.num_layers})
    assert not any(name.startswith(CORE) for name in step.weights)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted tiny BERT in 4 bits, 64 wide."""
    pytest.importorskip("torch", reason="transformers makes the checkpoint")
    from converter.convert import convert
    from tests.support.tiny import save_tiny

    root = tmp_path_factory.mktemp("packed")
    save_tiny(root / "source", num_hidden_layers=2, hidden_size=64, intermediate_size=128)
    return convert(root / "source", root / "packed", quantize="4bit", verify=False).path


def on_packed(directory: Path, lora: LoRA, dequantize: bool) -> BertWithHead:
    core = load_core(directory, dtype=mx.float32, dequantize=dequantize)
    core.set_dropout(0.0)
    mx.random.seed(5)
    add_adapters(core, lora)
    for layer in adapted(core).values():
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape)
    return BertWithHead(core, BinaryClassificationHead(64), "mean", source=directory)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(
    ("dora", "compiled"),
    [(False, False), (True, False), pytest.param(True, True, marks=pytest.mark.slow)],  # g++ takes seconds
    ids=["lora", "dora", "compiled"],
)
def test_a_packed_base_stays_packed_and_gives_the_gradients_of_the_unpacked(
    packed: Path, dora: bool, checkpointed: bool, compiled: bool
) -> None:
    lora = LoRA(rank=4, layers=("all",), dora=dora)
    found, losses = [], []
    for dequantize in (True, False):
        model = on_packed(packed, lora, dequantize)
        step = step_of(model, checkpoint_layers=checkpointed, compiled=compiled and not dequantize)
        found.append(gradients(step, batch("bert")))
        losses.append(step([batch("bert", 1)]).loss)
    assert largest_difference(found[1], found[0]) < 1e-5
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    words = {name: array for name, array in step.frozen.items() if array.dtype == mx.uint32}
    assert {name.rpartition(".")[2] for name in words} == {"weight"}
    bases = [layer.base for layer in adapted(model.core).values()]
    assert all(isinstance(base, PackedLinear) and base.weight.dtype == mx.uint32 for base in bases)
    assert not any(isinstance(module, nn.Linear) for module in model.core.modules())


def test_half_precision_awp_and_padding_work_with_adapters() -> None:
    for settings in ({"compute_dtype": "bfloat16"}, {"compute_dtype": "float16"}, {"adversarial": AWP(1e-2)}):
        step = step_of(model_of("bert"), **settings)
        plain = step_of(model_of("bert"))
        first, second = step([batch("bert")]), plain([batch("bert")])
        assert first.loss == pytest.approx(second.loss, rel=3e-2)
        assert all(array.dtype == mx.float32 for array in step.weights.values())


def test_settings_that_contradict_adapters() -> None:
    with pytest.raises(ConfigurationError, match=r"moves the word embeddings, which are frozen below adapters"):
        TrainingConfig(lora="rank=8", adversarial="fgm")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="would freeze random weights below adapters"):
        TrainingConfig(lora="rank=8", reinitialize_layers=1)  # type: ignore[arg-type]


def test_the_default_rate_is_ten_times_that_of_the_whole_encoder() -> None:
    config = config_of("bert")
    whole, head = peak_rates(config, TrainingConfig())
    rate, head_rate = peak_rates(config, TrainingConfig(lora={"rank": 4}))  # type: ignore[arg-type]
    assert rate == pytest.approx(10 * whole)
    assert head_rate == max(head, rate)
    assert peak_rates(config, TrainingConfig(lora=LoRA(), rate=1e-3)) == (1e-3, 1e-3)
