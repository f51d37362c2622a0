"""The files of a run: its directory and lock, the locks of its models, its JSON and CSV files."""

from __future__ import annotations

import fcntl
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mlxbert.errors import RunError
from mlxbert.files.output_directory import target_lock
from mlxbert.files.output_file import (
    TEMPORARY,
    WriteError,
    delete_if_abandoned,
    fsync_directory,
    json_text,
    replace_file,
    write_errors,
)
from mlxbert.files.reading import open_regular

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

    def lock(self, name: str) -> Path:
        """Return the lock of a model in training; it has no content, and stays until the run is finished."""
        return self.resume / f"{name}.lock"

    def member_log(self, name: str) -> Path:
        """Return the log of a model that another process trains beside others, until the end of the run."""
        return self.resume / f"{name}.jsonl"

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


class MemberBusyError(RunError):
    """Another process trains this model of the run now."""


@contextmanager
def member_lock(files: RunFiles, name: str) -> Iterator[None]:
    """Lock a model of a run for this process, on this machine or another one with the same directory.

    The kernel releases the lock when the process ends, however it ends. On NFS it is the server's, for all machines.
    The file stays: deleting it could, on NFS, leave two processes with a lock on two files of one name.

    Raises:
        MemberBusyError: another process has it.
        RunError: the file system has no locks.
        WriteError: the file cannot be written.
    """
    path = files.lock(name)
    check_own(path)
    with write_errors(path, 0, fix=GO_ON):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MemberBusyError(
                f"{files.root}: another process trains {name} now; fix: wait for its end, or train another --member"
            ) from error
        except OSError as error:
            raise RunError(
                f"{path}: cannot be locked ({error.strerror or error}), so two processes could train one model; fix: "
                "a directory on a file system with locks (NFS with its lock service, a local disk)"
            ) from error
        yield
    finally:
        os.close(descriptor)


def refuse_busy(files: RunFiles) -> None:
    """Refuse to overwrite a run while another process trains a model of it.

    Raises:
        RunError: names the model.
    """
    for path in sorted(files.resume.glob("*.lock")):
        try:
            with member_lock(files, path.stem):
                pass
        except MemberBusyError as error:
            raise RunError(
                f"{files.root}: another process trains {path.stem} of the run that is there; fix: stop it, or give "
                "another directory with -o"
            ) from error


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
        try:
            mode = path.lstat().st_mode
            paths = sorted(path.iterdir()) if inside and stat.S_ISDIR(mode) else ()
        except FileNotFoundError:  # also where another process, which trains a model, has just replaced it
            return
        if stat.S_ISDIR(mode):
            for inner in paths:
                check_own(inner)
        elif not stat.S_ISREG(mode):
            what = "a link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
            raise RunError(
                f"{path} is {what}, and a run writes only to files and folders of its own; fix: delete it, or put "
                "there what it leads to"
            )


def delete_leftovers(root: Path) -> None:
    """Delete files that a killed process left half written; those of a process that lives stay."""
    for folder in (root, *(path for part in ("members", "resume", "logits") for path in root.glob(f"{part}/**/"))):
        for path in [path for path in folder.iterdir() if TEMPORARY.fullmatch(path.name)] if folder.is_dir() else ():
            delete_if_abandoned(path)


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


def create_json(file: Path, value: Any, *, fix: str = GO_ON) -> bool:
    """Write indented JSON in one step if no such file is there; return whether this process wrote it.

    Of several processes that do this at the same time, also on machines that share a directory, one does.

    Raises:
        WriteError: as `write_json`.
    """
    # `os.link` fails where the name is taken; a rename would replace the file of another process.
    new = file.with_name(f".{file.name}-new.{secrets.token_hex(8)}.tmp")
    try:
        write_json(new, value, fix=fix)
    except WriteError as error:
        raise WriteError(str(error).replace(new.name, file.name)) from error
    try:
        with write_errors(file, 0, fix=fix):
            try:
                os.link(new, file)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                if os.path.lexists(file):
                    return False
                os.replace(new, file)  # noqa: PTH105 - the call that tests count
            fsync_directory(file.parent)
            return True
    finally:
        new.unlink(missing_ok=True)


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
