"""A `TrainStep` as a configuration describes it."""

from __future__ import annotations

from mlxbert.training.config import TrainingConfig
from mlxbert.training.groups import GroupError, Rule, default_learning_rate, parameter_rules
from mlxbert.training.schedule import Schedule
from mlxbert.training.step import TrainStep
from mlxbert.with_head import BertWithHead


def training_rules(model: BertWithHead, config: TrainingConfig) -> tuple[dict[str, Rule], float]:
    """The rule of every parameter, and the peak rate.

    Raises:
        GroupError: the settings do not fit this model, or would freeze layers at random weights.
    """
    peak = default_learning_rate(model.core.config) if config.rate is None else config.rate
    rules = parameter_rules(
        model,
        rate=peak,
        head_rate=config.head_rate,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        freeze_embeddings=config.freeze_embeddings,
        freeze_layers=config.freeze_layers,
    )
    layers = model.core.config.num_hidden_layers
    both = config.freeze_layers + config.reinitialize_layers - layers
    if config.freeze_layers and config.reinitialize_layers and both > 0:
        raise GroupError(
            f"freeze_layers={config.freeze_layers} and reinitialize_layers={config.reinitialize_layers} of {layers} "
            f"layers would freeze {both} at random weights; fix: {both} less of one of them"
        )
    return rules, peak


def new_step(model: BertWithHead, config: TrainingConfig, steps: int) -> tuple[TrainStep, float]:
    """The step that trains `model` in `steps` updates, and its peak rate.

    Raises:
        GroupError, StepError: the settings do not fit this model.
    """
    rules, peak = training_rules(model, config)
    warmup = round(config.warmup * steps)
    schedule = Schedule(steps, config.schedule, warmup, config.schedule_end, config.schedule_power)
    return TrainStep(model, rules, schedule, config.step_settings()), peak
