"""The files of a run: its directory and lock, its JSON and CSV files, and its log of events."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxbert.errors import RunError
from mlxbert.files.output_directory import target_lock
from mlxbert.files.output_file import TEMPORARY, WriteError, json_text, replace_file, write_errors
from mlxbert.files.reading import from_json, open_regular, read_text
from mlxbert.training.callbacks import KINDS, Callback, EvaluationEvent, Event, MemberEvent, StepEvent, event_record

# Names of the trackers, and of the folders that they keep in a run.
TRACKERS = ("tensorboard", "wandb")
GO_ON = "free some space and resume the run"


class RunFiles:
    """The paths of a run."""

    def __init__(self, root: Path):
        """Name the files and folders in the directory `root`."""
        self.root = root
        self.info = root / "run.json"  # everything needed to repeat the run; written first
        self.scores = root / "scores.json"  # written last
        self.log = root / "metrics.jsonl"  # one event per line
        self.oof = root / "oof.csv"  # out-of-fold predictions
        self.worst = root / "worst_rows.csv"  # the rows with the largest losses
        self.submission = root / "submission.csv"  # predictions for the test file, or the rows held out of everything
        self.hold_out = root / "hold_out.csv"  # truths and predictions of the rows held out of everything
        self.resume = root / "resume"  # state of the training of an unfinished run
        self.best_so_far = root / "best-so-far"  # best weights of the model in training, as a model, after Ctrl-C
        self.members = root / "members"  # the finished models
        self.all_logits = root / "logits"  # those of the held-out rows of each model

    def member(self, name: str) -> Path:
        """Return the directory of a finished model."""
        return self.members / name

    def logits(self, name: str) -> Path:
        """Return the file of a model's held-out rows: logits, cross-fitted predictions, coverage of intervals."""
        return self.all_logits / f"{name}.npz"

    @property
    def written(self) -> tuple[Path, ...]:
        """The files of a run, its trackers and its report, except run.json; scores.json is the first."""
        files = (self.scores, self.log, self.oof, self.worst, self.submission, self.hold_out)
        folders = (self.resume, self.best_so_far, self.members, self.all_logits)
        others = (self.root / name for name in (*TRACKERS, "report.html", "plots"))
        return (*files, *folders, *others)

    def is_done(self, name: str) -> bool:
        """Return whether a model is finished: its logits are written last."""
        return (self.member(name) / "config.json").is_file() and self.logits(name).is_file()


@contextmanager
def run_lock(root: Path) -> Iterator[None]:
    """Lock a run for this process; delete files that a killed process left half written.

    Raises:
        RunError: another process writes the run.
        WriteError: the folder above cannot be written.
    """
    # The lock lies beside the real directory, so that two names of one directory have the same lock.
    target = Path(os.path.realpath(root))
    with write_errors(target, 0):
        target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(target_lock(target))
        except WriteError as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise RunError(f"{root}: another process is training this run now; fix: wait for its end") from error
            raise
        delete_leftovers(target)
        yield


def check_paths(files: RunFiles) -> None:
    """Refuse links, pipes, sockets and devices in a run; the run's directory may be a link.

    Raises:
        RunError: names the first one.
        WriteError: a folder cannot be read.
    """
    for path in (files.info, *files.written):
        # Trackers keep links in their folders (wandb/latest-run).
        check_own(path, inside=path.name not in TRACKERS)


def check_own(path: Path, *, inside: bool = True) -> None:
    """Refuse a path of a run that is a link or a special file; with `inside` also the paths in a folder.

    Raises:
        RunError: it is such a file.
        WriteError: it cannot be read.
    """
    with write_errors(path, 0, fix="make it readable (chmod -R u+rwX)"):
        if not os.path.lexists(path):
            return
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            for inner in sorted(path.iterdir()) if inside else ():
                check_own(inner)
        elif not stat.S_ISREG(mode):
            what = "a link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
            raise RunError(
                f"{path} is {what}, and a run writes only to files and folders of its own; fix: delete it, or put "
                "there what it leads to"
            )


def delete_leftovers(root: Path) -> None:
    """Delete files that a killed process left half written."""
    for folder in (root, *(path for part in ("members", "resume", "logits") for path in root.glob(f"{part}/**/"))):
        for path in [path for path in folder.iterdir() if TEMPORARY.fullmatch(path.name)] if folder.is_dir() else ():
            path.unlink(missing_ok=True)


def empty(files: RunFiles) -> None:
    """Delete all that a run and its report have written, except run.json; other files stay.

    If the process is killed, an unfinished run remains, which can be overwritten or resumed.
    """
    for path in files.written:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_json(file: Path, value: Any, *, fix: str = GO_ON) -> None:
    """Write indented JSON in one step; NaN becomes null.

    Raises:
        WriteError: the disk is full, or cannot be written; the message ends in `fix`.
    """
    # A lone surrogate, which JSON can hold and UTF-8 cannot, is written as JSON's own escape.
    data = json_text(without_nan(value), ensure_ascii=False).encode("utf-8", "backslashreplace")
    replace_file(file, data, fix=fix, follow_links=False)


