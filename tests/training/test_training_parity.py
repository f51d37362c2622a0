"""Fifty steps of fine-tuning against PyTorch's: the same losses and the same change of every weight."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from mlxbert.models.architecture import architecture, supported
from mlxbert.training import optimizer as optim
from mlxbert.training.optimizer import AdamW, Rule, Schedule, parameter_rules
from mlxbert.training.step import StepSettings, TrainStep
from mlxbert.with_head import BertWithHead
from tests.support.tiny import save_tiny

torch = pytest.importorskip("torch", reason="the reference is PyTorch, which is not installed")

STEPS, ROWS, LENGTH = 50, 8, 14
RATE, HEAD_RATE, DECAY, MAX_NORM, WARMUP = 5e-4, 1e-3, 0.1, 0.5, 5
LOSS_TOLERANCE, CHANGE_TOLERANCE = 1e-4, 5e-3
# A bias whose gradient is 0 but for rounding, as that of keys: AdamW makes steps of full size out of it.
NO_GRADIENT = 1e-6


@dataclass(frozen=True)
class Task:
    """A head of a width, its targets (N, …) in the user's units, PyTorch's loss of logits and targets, the pooling."""

    head: Callable[[int, Any], Any]
    targets: Callable[[np.random.Generator, int], Any]
    loss: Callable[[Any, Any], Any]
    pooling: str


TASKS = {
    "binary": Task(
        lambda width, y: BinaryClassificationHead(width, dropout=0.0),
        lambda rng, n: rng.integers(0, 2, n),
        lambda z, y: torch.nn.functional.binary_cross_entropy_with_logits(z[:, 0], y),
        "cls",
    ),
    "multiclass": Task(
        lambda width, y: MulticlassClassificationHead.from_targets(width, y, dropout=0.0),
        lambda rng, n: rng.permutation(np.arange(n) % 4),
        lambda z, y: torch.nn.functional.cross_entropy(z, y.long()),
        "mean",
    ),
    "multilabel": Task(
        lambda width, y: MultilabelClassificationHead.from_targets(width, y, dropout=0.0),
        lambda rng, n: rng.integers(0, 2, (n, 5)),
        lambda z, y: torch.nn.functional.binary_cross_entropy_with_logits(z, y),
        "mean",
    ),
    "regression": Task(
        lambda width, y: RegressionHead.from_targets(width, y, dropout=0.0),
        lambda rng, n: 100 + 30 * rng.standard_normal(n),
        lambda z, y: torch.nn.functional.mse_loss(z[:, 0], y),
        "pooler",
    ),
}


@dataclass(frozen=True)
class Run:
    """Losses (STEPS,), weights before and after by name, names of the biases that have no gradient."""

    losses: np.ndarray
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    without_gradient: set[str] = field(default_factory=set)


Paths = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def paths_of(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """The source and the conversion of an architecture's tiny encoder, without dropout."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(model_type: str) -> tuple[Path, Path]:
        if model_type not in made:
            import transformers

            root = tmp_path_factory.mktemp("training_parity")
            defaults = transformers.CONFIG_MAPPING[model_type]().to_dict()
            dropouts = {name: 0.0 for name, value in defaults.items() if "dropout" in name and value is not None}
            save_tiny(root / "source", architecture(model_type).encoder_class, **dropouts)
            convert(root / "source", root / "out", verify=False)
            made[model_type] = root / "source", root / "out"
        return made[model_type]

    return make


@pytest.fixture(scope="module")
def paths(paths_of: Paths) -> tuple[Path, Path]:
    return paths_of("bert")


