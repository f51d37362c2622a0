"""A competitor's own loss: registered in a file, taken by every head, saved, and trained with end to end."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten

import mlxbert
from heads import losses
from heads import losses as registry
from heads.base import Head
from heads.errors import HeadError
from heads.head_registry import get_head, head_from_settings, registered_heads
from heads.losses import Loss, register_loss
from mlxbert.cli import main as command
from tests.support.head_samples import N, features, make, sample_of
from tests.support.my_losses import MyBCE, MyScaledBCE
from tests.support.packages import install
from tests.support.run_samples import QUICK, options, sample

SOURCE = Path(__file__).parents[1] / "support" / "my_losses.py"
EQUAL = [  # head, its built-in objective, the same loss written anew, options of the head
    ("binary", "bce", "my_bce", {}),
    ("binary", "bce", "my_bce", {"pos_weight": 2.5}),
    ("binary", "bce", "my_bce", {"pos_weight": "balanced"}),
    ("multiclass", "cross_entropy", "my_cross_entropy", {}),
    ("multiclass", "cross_entropy", "my_cross_entropy", {"class_weights": "balanced"}),
    ("multilabel", "bce", "my_bce", {}),
    ("multilabel", "bce", "my_bce", {"pos_weight": (1.0, 2.0, 3.0, 4.0)}),
    ("ordinal", "coral", "my_coral", {}),
    ("regression", "mse", "my_square", {}),
    ("time_series", "mse", "my_square", {}),
]


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a process that has not imported the file of losses."""
    monkeypatch.setattr(registry, "_REGISTERED", {})


@pytest.mark.parametrize(("name", "objective", "own", "options"), EQUAL)
def test_value_gradient_rows_and_weights_are_those_of_the_built_in_loss(
    name: str, objective: str, own: str, options: dict[str, Any]
) -> None:
    built_in = make(name, objective=objective, **options).eval()
    ours = make(name, objective=own, **options).eval()
    assert (ours.objective, type(ours.registered_loss).__module__) == (own, "tests.support.my_losses")
    x, extra = features(), sample_of(name).inputs(ours)
    targets = ours.encode_targets(sample_of(name).targets)
    x = mx.concatenate([x[:-3], mx.full((3, x.shape[1]), 1e4)])  # the last rows only fill up the batch
    rows = np.arange(N) < N - 3
    assert np.array_equal(targets, built_in.encode_targets(sample_of(name).targets))
    assert ours.loss_weight(targets, rows=rows).item() == built_in.loss_weight(targets, rows=rows).item()

    def step(head: Head) -> tuple[mx.array, dict[str, mx.array]]:
        value, gradients = nn.value_and_grad(head, lambda: head.loss(head(x, **extra), targets, rows=rows))()
        return value, dict(tree_flatten(gradients))

    (expected, theirs), (value, mine) = step(built_in), step(ours)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert mine.keys() == theirs.keys()
    for path, gradient in mine.items():
        assert mx.abs(gradient).max().item() > 0, path
        assert mx.allclose(gradient, theirs[path], rtol=1e-4, atol=1e-6), path
    nothing = ours.loss(ours(x, **extra), targets, rows=np.zeros(N))
    assert nothing.item() == 0


def test_a_head_takes_a_name_a_mapping_and_an_object() -> None:
    head = get_head("binary")
    given = ("my_scaled_bce", {"name": "my_scaled_bce", "factor": 3.0}, MyScaledBCE())
    assert [head(8, objective=objective).registered_loss for objective in given] == [MyScaledBCE()] * 3
    assert head(8, objective=MyScaledBCE(2)).registered_loss == MyScaledBCE(2)
    assert [MyBCE().option(), MyScaledBCE().option()] == ["my_bce", {"name": "my_scaled_bce", "factor": 3.0}]