def without_nan(value: Any) -> Any:
    """Return a JSON value with null instead of NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return value


FIX = "fix: restore the file from a copy of the run, or train again"

# Beginning of a cell that a spreadsheet computes (https://owasp.org/www-community/attacks/CSV_Injection): full-width
# signs too, and a tab or a carriage return, which it strips first. Numbers are no formulas.
_FORMULA = re.compile(r"(?![+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?%?$)[=+\-@\t\r＝＋－＠]", re.ASCII)
_ESCAPED = re.compile(r"'[=+\-@\t\r＝＋－＠]")
# Names of the columns of oof.csv and worst_rows.csv.
_TAKEN = re.compile(r"(row|fold|made_at|target|prediction|probability|label|rank|loss|truth|text|second)(:.*)?")


def write_csv(file: Path, frame: Any, *, escape_formulas: bool = False, follow_links: bool = False) -> None:
    """Write a pandas frame as CSV: floats with all their digits, lines ended by a newline alone.

    Args:
        file: the file to write.
        frame: a pandas frame.
        escape_formulas: put a ' before cells that a spreadsheet would compute (`escaped_formula`).
        follow_links: for an output that the user named, as in `mlxbert.files.output_file.replacing`.

    Raises:
        WriteError: the disk is full, or cannot be written; the old file stays.
    """
    if escape_formulas:
        frame = frame.map(lambda cell: escaped_formula(cell) if isinstance(cell, str) else cell)
        frame.columns = [escaped_formula(str(name)) for name in frame.columns]
    data = frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "surrogatepass")
    replace_file(file, data, follow_links=follow_links)


def read_csv(file: Path, text: Iterable[str] = ()) -> Any:
    """Read a file of `write_csv` as a pandas frame: `text` columns as they are written, others as pandas reads them.

    Raises:
        RunError: no such file, not a regular one, or damaged.
    """
    import pandas

    opened = open_regular(file, RunError)
    if opened is None:
        raise RunError(f"{file} is not there; {FIX}")
    with opened:
        try:
            return pandas.read_csv(
                opened, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""], low_memory=False
            )
        # The errors of pandas are ValueErrors; a file of random bytes can raise any of these.
        except (ValueError, OverflowError, MemoryError, OSError) as error:
            raise RunError(f"{file} is damaged ({str(error).strip()}); {FIX}") from error


def numbers(frame: Any, name: str, file: Path, *, missing: bool = False) -> np.ndarray:
    """Return a column of `read_csv` as float64 (rows,); with `missing`, an empty cell is NaN.

    Raises:
        RunError: no such column, or a cell that is not a finite number.
    """
    import pandas

    if name not in frame.columns:
        raise RunError(f"{file} has no column {name!r}; {FIX}")
    # A cell that is not a number becomes NaN; the check below distinguishes it from an empty cell.
    values: np.ndarray = pandas.to_numeric(frame[name], errors="coerce").to_numpy(np.float64)
    wrong = ~np.isfinite(values) & ~(frame[name].isna().to_numpy() & missing)
    if wrong.any():
        row = int(wrong.argmax())
        raise RunError(f"{file}: column {name!r} is {frame[name].iloc[row]!r} in row {row}, not a number; {FIX}")
    return values


def escaped_formula(cell: str) -> str:
    """Return a cell, with a ' before it if a spreadsheet would compute it: text that begins with =, +, - or @."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def plain_cell(cell: str) -> str:
    """Return the cell as it was before `escaped_formula`."""
    return cell[1:] if _ESCAPED.match(cell) else cell


def truth_columns(names: Iterable[str], what: str = "target") -> list[str]:
    """Return the columns of oof.csv with the truths (or with `what`, such as "prediction").

    Older runs have "target:NAME" also for a single target.
    """
    listed = list(names)
    return [name for name in listed if name.startswith(f"{what}:")] or [name for name in listed if name == what]


def id_name(column: str) -> str:
    """Return the name of the id column in oof.csv: its own name, or "id:NAME" if oof.csv has a column of that name."""
    return f"id:{column}" if _TAKEN.fullmatch(column) else column


_CLASSES = {name: kind for kind, name in KINDS.items()}
_LOG_FIX = "fix: restore the file, or remove the line"


@dataclass(frozen=True)
class LoggedEvent:
    """A line of the log: the JSON object and its event; None for a kind of event of a later version."""

    values: dict[str, Any]
    event: Event | None


@dataclass(frozen=True)
class EventLog:
    """The lines of a log; `cut_off`: its last line is incomplete, as a kill leaves it, and is left out."""

    lines: tuple[LoggedEvent, ...]
    cut_off: bool


def read_log(file: Path) -> EventLog | None:
    """Read the events of a metrics.jsonl; None if there is no such file.

    Raises:
        RunError: the file is not a regular one or too large, or a line is not an event; its number is named.
    """
    text = read_text(file, RunError)
    if text is None:
        return None
    *lines, last = text.split("\n")
    read = [_event(line, f"{file}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    cut_off = bool(last.strip())
    if cut_off:
        # A JSON object that is cut anywhere does not parse. If it parses, only the newline is missing.
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
    """Writes the log. When a model is resumed, the events after its saved state are removed first."""

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
