"""The log of a run: one event per line in metrics.jsonl, and, beside other processes, in a file for each model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxbert.errors import RunError
from mlxbert.files.output_file import replace_file, write_errors
from mlxbert.files.reading import from_json, read_text
from mlxbert.runs.files import GO_ON, RunFiles, without_nan
from mlxbert.training.callbacks import KINDS, Callback, EvaluationEvent, Event, MemberEvent, StepEvent, event_record

_CLASSES = {name: kind for kind, name in KINDS.items()}
_LOG_FIX = "fix: restore the file, or remove the line"


@dataclass(frozen=True)
class LoggedEvent:
    """A line of the log: the JSON object and its event; None for a kind of event of a later version."""

    values: dict[str, Any]
    event: Event | None

    @property
    def member(self) -> str | None:
        """The model that it is of; None: it names none."""
        name = self.values.get("member")
        return name if isinstance(name, str) else None


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


def read_run_log(files: RunFiles, members: Sequence[str]) -> EventLog | None:
    """Read the events of a run, also those in the logs of single models; None if there are none.

    The lines are in the order of the members, whoever trained them and when.

    Raises:
        RunError: as `read_log`.
    """
    log = read_log(files.log)
    lines = [] if log is None else list(log.lines)
    cut_off, found = log is not None and log.cut_off, log is not None
    for name in members:
        part = read_log(files.member_log(name))
        if part is not None:
            lines = [line for line in lines if line.member != name] + list(part.lines)
            cut_off, found = cut_off or part.cut_off, True
    place = {name: number for number, name in enumerate(members)}
    lines.sort(key=lambda line: place.get(line.member or "", -1))
    return EventLog(tuple(lines), cut_off) if found else None


def merge_logs(files: RunFiles, members: Sequence[str]) -> None:
    """Put the events of all models into metrics.jsonl, in the order of the members, so that it has the same lines
    whoever trained them; the logs of single models stay until the run is finished.
    """
    log = read_run_log(files, members)
    if log is not None:
        _write_lines(files.log, log.lines)


class RunLog(Callback):
    """Writes the events of a run. When a model goes on, the events after its saved state are removed first.

    One process that trains all models appends to metrics.jsonl. A process beside others (`shared`) has a log for each
    of its models, because no two processes append to one file.
    """

    def __init__(self, files: RunFiles, *, shared: bool = False):
        self._files, self._shared = files, shared
        self._file = files.log

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        part = self._files.member_log(member)
        own, log = read_log(part), read_log(self._files.log)
        # The model may have been begun by a process of the other kind.
        begun = own if own is not None else log
        of_member = [line for line in (begun.lines if begun else ()) if line.member == member]
        of_member = [line for line in of_member if _stays(line.event, done)]
        if self._shared:
            self._file = part
            if of_member or own is not None:
                _write_lines(part, of_member)
            return
        if log is not None or of_member:
            others = [line for line in (log.lines if log else ()) if line.member != member]
            _write_lines(self._file, [*others, *of_member])
        part.unlink(missing_ok=True)

    def on_step(self, event: StepEvent) -> None:
        self._append(event)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        self._append(event)

    def on_member_end(self, event: MemberEvent) -> None:
        self._append(event)

    def _append(self, event: Event) -> None:
        line = _line(event_record(event))
        with write_errors(self._file, len(line), fix=GO_ON):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as log:
                log.write(line)


def _stays(event: Event | None, done: int) -> bool:
    """Return whether an event of a model stays when it goes on after `done` steps."""
    return event is None or (not isinstance(event, MemberEvent) and event.step <= done)


def _write_lines(file: Path, lines: Iterable[LoggedEvent]) -> None:
    data = "".join(_line(line.values) for line in lines).encode("utf-8")
    replace_file(file, data, fix=GO_ON, follow_links=False)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(without_nan(record), ensure_ascii=False) + "\n"
