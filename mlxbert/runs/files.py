"""Where the parts of a run lie in its directory, and the writing of its JSON files.

Where what can be made again is kept from one run to the next.

The CSV files of a run: the same bytes for the same numbers, whole or not at all.

metrics.jsonl: every event of a run, a JSON object a line; its writer, and its only reader.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxbert.errors import RunError
from mlxbert.files.output_file import replace_file, write_errors
from mlxbert.files.reading import expand_home, from_json, open_regular, read_text
from mlxbert.training.callbacks import KINDS, Callback, EvaluationEvent, Event, MemberEvent, StepEvent, event_record

GO_ON = "free some space and resume the run"


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


def token_cache() -> Path:
    """The folder of token caches: below MLXBERT_CACHE, else XDG_CACHE_HOME/mlxbert, else ~/.cache/mlxbert."""
    own = os.environ.get("MLXBERT_CACHE")
    if own:
        return expand_home(own) / "tokens"
    return expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mlxbert" / "tokens"


_FIX = "fix: restore the file from a copy of the run, or train again"

# What a spreadsheet computes instead of showing it (https://owasp.org/www-community/attacks/CSV_Injection): full-width
# signs too, and a tab or a carriage return that it strips first. Numbers are no formulas.
_FORMULA = re.compile(r"(?![+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?%?$)[=+\-@\t\r＝＋－＠]", re.ASCII)
_ESCAPED = re.compile(r"'[=+\-@\t\r＝＋－＠]")
# Column names that mean something in oof.csv and worst_rows.csv.
_TAKEN = re.compile(r"(row|fold|made_at|target|prediction|probability|label|rank|loss|truth|text|second)(:.*)?")


def write_csv(file: Path, frame: Any, *, escape_formulas: bool = False, follow_links: bool = False) -> None:
    """Write a pandas frame as CSV: floats with all their digits, lines ended by a newline alone.

    Args:
        file: where to.
        frame: a pandas frame.
        escape_formulas: put a ' before cells that a spreadsheet would compute (`escaped_formula`).
        follow_links: for an output that the user named, as in `mlxbert.files.output_file.replacing`.

    Raises:
        WriteError: the disk is full, or cannot be written; what was there is still there.
    """
    if escape_formulas:
        frame = frame.map(lambda cell: escaped_formula(cell) if isinstance(cell, str) else cell)
        frame.columns = [escaped_formula(str(name)) for name in frame.columns]
    data = frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "surrogatepass")
    replace_file(file, data, follow_links=follow_links)


def read_csv(file: Path, text: Iterable[str] = ()) -> Any:
    """Return what `write_csv` wrote as a pandas frame: `text` columns as they are written, others as pandas does.

    Raises:
        RunError: no such file, not a regular one, or damaged.
    """
    import pandas

    opened = open_regular(file, RunError)
    if opened is None:
        raise RunError(f"{file} is not there; {_FIX}")
    with opened:
        try:
            return pandas.read_csv(
                opened, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""], low_memory=False
            )
        # pandas' own errors are ValueErrors; a file of other bytes ends in any of these.
        except (ValueError, OverflowError, MemoryError, OSError) as error:
            raise RunError(f"{file} is damaged ({str(error).strip()}); {_FIX}") from error


def numbers(frame: Any, name: str, file: Path, *, missing: bool = False) -> np.ndarray:
    """Return a column of `read_csv` as float64 (rows,); an empty cell is NaN where `missing` allows it.

    Raises:
        RunError: no such column, or a cell that is no finite number.
    """
    import pandas

    if name not in frame.columns:
        raise RunError(f"{file} has no column {name!r}; {_FIX}")
    # What is no number becomes NaN, and is told from an empty cell below.
    values: np.ndarray = pandas.to_numeric(frame[name], errors="coerce").to_numpy(np.float64)
    wrong = ~np.isfinite(values) & ~(frame[name].isna().to_numpy() & missing)
    if wrong.any():
        row = int(wrong.argmax())
        raise RunError(f"{file}: column {name!r} is {frame[name].iloc[row]!r} in row {row}, not a number; {_FIX}")
    return values


def escaped_formula(cell: str) -> str:
    """Return a cell with a ' before it if a spreadsheet would compute it: text that begins with =, +, - or @."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def plain_cell(cell: str) -> str:
    """Return what `escaped_formula` was given."""
    return cell[1:] if _ESCAPED.match(cell) else cell


