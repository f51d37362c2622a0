"""One table of speed: mlxbert and the packages that do the same, on the CPU in float32, all sides in one run.

    python -m benchmarks.speed                                    # what is installed; a quarter of an hour
    python -m benchmarks.speed --only forward --repeats 5
    python -m benchmarks.speed --only encode --out speeds         # parts that are measured one after the other …
    python -m benchmarks.speed --only train --out speeds          # … are one table
    python -m benchmarks.speed --only forward --sides mlx-embeddings --repeats 1 --out speeds   # minutes on Linux
    python -m benchmarks.speed --out speeds --repeats 0 --write   # that table and its plot in the README, nothing run

Sections: `forward`, a bert-base-sized model of random weights; `encode`, sentences through all-MiniLM-L6-v2 (STS 2016
if MLXBERT_DATA has it); `train`, a training step; `convert`, bert-base against `cp` + `sync` + `sha256sum`.

Every side is a process of its own, which loads its model once. Then the sides take turns, so that a busy minute hits
all of them; the ratio is to the baseline's time in the same turn. Before its time counts, a side's numbers are
compared with the baseline's: if they differ, the table says so, and has no time. A package that is not installed is
named with the command that installs it.

`--out DIR` keeps the results (`speed.json`, `speed.png`) and what was prepared, and adds the next run to them: after
Ctrl-C nothing that was measured is lost. A benchmark shows, and asserts nothing: the exit code is 0 whatever the
numbers are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import speed_inputs as inputs
from benchmarks.child import answer, child
from benchmarks.machine import cores, load, machine
from benchmarks.speed_sides import (
    CHECK,
    COMPILED,
    EMBEDDINGS,
    FORWARD,
    OPENVINO,
    OURS,
    PYTORCH,
    REQUIRED,
    RUNTIME,
    SENTENCES,
    absent,
)
from benchmarks.speed_table import Measurement, Results, plot, progress, terminal, write_readme
from mlxbert.report.reported_run import ReportError

# The largest difference of a number from the baseline's with which a side's time counts. Hidden states are of size 1,
# and two float32 programs differ by 1e-5; bfloat16 would differ by 1e-2.
LIMIT = 1e-4
# The losses of three steps differ by 2e-6; without clipping by 7e-5.
LOSS_LIMIT = 1e-5
# A side whose pass takes longer gets no further turn: MLX's own BLAS takes a minute, and others a second.
_SLOW = 10.0
PACKAGES = ("sentence-transformers", "onnxruntime", "openvino")
_COPY = "cp + sync + sha256sum"
# Environment variables by which libraries choose the number of their threads.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Part:
    """Cases that the same processes measure.

    Attributes:
        section: of `benchmarks.speed_sides.cases`, and of `--only`.
        name: of its folder.
        sides: who takes turns, the baseline first.
        prepare: writes what the sides read into a folder.
        lines: case of the processes -> line of the table.
        passes: what a case repeats: its time is divided by it.
    """

    section: str
    name: str
    sides: tuple[str, ...]
    prepare: Callable[[Path], None]
    lines: dict[str, str]
    passes: dict[str, int] = field(default_factory=dict)


def parts(*, tiny: bool = False) -> list[Part]:
    """Return what is measured, in the order of the table; `tiny`: with models and texts for tests."""
    base: dict[str, int] = inputs.TINY if tiny else {}
    minilm: dict[str, int] = inputs.TINY if tiny else inputs.MINILM
    texts = 40 if tiny else inputs.SENTENCES

    def sentences(folder: Path) -> None:
        inputs.packaged_model(folder)
        inputs.write_texts(folder, texts)

    def training(folder: Path, shape: tuple[int, int] | None, fields: dict[str, int]) -> None:
        inputs.random_model(folder, **fields)
        inputs.write_batches(folder, shape, fields.get("vocab_size", 30522))

    return [
        Part(
            "forward",
            "forward",
            (PYTORCH, COMPILED, OURS, RUNTIME, OPENVINO, EMBEDDINGS),
            lambda folder: inputs.random_model(folder, **base),
            {case: f"forward {case}, bert-base" for case in FORWARD},
        ),
        Part(
            "encode",
            "encode",
            (SENTENCES, OURS, RUNTIME, OPENVINO, EMBEDDINGS),
            sentences,
            {"all": f"encode {texts:,} sentences, MiniLM", "alone": "encode one sentence, MiniLM"},
            {"alone": inputs.ALONE},
        ),
        Part(
            "train",
            "train-minilm",
            (PYTORCH, COMPILED, OURS),
            lambda folder: training(folder, None, minilm),
            {"steps": "training step, MiniLM, 32 tweets"},
            {"steps": inputs.STEPS},
        ),
        Part(
            "train",
            "train-base",
            (PYTORCH, COMPILED, OURS),
            lambda folder: training(folder, (8, 128), base),
            {"steps": "training step, bert-base, 8 × 128"},
        ),
    ]


CONVERT = "convert bert-base, 438 MB"
SECTIONS = ("forward", "encode", "train", "convert")
ORDER = [line for part in parts() for line in part.lines.values()] + [CONVERT]
"""The lines of the table."""


class FailedSideError(Exception):
    """The process of a side ended; what it printed is above."""


class Process:
    """One side of a section, in a process of its own."""

    def __init__(self, section: str, side: str, folder: Path, threads: int):
        self.side = side
        environment = {**dict.fromkeys(_THREADS, str(threads)), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        arguments = (section, folder, "--side", side, "--threads", threads)
        self._child = child("speed_sides", *arguments, environment=environment)

    def loaded(self) -> None:
        """Wait until it has loaded its model."""
        self._answer()

    def turn(self, case: str, seconds: float) -> dict[str, Any]:
        """Let it repeat a case for so many seconds; return its answer."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"case": case, "seconds": seconds}) + "\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        words = self._child.stdout.readline()
        if not words:
            raise FailedSideError(self.side)
        answer: dict[str, Any] = json.loads(words)
        return answer

    def end(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.wait()


@dataclass
class Measuring:
    """One run: what it adds to the results, and where it keeps them.

    Attributes:
        results: of this run and the runs before.
        folder: of everything that is prepared.
        options: the command line's.
        save: keeps the results, after every turn.
    """

    results: Results
    folder: Path
    options: argparse.Namespace
    save: Callable[[], None]

    def measure(self, part: Part) -> None:
        """Let the sides of a part take turns."""
        baseline, *others = part.sides
        sides = [baseline, *(side for side in others if self.options.sides is None or side in self.options.sides)]
        missing = {side: command for side in sides if (command := absent(side)) is not None}
        self.results.absent.update(missing)
        if baseline in missing:
            progress(f"{part.name}: left out, it needs {baseline}: {missing[baseline]}", keep=True)
            return
        folder = self.folder / part.name
        progress(f"{part.name}: preparing")
        tiny = ["--tiny"] if self.options.tiny else []
        if problem := answer("speed", "--prepare", part.name, folder, *tiny)["problem"]:
            progress(f"{part.name}: left out: {problem}", keep=True)
            return
        with contextlib.ExitStack() as stack:
            processes: list[Process] = []
            for side in sides:
                if side not in missing:
                    process = Process(part.section, side, folder, self.options.threads)
                    stack.callback(process.end)
                    processes.append(process)
            self._take_turns(part, processes)

    def _take_turns(self, part: Part, processes: list[Process]) -> None:
        run = self.results.next_run
        errors: dict[str, float] = {}
        done: set[tuple[str, str]] = set()

        def check(process: Process) -> None:
            progress(f"{part.name}: {process.side} loads, and is compared with {part.sides[0]}")
            process.loaded()
            errors[process.side] = process.turn(CHECK, 0)["error"]

        def measure(process: Process, turn: int, case: str, line: str) -> None:
            progress(f"{part.name}, turn {turn + 1} of {self.options.repeats}: {line}: {process.side}")
            found = process.turn(case, self.options.seconds)
            error = errors[process.side] = max(errors[process.side], found.get("error", 0.0))
            if statistics.median(found["seconds"]) > _SLOW and process.side not in (part.sides[0], OURS):
                done.add((process.side, case))
            is_right = error <= (LOSS_LIMIT if part.section == "train" else LIMIT)
            wall, cpu = (statistics.median(found[name]) / part.passes.get(case, 1) for name in ("seconds", "cpu"))
            numbers = (wall, cpu, error) if is_right else (None, None, error)
            self.results.measurements.append(Measurement(run, turn, line, process.side, part.sides[0], *numbers))
            self.save()

        for process in [*processes]:
            self._unless_it_fails(part, processes, process, partial(check, process))
        for turn in range(self.options.repeats):
            for case, line in part.lines.items():
                # There and back, so that no side always follows the same one. What is compared with is written first.
                for process in [*processes] if turn % 2 == 0 else processes[::-1]:
                    if (process.side, case) not in done:
                        one = partial(measure, process, turn, case, line)
                        self._unless_it_fails(part, processes, process, one)

    def _unless_it_fails(
        self, part: Part, processes: list[Process], process: Process, one: Callable[[], None]
    ) -> None:
        try:
            one()
        except (FailedSideError, BrokenPipeError):
            if process.side == part.sides[0]:
                raise SystemExit(f"{part.name}: {process.side} failed, and nothing can be compared with it") from None
            processes.remove(process)
            progress(f"{part.name}: {process.side} failed and is left out; what it printed is above", keep=True)
            self.results.failed = sorted({*self.results.failed, f"{process.side} ({part.name})"})

    def convert(self) -> None:
        """Convert a bert-base, and copy and hash its file, in turn."""
        from benchmarks.convert import make_bert_base, measured

        progress(f"{CONVERT}: {self.options.repeats} turns")
        folder = inputs.made(self.folder / "bert-base", _in_a_process(make_bert_base))
        run = self.results.next_run
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            found = measured(folder, Path(scratch), self.options.repeats)
        for turn, (theirs, ours) in enumerate(zip(found.baseline, found.ours, strict=True)):
            for side, seconds in ((_COPY, theirs), (OURS, ours)):
                self.results.measurements.append(Measurement(run, turn, CONVERT, side, _COPY, seconds, None))
        self.save()


def _in_a_process(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return a function that makes a folder with `make` in a process of its own.

    The peak memory of a conversion begins at the size that this process has when it starts one.
    """

    def run(out: Path) -> None:
        out.mkdir(parents=True)
        code = f"import sys; from pathlib import Path; from {make.__module__} import {make.__name__} as make; "
        subprocess.run([sys.executable, "-c", code + "make(Path(sys.argv[1]))", str(out)], check=True)

    return run


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_names(SECTIONS), default=SECTIONS, help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--sides", type=_names(REQUIRED), help=f"beside the baselines: of {', '.join(REQUIRED)}")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side (default 3); 0: show --out's table")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a turn lasts at least (default 1)")
    parser.add_argument("--threads", type=int, default=cores(), help="of every side (default: the cores, %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep speed.json and speed.png there, and add to them")
    parser.add_argument("--write", action="store_true", help="put table and plot into the README")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.repeats < (0 if options.out else 1) or options.threads < 1 or options.seconds < 0:
        parser.error("--threads and --repeats must be at least 1 (--repeats 0 needs --out), --seconds at least 0")
    return options


def _names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Return the type of an option: some of these names, separated by commas."""

    def names(text: str) -> tuple[str, ...]:
        given = tuple(name.strip() for name in text.split(","))
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} unknown; known: {', '.join(known)}")
        return given

    return names


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and write what was asked for."""
    options = parse(argv)
    if options.prepare:
        prepare(options)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that no side stays behind
    console = Console()
    console.width = max(console.width, 110)  # a log file has the whole table, too
    with contextlib.ExitStack() as stack:
        scratch = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scratch.mkdir(parents=True, exist_ok=True)
        file = scratch / "speed.json"
        results = earlier(file, options.threads)
        console.print(f"{results.machine}; {load()}", soft_wrap=True)
        measuring = Measuring(results, scratch / "prepared", options, partial(results.write, file))
        try:
            if options.repeats:
                for part in parts(tiny=options.tiny):
                    if part.section in options.only:
                        measuring.measure(part)
                if "convert" in options.only and not options.tiny:
                    measuring.convert()
        except KeyboardInterrupt:
            progress("stopped; what was measured follows", keep=True)
        progress("")
        if not results.measurements:
            console.print("nothing was measured")
            return
        console.print(terminal(results, ORDER))
        for side, command in results.absent.items():
            console.print(f"not installed: {side}; fix: {command}", soft_wrap=True, markup=False)
        for side in results.failed:
            console.print(f"failed: {side}", soft_wrap=True)
        if options.out:
            try:
                (options.out / "speed.png").write_bytes(plot(results, ORDER))
            except ReportError as error:
                console.print(f"no plot: {error}", soft_wrap=True, markup=False)
        if options.write:
            for changed in write_readme(results, ORDER):
                console.print(f"written: {changed}")


def earlier(file: Path, threads: int) -> Results:
    """Return the results that this run adds to.

    Raises:
        SystemExit: they are from another machine, or with another number of threads.
    """
    new = Results(machine(*PACKAGES), threads)
    if not file.exists():
        return new
    old = Results.read(file)
    if (old.machine, old.threads) != (new.machine, new.threads):
        raise SystemExit(
            f"{file} is from {old.machine}, {old.threads} thread(s), and this is {new.machine}, {new.threads}; "
            "fix: another --out"
        )
    # What was absent may be installed by now.
    old.absent, old.failed = {}, []
    return old


def prepare(options: argparse.Namespace) -> None:
    """The part of a process of its own: write what the sides read, and print what is missing."""
    from benchmarks.inputs import MissingInputError

    name, folder = options.prepare
    problem = None
    try:
        next(part for part in parts(tiny=options.tiny) if part.name == name).prepare(Path(folder))
    except MissingInputError as error:
        problem = str(error)
    print(json.dumps({"problem": problem}))


if __name__ == "__main__":
    main()