def test_a_head_saves_its_loss_and_predicts_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    head = make("binary", objective=MyScaledBCE(2.0)).eval()
    settings = json.loads(json.dumps(head.settings()))
    assert settings["arguments"]["objective"] == {"name": "my_scaled_bce", "factor": 2.0}
    logits, targets = head(features()), head.encode_targets(sample_of("binary").targets)
    again = head_from_settings(settings)
    assert again.loss(logits, targets).item() == head.loss(logits, targets).item()
    monkeypatch.setattr(registry, "_REGISTERED", {})
    alone = head_from_settings(settings)
    assert np.array_equal(alone.predict(logits), head.predict(logits))
    assert alone.settings() == settings
    with pytest.raises(HeadError) as caught:
        alone.loss(logits, targets)
    assert str(caught.value) == (
        "no loss is registered as 'my_scaled_bce'; registered: none; "
        "fix: import the file that registers it, or install its package"
    )
    for wrong in ({}, {"name": 3}, {"name": "bce"}, {"name": "a b"}):
        with pytest.raises(HeadError, match="the settings of the loss have no valid name"):
            head_from_settings({**settings, "arguments": {**settings["arguments"], "objective": wrong}})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "binary",
            {"objective": "my_bcee"},
            r"objective 'my_bcee' is unknown; known: bce, focal, .*my_bce, .*; fix",
        ),
        ("binary", {"objective": "my_bcee"}, "for a loss of your own, import the file that registers it, or install"),
        ("binary", {"objective": "my_bce", "gamma": 2}, "gamma has no effect with objective='my_bce'; fix: use obj"),
        ("regression", {"objective": "my_square", "delta": 1}, "delta has no effect with objective='my_square'"),
        ("binary", {"objective": {"name": "my_scaled_bce", "faktor": 1}}, "named 'faktor': did you mean 'factor'"),
        ("binary", {"objective": {"name": "my_bcee"}}, "no loss is registered as 'my_bcee'; registered: my_bce, my_"),
    ],
)
def test_wrong_objectives_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadError, match=message):
        get_head(name)(8, **options)


@pytest.mark.usefixtures("fresh")
def test_a_loss_that_returns_no_value_for_each_target_is_refused() -> None:
    @register_loss("a_number")
    class Number(Loss):
        def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
            return 1.0  # type: ignore[return-value]

    for name, returned in (("my_mean", "()"), ("a_number", "float")):
        head = make("binary", objective=name).eval()
        logits = head(features())
        with pytest.raises(HeadError) as caught:
            head.loss(logits, head.encode_targets(sample_of("binary").targets))
        assert str(caught.value) == (
            f"binary: loss '{name}' returns {returned} for targets of shape (24,); fix: return the loss of each "
            "target; the head takes the mean"
        )


# --- the registry ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh")
def test_what_cannot_be_registered() -> None:
    def register(name: Any, loss: Any) -> str:
        with pytest.raises(HeadError) as caught:
            register_loss(name)(loss)
        return str(caught.value)

    class Forgotten(Loss):
        beta: float = 1.0

    @dataclass(frozen=True)
    class Named(Loss):
        name: str = "x"  # type: ignore[misc]

    assert "loss name 'my loss': give letters, digits and underscores" in register("my loss", MyBCE)
    assert register("bce", MyBCE) == "loss 'bce': the built-in objective has this name; fix: another name"
    assert "is not a subclass of heads.losses.Loss" in register("mine", dict)
    assert "its settings are no fields; fix: @dataclass(frozen=True) above the class" in register("mine", Forgotten)
    assert "has a setting called 'name'" in register("mine", Named)
    assert register("my_bce", MyScaledBCE).startswith("loss 'my_bce' is tests.support.my_losses.MyBCE already")
    assert register_loss("my_bce")(MyBCE) is MyBCE  # a notebook's cell runs again
    with pytest.raises(TypeError, match="abstract"):
        Loss()  # type: ignore[abstract]
    unregistered = type("Unregistered", (MyBCE,), {})()
    with pytest.raises(HeadError, match=r'Unregistered is not registered; fix: @register_loss\("NAME"\) above the'):
        get_head("binary")(8, objective=unregistered)


def test_built_in_names_are_the_objectives_of_all_heads() -> None:
    objectives = {name for entry in registered_heads().values() for name in entry.head.objectives}
    assert set(registry.BUILT_IN) == objectives


@pytest.mark.usefixtures("fresh")
def test_settings_survive_json() -> None:
    @register_loss("weighted")
    @dataclass(frozen=True)
    class Weighted(Loss):
        weights: tuple[float, ...]

        def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
            return mx.array(list(self.weights)) * logits

    for weights in (np.ones(3, np.float32), mx.ones(3), [1.0, 1.0, 1.0], (1.0, 1.0, 1.0)):
        loss = Weighted(weights)  # type: ignore[arg-type]
        assert loss.to_dict() == {"name": "weighted", "weights": [1.0, 1.0, 1.0]}
        assert Loss.from_dict(json.loads(json.dumps(loss.to_dict()))) == loss
    with pytest.raises(
        HeadError, match=r"loss 'weighted' cannot be made \(.*'weights'\); fix: give its settings beside"
    ):
        get_head("binary")(8, objective="weighted")
    with pytest.raises(HeadError, match="no loss is registered as 'xyz'; registered: my_bce, my_coral"):
        Loss.from_dict({"name": "xyz"})


