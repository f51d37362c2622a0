"""Where the parts of a run lie in its directory, and the writing of its JSON files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxbert.errors import MLXBertError
from mlxbert.files.output_file import replace_file

GO_ON = "free some space and resume the run"


class RunError(MLXBertError):
    """A directory that is no run, an unfinished or changed one, or one that cannot be made."""


@dataclass(frozen=True)
class RunFiles:
    """The paths of a run.

    Attributes:
        root: its directory.
    """

    root: Path

    @property
    def info(self) -> Path:
        """run.json: everything needed to repeat the run; written first."""
        return self.root / "run.json"

    @property
    def log(self) -> Path:
        """metrics.jsonl: an event a line."""
        return self.root / "metrics.jsonl"

    @property
    def scores(self) -> Path:
        """scores.json: written last."""
        return self.root / "scores.json"

    @property
    def oof(self) -> Path:
        """oof.csv: out-of-fold predictions."""
        return self.root / "oof.csv"

    @property
    def worst(self) -> Path:
        """worst_rows.csv: those that went most wrong."""
        return self.root / "worst_rows.csv"

    @property
    def submission(self) -> Path:
        """submission.csv: predictions for the test file, or for the rows held out of everything."""
        return self.root / "submission.csv"

    @property
    def hold_out(self) -> Path:
        """hold_out.csv: truths and predictions of the rows held out of everything."""
        return self.root / "hold_out.csv"

    @property
    def resume(self) -> Path:
        """resume/: what an unfinished run goes on from."""
        return self.root / "resume"

    @property
    def best_so_far(self) -> Path:
        """best-so-far/: the kept weights of the model in training, as a model, after Ctrl-C."""
        return self.root / "best-so-far"

    @property
    def members(self) -> Path:
        """members/: the finished models."""
        return self.root / "members"

    def member(self, name: str) -> Path:
        """A finished model."""
        return self.members / name

    @property
    def all_logits(self) -> Path:
        """logits/: of each model's held-out rows."""
        return self.root / "logits"

    def logits(self, name: str) -> Path:
        """A model's held-out rows: logits and cross-fitted predictions."""
        return self.all_logits / f"{name}.npz"

    @property
    def made(self) -> tuple[Path, ...]:
        """All that a run, its trackers and its report make here but run.json; first what says that it is finished."""
        files = (self.scores, self.log, self.oof, self.worst, self.submission, self.hold_out)
        folders = (self.resume, self.best_so_far, self.members, self.all_logits)
        beside = (self.root / name for name in ("tensorboard", "wandb", "report.html", "plots"))
        return (*files, *folders, *beside)

    def is_done(self, name: str) -> bool:
        """Whether a model is finished: its logits are the last thing of it to be written."""
        return (self.member(name) / "config.json").is_file() and self.logits(name).is_file()


def write_json(file: Path, value: Any, *, fix: str = GO_ON) -> None:
    """Write indented JSON, whole or not at all; NaN becomes null.

    Raises:
        WriteError: the disk is full, or cannot be written; the message ends in `fix`.
    """
    # A lone surrogate, which JSON can hold and UTF-8 cannot, is written as JSON's own escape.
    data = (json.dumps(without_nan(value), indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    replace_file(file, data, fix=fix, follow_links=False)


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return value