def make_data(config: Any, task: Task) -> tuple[dict[str, np.ndarray], Any]:
    """Ragged texts of every batch after one another, with the padding token in them, and targets."""
    rng = np.random.default_rng(7)
    pad, types = config.pad_token_id, config.table_rows.get("token_type_ids", 1)
    n = STEPS * ROWS
    lengths = rng.integers(3, LENGTH + 1, n)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)
    ids = (pad + rng.integers(1, config.vocab_size, (n, LENGTH)) * mask) % config.vocab_size
    # A padding token that is attended to as well: in torch its embedding has no gradient even then.
    ids[:, 2] = pad
    inputs = {"input_ids": ids, "attention_mask": mask}
    if types > 1:
        inputs["token_type_ids"] = (np.arange(LENGTH) >= lengths[:, None] // 2) * mask
    return inputs, task.targets(rng, n)


def build(out: Path, task: Task) -> tuple[BertWithHead, dict[str, np.ndarray], Any]:
    """The encoder under a head from a seed, and its data."""
    mx.random.seed(3)
    core = mlxbert.load(out)[0]
    inputs, targets = make_data(core.config, task)
    return BertWithHead(core, task.head(core.config.hidden_size, targets), task.pooling), inputs, targets


def part(inputs: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    return {name: array[step * ROWS : (step + 1) * ROWS] for name, array in inputs.items()}


def numpy_weights(model: BertWithHead) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in named_parameters(model).items()}


def train_here(
    out: Path, task: Task, settings: StepSettings, change: Callable[[dict[str, Rule]], dict[str, Rule]] = dict
) -> Run:
    model, inputs, targets = build(out, task)
    rules = change(parameter_rules(model, rate=RATE, head_rate=HEAD_RATE, weight_decay=DECAY))
    step = TrainStep(model, rules, Schedule(STEPS, "linear", WARMUP, first_step_is_zero=True), settings)
    before = numpy_weights(model)
    encoded = model.head.encode_targets(targets)
    losses = [step([(part(inputs, i), encoded[i * ROWS : (i + 1) * ROWS], None)]).loss for i in range(STEPS)]
    return Run(np.array(losses), before, numpy_weights(model))


def train_torch(source: Path, out: Path, task: Task) -> Run:
    """A plain PyTorch loop: transformers' encoder, a linear head of the same numbers, torch.optim.AdamW, LambdaLR."""
    import transformers

    ours, inputs, targets = build(out, task)
    encoder = getattr(transformers, ours.core.architecture.encoder_class).from_pretrained(source).train()
    head = torch.nn.Linear(ours.core.config.hidden_size, ours.head.num_outputs)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(np.array(ours.head.output.weight)))
        head.bias.copy_(torch.from_numpy(np.array(ours.head.output.bias)))
    named = {f"core.{name}": p for name, p in encoder.named_parameters()}
    norms = {id(p) for m in encoder.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()}
    named |= {f"head.output.{name}": p for name, p in head.named_parameters()}
    groups = []
    for on_head in (False, True):
        for plain in (False, True):
            chosen = [
                p
                for name, p in named.items()
                if name.startswith("head.") == on_head and (name.endswith("bias") or id(p) in norms) == plain
            ]
            rate = HEAD_RATE if on_head else RATE
            groups.append({"params": chosen, "lr": rate, "weight_decay": 0.0 if plain else DECAY})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    before = {name: p.detach().numpy().copy() for name, p in named.items()}
    encoded = torch.from_numpy(ours.head.encode_targets(targets))
    losses, clipped, largest = [], 0, dict.fromkeys(named, 0.0)
    taken = inspect.signature(encoder.forward).parameters
    for i in range(STEPS):
        batch = {name: torch.from_numpy(array) for name, array in part(inputs, i).items() if name in taken}
        output = encoder(**batch)
        hidden, mask = output.last_hidden_state, batch["attention_mask"][..., None]
        features = {
            "cls": hidden[:, 0],
            "mean": (hidden * mask).sum(1) / mask.sum(1),
            "pooler": getattr(output, "pooler_output", None),
        }[task.pooling]
        loss = task.loss(head(features), encoded[i * ROWS : (i + 1) * ROWS])
        optimizer.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(list(named.values()), MAX_NORM))
        clipped += norm > MAX_NORM
        for name, p in named.items():
            if p.grad is not None:
                largest[name] = max(largest[name], float(p.grad.norm()) / min(norm, MAX_NORM))
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    assert clipped >= 5, "clipping must come up for the test to see it"
    after = {name: p.detach().numpy().copy() for name, p in named.items()}
    return Run(np.array(losses), before, after, {name for name, share in largest.items() if 0 < share < NO_GRADIENT})


def deviations(run: Run, reference: Run) -> tuple[float, dict[str, float]]:
    """Largest relative difference of the loss, and by name ‖ΔW − ΔW_ref‖ / ‖ΔW_ref‖ of all that have a gradient.

    A tensor that PyTorch left as it was has 0 if it is so here too, else infinity.
    """
    loss = float(np.max(np.abs(run.losses - reference.losses) / np.abs(reference.losses)))
    changes = {}
    assert set(run.after) == set(reference.after)
    assert all(name.endswith(".bias") for name in reference.without_gradient)
    for name in reference.after.keys() - reference.without_gradient:
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


# Every task with one encoder, and one task with every encoder.
CASES = [("bert", name) for name in TASKS] + [(name, "multiclass") for name in supported() if name != "bert"]


@pytest.mark.parametrize(("model_type", "name"), CASES)
def test_fifty_steps_are_pytorchs(paths_of: Paths, model_type: str, name: str) -> None:
    source, out = paths_of(model_type)
    reference = train_torch(source, out, TASKS[name])
    loss, changes = deviations(train_here(out, TASKS[name], SETTINGS), reference)
    worst = max(changes, key=changes.__getitem__)
    print(f"{model_type}, {name}: loss {loss:.1e}, largest change {changes[worst]:.1e} ({worst})")
    assert loss <= LOSS_TOLERANCE
    assert changes[worst] <= CHANGE_TOLERANCE, worst
    has_pooler = any(n.startswith("core.pooler.") for n in reference.after)
    unused_pooler = {n for n, change in changes.items() if n.startswith("core.pooler.") and change == 0}
    assert bool(unused_pooler) == (has_pooler and TASKS[name].pooling != "pooler")
    # Of biases, those of the keys alone, if each query's scores are shifted by one number.
    assert len(reference.without_gradient) <= mlxbert.load(out)[0].num_layers


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