def test_the_former_name_of_the_module_works() -> None:
    import heads.loss_functions as former

    assert {*former.__all__, "Loss", "register_loss"} == {*losses.__all__}
    assert all(getattr(former, name) is getattr(losses, name) for name in former.__all__)


# --- runs ----------------------------------------------------------------------------------------------------------


def losses_of(run: Path) -> list[float]:
    """The training loss of every step."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "step"]


@pytest.fixture(scope="module")
def runs(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs that differ in their loss: the built-in one, the same written anew, and three times as much."""
    root = tmp_path_factory.mktemp("runs")
    objectives = {"bce": "bce", "own": MyBCE(), "scaled": MyScaledBCE(3.0)}
    for name, objective in objectives.items():
        head = {"objective": objective, "pos_weight": "balanced"}
        out = root / name
        mlxbert.train(sample("binary"), out=out, model=tiny_checkpoint, head=head, **options("binary"), **QUICK)
    return root


def test_a_run_trains_with_the_loss_and_records_it(runs: Path) -> None:
    built_in, own, scaled = (losses_of(runs / name) for name in ("bce", "own", "scaled"))
    assert len(own) > 10
    assert np.allclose(own, built_in, rtol=1e-3)
    assert scaled[0] == pytest.approx(3 * built_in[0], rel=1e-4)
    assert np.mean(scaled[-3:]) < np.mean(scaled[:3])
    record = json.loads((runs / "own" / "run.json").read_text())
    assert record["settings"]["head"] == {"objective": "my_bce", "pos_weight": "balanced"}
    record = json.loads((runs / "scaled" / "run.json").read_text())
    assert record["settings"]["head"]["objective"] == {"name": "my_scaled_bce", "factor": 3.0}


@pytest.mark.usefixtures("unregistered")
def test_a_run_predicts_without_its_loss(runs: Path) -> None:
    frame = sample("binary")
    predicted = mlxbert.Run.open(runs / "own").predict(frame)
    assert len(predicted) == len(frame)


def cut_short(run: Path, out: Path) -> Path:
    """A copy of a run as it is before its last model is trained."""
    shutil.copytree(run, out)
    (out / "scores.json").unlink()
    last = json.loads((out / "run.json").read_text())["members"][-1]
    paths = [path for path in out.rglob(f"{last}*") if path.parent != out / "resume"]
    assert paths
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return out


def test_a_run_goes_on_with_its_loss_only(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = cut_short(runs / "scaled", tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_REGISTERED", {})
        with pytest.raises(HeadError) as caught:
            mlxbert.resume(cut, sample("binary"), progress=False)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith("fix: import the file that registers it, or install its package")
    mlxbert.resume(cut, sample("binary"), progress=False)
    assert (cut / "oof.csv").read_bytes() == (runs / "scaled" / "oof.csv").read_bytes()


@pytest.mark.usefixtures("fresh")
def test_the_command_line_finds_the_loss_of_an_installed_package(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SOURCE.read_text().replace('"my_', '"their_')
    group = "mlxbert.losses"
    install(tmp_path / "site", "their-losses", module="their_losses", entry="all", source=source, group=group)
    install(tmp_path / "site", "broken-losses", module="broken_losses", entry="b", source="1 / 0", group=group)
    monkeypatch.syspath_prepend(tmp_path / "site")
    data, out = tmp_path / "train.csv", tmp_path / "run"
    sample("binary").to_csv(data, index=False)
    words = f"train {data} -o {out} --model {tiny_checkpoint} --text text --target y --id id --task binary"
    words += " --epochs 1 --batch-size 8 --folds 2"  # with the compiled step
    objective = '{"name": "their_scaled_bce", "factor": 2}'
    result = CliRunner().invoke(command, [*words.split(), "--head", f"objective={objective}"])
    assert result.exit_code == 0, result.output
    assert json.loads((out / "run.json").read_text())["settings"]["head"]["objective"] == json.loads(objective)
    assert "broken-losses: its loss 'b' (broken_losses) cannot be used: ZeroDivisionError" in result.output
    wrong = CliRunner().invoke(command, [*words.split(), "--overwrite", "--head", "objective=their_bc"])
    assert wrong.exit_code == 2
    assert "objective 'their_bc' is unknown; known: bce, focal" in wrong.output
