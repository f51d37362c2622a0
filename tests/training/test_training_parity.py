"""Fifty steps of fine-tuning against PyTorch's: the same losses and the same change of every weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxbert
from converter.convert import convert
from heads.binary import BinaryClassificationHead
from heads.multiclass import MulticlassClassificationHead
from heads.multilabel import MultilabelClassificationHead
from heads.regression import RegressionHead
from mlxbert.model_arrays import named_parameters
from mlxbert.training import optimizer as optim
from mlxbert.training.optimizer import AdamW, Rule, Schedule, parameter_rules
from mlxbert.training.step import StepSettings, TrainStep
from mlxbert.with_head import BertWithHead
from tests.support.tiny import SIZES, save_tiny

torch = pytest.importorskip("torch", reason="the reference is PyTorch, which is not installed")

WIDTH, STEPS, ROWS, LENGTH = SIZES["hidden_size"], 50, 8, 14
RATE, HEAD_RATE, DECAY, MAX_NORM, WARMUP = 5e-4, 1e-3, 0.1, 0.5, 5
LOSS_TOLERANCE, CHANGE_TOLERANCE = 1e-4, 5e-3


@dataclass(frozen=True)
class Task:
    """A head, its targets (N, …) in the user's units, PyTorch's loss of logits and encoded targets, the pooling."""

    head: Callable[[Any], Any]
    targets: Callable[[np.random.Generator, int], Any]
    loss: Callable[[Any, Any], Any]
    pooling: str


TASKS = {
    "binary": Task(
        lambda y: BinaryClassificationHead(WIDTH, dropout=0.0),
        lambda rng, n: rng.integers(0, 2, n),
        lambda z, y: torch.nn.functional.binary_cross_entropy_with_logits(z[:, 0], y),
        "cls",
    ),
    "multiclass": Task(
        lambda y: MulticlassClassificationHead.from_targets(WIDTH, y, dropout=0.0),
        lambda rng, n: rng.permutation(np.arange(n) % 4),
        lambda z, y: torch.nn.functional.cross_entropy(z, y.long()),
        "mean",
    ),
    "multilabel": Task(
        lambda y: MultilabelClassificationHead.from_targets(WIDTH, y, dropout=0.0),
        lambda rng, n: rng.integers(0, 2, (n, 5)),
        lambda z, y: torch.nn.functional.binary_cross_entropy_with_logits(z, y),
        "mean",
    ),
    "regression": Task(
        lambda y: RegressionHead.from_targets(WIDTH, y, dropout=0.0),
        lambda rng, n: 100 + 30 * rng.standard_normal(n),
        lambda z, y: torch.nn.functional.mse_loss(z[:, 0], y),
        "pooler",
    ),
}


@dataclass(frozen=True)
class Run:
    """Losses (STEPS,), weights before and after by name."""

    losses: np.ndarray
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("training_parity")
    save_tiny(root / "source", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    convert(root / "source", root / "out", verify=False)
    return root / "source", root / "out"


def make_data(task: Task) -> tuple[dict[str, np.ndarray], Any]:
    """Ragged texts of every batch after one another, with the padding token (row 0) in them, and targets."""
    rng = np.random.default_rng(7)
    n = STEPS * ROWS
    lengths = rng.integers(3, LENGTH + 1, n)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(1, SIZES["vocab_size"], (n, LENGTH)) * mask
    # A padding token that is attended to as well: in torch its embedding has no gradient even then.
    ids[:, 2] = 0
    types = (np.arange(LENGTH) >= lengths[:, None] // 2) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}, task.targets(rng, n)


def build(out: Path, task: Task, targets: Any) -> BertWithHead:
    mx.random.seed(3)
    return BertWithHead(mlxbert.load(out)[0], task.head(targets), task.pooling)


def part(inputs: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    return {name: array[step * ROWS : (step + 1) * ROWS] for name, array in inputs.items()}


def numpy_weights(model: BertWithHead) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in named_parameters(model).items()}


def train_here(
    out: Path, task: Task, settings: StepSettings, change: Callable[[dict[str, Rule]], dict[str, Rule]] = dict
) -> Run:
    inputs, targets = make_data(task)
    model = build(out, task, targets)
    rules = change(parameter_rules(model, rate=RATE, head_rate=HEAD_RATE, weight_decay=DECAY))
    step = TrainStep(model, rules, Schedule(STEPS, "linear", WARMUP, first_step_is_zero=True), settings)
    before = numpy_weights(model)
    encoded = model.head.encode_targets(targets)
    losses = [step([(part(inputs, i), encoded[i * ROWS : (i + 1) * ROWS], None)]).loss for i in range(STEPS)]
    return Run(np.array(losses), before, numpy_weights(model))


def train_torch(source: Path, out: Path, task: Task) -> Run:
    """A plain PyTorch loop: BertModel, a linear head from the same numbers, torch.optim.AdamW, LambdaLR."""
    import transformers

    inputs, targets = make_data(task)
    ours = build(out, task, targets)
    bert = transformers.BertModel.from_pretrained(source).train()
    head = torch.nn.Linear(WIDTH, ours.head.num_outputs)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(np.array(ours.head.output.weight)))
        head.bias.copy_(torch.from_numpy(np.array(ours.head.output.bias)))
    named = {f"core.{name}": p for name, p in bert.named_parameters()}
    named |= {f"head.output.{name}": p for name, p in head.named_parameters()}
    groups = []
    for on_head in (False, True):
        for plain in (False, True):
            chosen = [
                p
                for name, p in named.items()
                if name.startswith("head.") == on_head and (name.endswith("bias") or "LayerNorm" in name) == plain
            ]
            rate = HEAD_RATE if on_head else RATE
            groups.append({"params": chosen, "lr": rate, "weight_decay": 0.0 if plain else DECAY})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    before = {name: p.detach().numpy().copy() for name, p in named.items()}
    encoded = torch.from_numpy(ours.head.encode_targets(targets))
    losses, clipped = [], 0
    for i in range(STEPS):
        batch = {name: torch.from_numpy(array) for name, array in part(inputs, i).items()}
        output = bert(**batch)
        hidden, mask = output.last_hidden_state, batch["attention_mask"][..., None]
        features = {
            "cls": hidden[:, 0],
            "mean": (hidden * mask).sum(1) / mask.sum(1),
            "pooler": output.pooler_output,
        }[task.pooling]
        loss = task.loss(head(features), encoded[i * ROWS : (i + 1) * ROWS])
        optimizer.zero_grad()
        loss.backward()
        clipped += float(torch.nn.utils.clip_grad_norm_(list(named.values()), MAX_NORM)) > MAX_NORM
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    assert clipped >= 5, "clipping must come up for the test to see it"
    return Run(np.array(losses), before, {name: p.detach().numpy().copy() for name, p in named.items()})


def deviations(run: Run, reference: Run) -> tuple[float, dict[str, float]]:
    """Largest relative difference of the loss, and by name ‖ΔW − ΔW_ref‖ / ‖ΔW_ref‖ of all but the key biases.

    A tensor that PyTorch left as it was has 0 if it is so here too, else infinity.
    """
    loss = float(np.max(np.abs(run.losses - reference.losses) / np.abs(reference.losses)))
    changes = {}
    assert set(run.after) == set(reference.after)
    for name in reference.after:
        if name.endswith("self.key.bias"):
            continue
        np.testing.assert_array_equal(run.before[name], reference.before[name])
        expected = (reference.after[name] - reference.before[name]).astype(np.float64)
        got = (run.after[name] - run.before[name]).astype(np.float64)
        size = np.linalg.norm(expected)
        if size:
            changes[name] = float(np.linalg.norm(got - expected) / size)
        else:
            changes[name] = float("inf") if got.any() else 0.0
        assert not np.isnan(changes[name]), name  # max() would pass over it
    return loss, changes


SETTINGS = StepSettings(max_norm=MAX_NORM)


@pytest.mark.parametrize("name", TASKS)
def test_fifty_steps_are_pytorchs(paths: tuple[Path, Path], name: str) -> None:
    loss, changes = deviations(train_here(paths[1], TASKS[name], SETTINGS), train_torch(*paths, TASKS[name]))
    worst = max(changes, key=changes.__getitem__)
    print(f"{name}: loss {loss:.1e}, largest change {changes[worst]:.1e} ({worst})")
    assert loss <= LOSS_TOLERANCE
    assert changes[worst] <= CHANGE_TOLERANCE, worst
    unused_pooler = {n for n, change in changes.items() if n.startswith("core.pooler.") and change == 0}
    assert bool(unused_pooler) == (TASKS[name].pooling != "pooler")


@pytest.fixture(scope="module")
def binary_reference(paths: tuple[Path, Path]) -> Run:
    return train_torch(*paths, TASKS["binary"])


def decay_everything(rules: dict[str, Rule]) -> dict[str, Rule]:
    return {name: replace(rule, weight_decay=DECAY) for name, rule in rules.items()}


def decay_nothing(rules: dict[str, Rule]) -> dict[str, Rule]:
    return {name: replace(rule, weight_decay=0.0) for name, rule in rules.items()}


class Uncorrected(AdamW):
    """MLX's default."""

    def scalars(self, rules: Any, factor: float, step: int) -> dict[str, mx.array]:
        """As after very many steps, when both corrections are 1."""
        return super().scalars(rules, factor, 10**6)


