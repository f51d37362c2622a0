"""Fifty steps of LoRA and DoRA against PEFT's: the same losses and the same change of every adapter."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxbert.adapters import LoRA, add_adapters
from mlxbert.training.optimizer import Schedule, parameter_rules
from mlxbert.training.step import StepSettings, TrainStep
from tests.training.test_training_parity import (
    CHANGE_TOLERANCE,
    DECAY,
    HEAD_RATE,
    LOSS_TOLERANCE,
    RATE,
    ROWS,
    STEPS,
    TASKS,
    WARMUP,
    Paths,
    Run,
    build,
    deviations,
    numpy_weights,
    part,
    paths_of,
)

torch = pytest.importorskip("torch", reason="the reference is PyTorch, which is not installed")
peft = pytest.importorskip("peft", reason="the reference is PEFT, which is not installed")

__all__ = ["paths_of"]  # a fixture

TASK = TASKS["multiclass"]
MAX_NORM = 0.3
PARTS = {
    "lora_a": "lora_A.default.weight",
    "lora_b": "lora_B.default.weight",
    "magnitude": "lora_magnitude_vector.default.weight",
}


def adapted(out: Path, settings: LoRA) -> tuple[Any, dict[str, np.ndarray], Any]:
    """The model with fresh adapters from a seed, and its data."""
    model, inputs, targets = build(out, TASK)
    mx.random.seed(11)
    add_adapters(model.core, settings)
    return model, inputs, targets


def train_here(out: Path, settings: LoRA) -> Run:
    model, inputs, targets = adapted(out, settings)
    rules = parameter_rules(model, rate=RATE, head_rate=HEAD_RATE, weight_decay=DECAY)
    step = TrainStep(
        model, rules, Schedule(STEPS, "linear", WARMUP, first_step_is_zero=True), StepSettings(max_norm=MAX_NORM)
    )
    before = numpy_weights(model)
    encoded = model.head.encode_targets(targets)
    losses = [step([(part(inputs, i), encoded[i * ROWS : (i + 1) * ROWS], None)]).loss for i in range(STEPS)]
    return Run(np.array(losses), before, numpy_weights(model))


def name_here(name: str) -> str:
    """Our name of a parameter of PEFT's model."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".base.")
    for ours, theirs in PARTS.items():
        name = name.replace(theirs, ours)
    return f"core.{name}"


def train_peft(source: Path, out: Path, settings: LoRA, paths: list[str]) -> Run:
    """A plain PyTorch loop on `get_peft_model`, with the same first A; the classifier is trained whole."""
    import transformers

    ours, inputs, targets = adapted(out, settings)
    encoder = getattr(transformers, ours.core.architecture.encoder_class).from_pretrained(source)
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules=paths, use_dora=settings.dora
    )
    model = peft.get_peft_model(encoder, config).train()
    head = torch.nn.Linear(ours.core.config.hidden_size, ours.head.num_outputs)
    start = numpy_weights(ours)
    named = {name_here(name): p for name, p in model.named_parameters()}
    named |= {f"head.output.{name}": p for name, p in head.named_parameters()}
    with torch.no_grad():
        for name, parameter in named.items():
            if name.endswith("magnitude"):  # the same norms, but for rounding
                np.testing.assert_allclose(parameter.numpy(), start[name], rtol=1e-6)
            if name.startswith("head.") or name.endswith(("lora_a", "magnitude")):
                parameter.copy_(torch.from_numpy(start[name]))
    before = {name: p.detach().numpy().copy() for name, p in named.items()}
    trained = {name: p for name, p in named.items() if p.requires_grad}
    groups = [
        {
            "params": [
                p for name, p in trained.items() if name.startswith("head.") == on_head and (p.ndim == 1) == flat
            ],
            "lr": HEAD_RATE if on_head else RATE,
            # Vectors are not decayed: biases, and DoRA's magnitude.
            "weight_decay": 0.0 if flat else DECAY,
        }
        for on_head in (False, True)
        for flat in (False, True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    encoded = torch.from_numpy(ours.head.encode_targets(targets))
    taken = inspect.signature(encoder.forward).parameters
    losses, clipped = [], 0
    for i in range(STEPS):
        batch = {name: torch.from_numpy(array) for name, array in part(inputs, i).items() if name in taken}
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        loss = TASK.loss(head((hidden * mask).sum(1) / mask.sum(1)), encoded[i * ROWS : (i + 1) * ROWS])
        optimizer.zero_grad()
        loss.backward()
        clipped += float(torch.nn.utils.clip_grad_norm_(list(trained.values()), MAX_NORM)) > MAX_NORM
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    assert clipped >= 5, "clipping must come up for the test to see it"
    return Run(np.array(losses), before, {name: p.detach().numpy().copy() for name, p in named.items()})


CASES = {
    "bert": ("bert", LoRA(rank=4, alpha=8, layers=("query", "value"))),
    "bert, every layer": ("bert", LoRA(rank=3, alpha=12, layers=("all",))),
    "bert, DoRA": ("bert", LoRA(rank=4, alpha=8, layers=("query", "intermediate.dense"), dora=True)),
    "modernbert, fused": ("modernbert", LoRA(rank=4, alpha=8, layers=("query", "value"))),
    "albert, shared": ("albert", LoRA(rank=4, alpha=8, layers=("all",))),
    "deberta-v2": ("deberta-v2", LoRA(rank=4, alpha=8, layers=("query", "key", "value"))),
    "distilbert": ("distilbert", LoRA(rank=4, alpha=8, layers=("query", "value"))),
}


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_are_pefts(paths_of: Paths, case: str) -> None:
    model_type, settings = CASES[case]
    source, out = paths_of(model_type)
    run = train_here(out, settings)
    paths = [name.removeprefix("core.").removesuffix(".lora_a") for name in run.before if name.endswith(".lora_a")]
    loss, changes = deviations(run, train_peft(source, out, settings, paths))
    worst = max(changes, key=changes.__getitem__)
    print(f"{case}: loss {loss:.1e}, largest change {changes[worst]:.1e} ({worst})")
    assert loss <= LOSS_TOLERANCE
    assert changes[worst] <= CHANGE_TOLERANCE, worst
    trained = {name for name in run.after if (run.after[name] != run.before[name]).any()}
    assert trained >= {name for name in run.after if name.endswith("lora_b") and ".pooler." not in name}
    assert all(name.startswith("head.") or name.rpartition(".")[2] in PARTS for name in trained)
