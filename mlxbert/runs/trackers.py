"""TensorBoard and Weights & Biases, where they are installed: the same numbers as metrics.jsonl has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlxbert.runs.files import RunError
from mlxbert.training.callbacks import Callback, EvaluationEvent, MemberEvent, StepEvent

TRACKERS = ("tensorboard", "wandb")


def tracker(name: str, root: Path) -> Callback:
    """The callback that logs a run to a service.

    Raises:
        RunError: an unknown name, or its package is not installed.
    """
    if name == "tensorboard":
        return TensorBoard(root)
    if name == "wandb":
        return WandB(root)
    raise RunError(f"tracker {name!r} is unknown; known: {', '.join(TRACKERS)}")


class TensorBoard(Callback):
    """Event files below the run, one folder a model: `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, root: Path):
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise RunError("logging to TensorBoard needs tensorboardX; fix: pip install tensorboardX") from error
        self._make, self._root = SummaryWriter, root / "tensorboard"
        self._writer: Any = None

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        self._writer = self._make(str(self._root / member), purge_step=done + 1 if done else None)

    def on_step(self, event: StepEvent) -> None:
        for name in ("loss", "rate", "norm", "rows_per_second"):
            self._writer.add_scalar(f"train/{name}", getattr(event, name), event.step)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        for name, value in {"loss": event.loss, **event.metrics}.items():
            self._writer.add_scalar(f"held_out/{name}", value, event.step)

    def on_member_end(self, event: MemberEvent) -> None:
        self._writer.close()

    def on_run_end(self, scores: dict[str, Any] | None) -> None:
        if self._writer is not None:
            self._writer.close()


class WandB(Callback):
    """One run of Weights & Biases a model, grouped; login and project are wandb's own (WANDB_PROJECT, WANDB_MODE)."""

    def __init__(self, root: Path):
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise RunError("logging to Weights & Biases needs wandb; fix: pip install wandb") from error
        self._wandb, self._root = wandb, root
        self._config: dict[str, Any] = {}
        self._run: Any = None

    def on_run_start(self, info: dict[str, Any]) -> None:
        self._config = {"config": info["config"], "task": info["task"]["task"], "metric": info["metric"]}

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        self._run = self._wandb.init(
            dir=str(self._root), group=self._root.name, name=f"{self._root.name}/{member}", config=self._config
        )

    def on_step(self, event: StepEvent) -> None:
        names = ("loss", "rate", "norm", "rows_per_second")
        self._log({f"train/{name}": getattr(event, name) for name in names}, event.step)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        values = {"loss": event.loss, **event.metrics}
        self._log({f"held_out/{name}": value for name, value in values.items()}, event.step)

    def on_member_end(self, event: MemberEvent) -> None:
        self._finish()

    def on_run_end(self, scores: dict[str, Any] | None) -> None:
        self._finish()

    def _log(self, values: dict[str, float], step: int) -> None:
        if self._run is not None:
            self._run.log(values, step=step)

    def _finish(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