MUTATIONS: dict[str, tuple[StepSettings, Callable[[dict[str, Rule]], dict[str, Rule]]]] = {
    "no weight decay": (SETTINGS, decay_nothing),
    "decay on bias and LayerNorm": (SETTINGS, decay_everything),
    "no bias correction": (replace(SETTINGS, optimizer=Uncorrected()), dict),
    "no clipping": (replace(SETTINGS, max_norm=None), dict),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutated_optimizer_fails_parity(paths: tuple[Path, Path], binary_reference: Run, mutation: str) -> None:
    settings, change = MUTATIONS[mutation]
    _, changes = deviations(train_here(paths[1], TASKS["binary"], settings, change), binary_reference)
    print(f"{mutation}: largest change {max(changes.values()):.1e}")
    assert max(changes.values()) > 2 * CHANGE_TOLERANCE


def test_a_trained_padding_embedding_fails_parity(
    paths: tuple[Path, Path], binary_reference: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxbert.training.gradients.padding_rows", lambda model, names: {})
    _, changes = deviations(train_here(paths[1], TASKS["binary"], SETTINGS), binary_reference)
    assert changes["core.embeddings.word_embeddings.weight"] > CHANGE_TOLERANCE


def test_the_same_seed_gives_the_same_bytes(paths: tuple[Path, Path]) -> None:
    first, second = (train_here(paths[1], TASKS["multiclass"], SETTINGS) for _ in range(2))
    assert first.losses.tobytes() == second.losses.tobytes()
    assert {n: a.tobytes() for n, a in first.after.items()} == {n: a.tobytes() for n, a in second.after.items()}


def test_clipping_is_pytorchs() -> None:
    gradients = {"a": mx.array([3.0, 4.0]), "b": mx.array([[12.0]])}
    norm = float(optim.global_norm(optim.squared_norms(gradients)).item())
    assert norm == 13.0
    given = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1, 1))]
    given[0].grad, given[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])
    torch.nn.utils.clip_grad_norm_(given, 2.0)
    assert given[1].grad.item() == pytest.approx(12.0 * optim.clip_factor(norm, 2.0), rel=1e-6)
    assert optim.clip_factor(norm, 14.0) == optim.clip_factor(norm, None) == 1.0
