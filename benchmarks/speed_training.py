"""The sides of `benchmarks.speed` that train: the same batches, a mean pooling, a binary head, AdamW, clipping at 1.

The head starts from the same weights on each side, so that without dropout the losses of the first steps are the
same: that is compared. Timed are steps with dropout 0.1. The batches have the rows that mlxbert puts together; PyTorch
pads each to its own longest row, ours to few lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import speed_inputs as inputs
from benchmarks.speed_sides import CHECK, COMPILED, OURS, Run, Settings

# Small: the first steps of AdamW have the size of the rate whatever the gradient, and random weights overshoot.
_RATE, _DECAY, _MAX_NORM = 5e-6, 0.01, 1.0
# Steps whose losses are compared.
_CHECKED = 3

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Ids and mask, (B, L) int32, and targets, (B,) float32."""
Step = Callable[[Arrays], float]
"""One step; returns its loss."""


def training(settings: Settings) -> dict[str, Run]:
    """Return the cases: a step on each batch, and the losses of the first steps without dropout."""
    batches = inputs.read_batches(settings.folder)
    make = mlxbert if settings.side == OURS else pytorch
    checked = [batches[i % len(batches)] for i in range(_CHECKED)]
    steps: list[Step] = []

    def timed() -> np.ndarray:
        if not steps:
            steps.append(make(settings, 0.1))
        losses(steps[0], batches)
        return np.zeros(1)  # dropout is random: only the check compares

    return {"steps": timed, CHECK: lambda: losses(make(settings, 0.0), checked)}


def losses(step: Step, batches: Sequence[Arrays]) -> np.ndarray:
    """Take a step on each batch; return the losses."""
    return np.array([step(batch) for batch in batches])


def head_weights(width: int) -> np.ndarray:
    """Return the first weights of the head, (1, D) float32; its bias is 0."""
    return (0.02 * np.random.default_rng(1).standard_normal((1, width))).astype(np.float32)


def mlxbert(settings: Settings, dropout: float) -> Step:
    """Our `TrainStep`, as the trainer makes it."""
    import mlx.core as mx

    from heads.binary import BinaryClassificationHead
    from mlxbert.checkpoint import load_core
    from mlxbert.training.optimizer import Schedule, parameter_rules
    from mlxbert.training.step import StepSettings, TrainStep
    from mlxbert.with_head import BertWithHead

    mx.set_default_device(mx.cpu)
    mx.random.seed(0)
    core = load_core(settings.folder / inputs.CONVERTED)
    core.set_dropout(dropout)
    width = core.config.hidden_size
    model = BertWithHead(core, BinaryClassificationHead(width, dropout=dropout))
    model.head.output.weight = mx.array(head_weights(width))
    rules = parameter_rules(model, rate=_RATE, weight_decay=_DECAY)
    step = TrainStep(model, rules, Schedule(1, "constant"), StepSettings(max_norm=_MAX_NORM))

    def take(batch: Arrays) -> float:
        ids, mask, targets = batch
        inputs = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": mask}
        return step([(inputs, targets, np.ones(len(ids), np.float32))]).loss

    return take


def pytorch(settings: Settings, dropout: float) -> Step:
    """A plain loop with torch's fused AdamW; the loss compiled on request."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    directory = settings.folder / inputs.MODEL
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    encoder: Any = AutoModel.from_pretrained(directory, dtype=torch.float32, add_pooling_layer=False, **dropouts)
    head = torch.nn.Linear(encoder.config.hidden_size, 1)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(head_weights(encoder.config.hidden_size)))
        head.bias.zero_()
    model = torch.nn.ModuleDict({"encoder": encoder, "drop": torch.nn.Dropout(dropout), "head": head}).train()

    def loss_of(ids: Any, mask: Any, targets: Any) -> Any:
        hidden = encoder(ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        logits = model["head"](model["drop"](pooled))[:, 0]
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)

    call = torch.compile(loss_of) if settings.side == COMPILED else loss_of
    matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and "LayerNorm" not in name]
    vectors = [p for name, p in model.named_parameters() if p.ndim == 1 or "LayerNorm" in name]
    groups = [{"params": matrices, "weight_decay": _DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=_RATE, fused=True)

    def take(batch: Arrays) -> float:
        ids, mask, targets = batch
        length = int(mask.sum(1).max())
        cut = (torch.from_numpy(array[:, :length].astype(np.int64)) for array in (ids, mask))
        loss = call(*cut, torch.from_numpy(targets))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return take