def truth_columns(names: Iterable[str], what: str = "target") -> list[str]:
    """Return the columns of oof.csv that hold truths (or `what` else: "prediction").

    Older runs have "target:NAME" for one target, too.
    """
    listed = list(names)
    return [name for name in listed if name.startswith(f"{what}:")] or [name for name in listed if name == what]


def id_name(column: str) -> str:
    """Return what the ids' column is called in oof.csv: its own name, or "id:NAME" where that means something else."""
    return f"id:{column}" if _TAKEN.fullmatch(column) else column


_CLASSES = {name: kind for kind, name in KINDS.items()}
_LOG_FIX = "fix: restore the file, or remove the line"


@dataclass(frozen=True)
class LoggedEvent:
    """A line of the log: the JSON object, and the event that it describes; None for a kind of a later version."""

    values: dict[str, Any]
    event: Event | None


@dataclass(frozen=True)
class EventLog:
    """What a log holds; `cut_off`: its last line was cut in two, as a kill leaves it, and is left out."""

    lines: tuple[LoggedEvent, ...]
    cut_off: bool


def read_log(file: Path) -> EventLog | None:
    """Return the events in a metrics.jsonl; None when there is no such file.

    Raises:
        RunError: not a regular file, too large, or a line that is no event; its number is named.
    """
    text = read_text(file, RunError)
    if text is None:
        return None
    *lines, last = text.split("\n")
    read = [_event(line, f"{file}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    cut_off = bool(last.strip())
    if cut_off:
        # A JSON object that is cut anywhere does not parse: one that parses is whole, and lacks its newline alone.
        try:
            read.append(_event(last, f"{file}: line {len(lines) + 1}"))
            cut_off = False
        except _NotJSONError:
            pass
    return EventLog(tuple(read), cut_off)


class _NotJSONError(RunError):
    """A line that does not parse."""


def _event(line: str, place: str) -> LoggedEvent:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise _NotJSONError(f"{place} is not JSON ({reason}); {_LOG_FIX}") from None
    if not isinstance(values, dict):
        raise RunError(f"{place} is a {type(values).__name__}, not an object; {_LOG_FIX}")
    name = values.get("event")
    kind = _CLASSES.get(name) if isinstance(name, str) else None
    if kind is None:
        return LoggedEvent(values, None)
    return LoggedEvent(values, from_json(kind, values, place=place, fix=_LOG_FIX, error=RunError, null_is_nan=True))


class MetricsLog(Callback):
    """Writes the log; where a model starts again, what it had logged beyond that point is taken out first."""

    def __init__(self, file: Path):
        self.file = file

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        log = read_log(self.file)
        if log is None:
            return

        def stays(event: Event | None) -> bool:
            if event is None or event.member != member:
                return True
            return not isinstance(event, MemberEvent) and event.step <= done

        data = "".join(_line(line.values) for line in log.lines if stays(line.event)).encode("utf-8")
        replace_file(self.file, data, fix=GO_ON, follow_links=False)

    def on_step(self, event: StepEvent) -> None:
        self._append(event)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        self._append(event)

    def on_member_end(self, event: MemberEvent) -> None:
        self._append(event)

    def _append(self, event: Event) -> None:
        line = _line(event_record(event))
        with write_errors(self.file, len(line), fix=GO_ON), self.file.open("a", encoding="utf-8") as log:
            log.write(line)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(without_nan(record), ensure_ascii=False) + "\n"
