"""What must never happen while the product handles an input, and how that is seen."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxbert.errors import MLXBertError

MEMORY = 2 << 30
SECRET = "hf_SeCrEtSeCrEtSeCrEtSeCrEtSeCrEt"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.utime", "shutil.rmtree"}
_TWO_PATHS = {"os.rename", "os.link", "os.symlink"}
_RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class"}


class WrongResultError(AssertionError):
    """The product took an input, and what came of it is not right."""


@dataclass
class Guard:
    """Watches this process: writes outside `roots`, code that is run. Audit hooks cannot be taken off again."""

    roots: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    active: bool = False

    def install(self) -> None:
        """Begin to listen; nothing is recorded before `watching`."""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in _RUNS:
            self.findings.append(f"ran code: {event} {arguments!r:.200}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES:
                self._check("open for writing", path)
        elif event in _CHANGES:
            self._check(event, arguments[0], arguments[-1] if len(arguments) > 1 else -1)
        elif event in _TWO_PATHS:
            for path, folder in zip(arguments[:2], arguments[2:] or (-1, -1), strict=False):
                if path is not arguments[0] or event == "os.rename":
                    self._check(event, path, folder)

    def _check(self, event: str, path: Any, folder: Any = -1) -> None:
        """Record a change of `path`, which is relative to the open directory `folder` where that is no -1."""
        if isinstance(path, int) or path is None:
            return
        held = isinstance(folder, int) and folder >= 0
        name = (Path(os.path.realpath(f"/proc/self/fd/{folder}")) if held else Path.cwd()) / os.fsdecode(path)
        # The name itself may be a link that is replaced; what counts is where its folder really lies.
        whole = event == "open for writing"
        real = os.path.realpath(name) if whole else str(Path(os.path.realpath(name.parent)) / name.name)
        if real.startswith(("/dev/", "/proc/self/")):
            return
        if not any(real == root or real.startswith(root + os.sep) for root in self.roots):
            self.findings.append(f"wrote outside: {event} {real}")

    @contextlib.contextmanager
    def watching(self, *roots: Path) -> Iterator[None]:
        """Record what happens; changes below `roots` are allowed."""
        self.roots, self.findings = [os.path.realpath(root) for root in roots], []
        self.active = True
        try:
            yield
        finally:
            self.active = False


def limit_memory() -> None:
    """From now on this process may take 2 GB more than it has."""
    status = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@dataclass
class Ending:
    """How one input ended: "done" or "refused", and what must not be."""

    outcome: str
    message: str
    findings: list[str]


def observed(use: Any, guard: Guard, place: Path) -> Ending:
    """Call `use()`, and say what it did that it must not."""
    printed = io.StringIO()
    findings: list[str] = []
    outcome, message = "done", ""
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        with guard.watching(place / "in", place / "out", place / "tmp"):
            try:
                use()
            except MLXBertError as error:
                outcome, message = "refused", str(error)
                if not message:
                    findings.append("an error without a message")
            except WrongResultError as error:
                findings.append(f"wrong result: {error}")
            except MemoryError as error:
                findings.append(f"memory beyond 2 GB: {type(error).__name__}: {_place(error)}")
            except BaseException as error:
                findings.append(f"raw exception: {type(error).__name__}: {error!s:.200} at {_place(error)}")
    findings += guard.findings
    warned = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    said = "\n".join([message, printed.getvalue(), *warned])
    if any(unicodedata.category(one) == "Cc" and one not in "\n\t\r" for one in said) or "\x1b" in said:
        findings.append(f"control characters on the terminal: {said!r:.300}")
    if SECRET in said:
        findings.append("a secret on the terminal")
    findings += _leaks(place)
    return Ending(outcome, message, findings)


def _place(error: BaseException) -> str:
    """The innermost line of ours that an exception passed."""
    trace, found = error.__traceback__, "?"
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if any(f"{os.sep}{package}{os.sep}" in name for package in ("mlxbert", "converter", "heads")):
            found = f"{Path(name).parent.name}/{Path(name).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _leaks(place: Path) -> list[str]:
    """Files that hold what only lies outside, and files outside that are not as they were."""
    findings = []
    secret = place / "outside" / "secret.txt"
    if not secret.is_file() or secret.read_text() != SECRET:
        findings.append("wrote outside: the file there is changed or gone")
    if sorted(one.name for one in (place / "outside").iterdir()) not in (["secret.txt"], ["moved", "secret.txt"]):
        findings.append("wrote outside: another file lies there")
    for file in (place / "out").rglob("*"):
        if (
            file.is_file()
            and not file.is_symlink()
            and file.stat().st_size < 1 << 22
            and SECRET.encode() in file.read_bytes()
        ):
            findings.append(f"published what lies outside, in {file.name}")
    return findings
