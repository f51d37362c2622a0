"""The share of a run's models that one process trains, and with how many workers and threads."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from mlxbert.backend.device import device_name, use_fast_blas
from mlxbert.errors import RunError, RunWarning
from mlxbert.runs.record import RunRecord
from mlxbert.training.config import TrainingConfig
from mlxbert.training.parallel import World
from mlxbert.training.trainer import Member

_PART = re.compile(r"(fold|seed)=(0|[1-9][0-9]{0,9})", re.ASCII)


@dataclass(frozen=True)
class Share:
    """Which models of a run this process trains.

    Attributes:
        workers: processes on this machine that train them.
        words: models that the user named, such as "fold=3,seed=1"; (): all.
        names: in a worker process, the names of the models that all workers share.
    """

    workers: int = 1
    words: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a number of workers that is none, and words that are no texts."""
        if not isinstance(self.workers, int) or isinstance(self.workers, bool) or self.workers < 1:
            raise RunError(f"workers must be a whole number from 1, not {self.workers!r}; fix: --workers 2")
        if not all(isinstance(word, str) for word in self.words):
            raise RunError('members must be texts; fix: members=["fold=3,seed=1"]')
        for word in self.words:
            _parts(word, "such as fold=3,seed=1")

    @property
    def is_part(self) -> bool:
        """Whether other processes may train models of the run at the same time, and this one does not finish it."""
        return bool(self.words or self.names)

    def chosen(self, members: Sequence[Member]) -> tuple[Member, ...]:
        """Return the models of the share; "fold=3" is that fold with every seed.

        Raises:
            RunError: a word that names no model of the run.
        """
        if not self.is_part:
            return tuple(members)
        folds, seeds = (sorted({getattr(member, part) for member in members}) for part in ("fold", "seed"))
        there = f"the run has {_numbers('fold', folds)} and {_numbers('seed', seeds)}"
        named = {member for member in members if member.name in self.names}
        for word in self.words:
            wanted = _parts(word, there)
            fitting = [member for member in members if all(getattr(member, part) == wanted[part] for part in wanted)]
            if not fitting:
                raise RunError(f"there is no member {word!r}; {there}")
            named.update(fitting)
        return tuple(member for member in members if member in named)


def _parts(word: str, there: str) -> dict[str, int]:
    """Return fold and seed that a word names, or one of them."""
    parts = [_PART.fullmatch(part.strip()) for part in word.split(",")]
    wanted = {part[1]: int(part[2]) for part in parts if part is not None}
    if len(wanted) < len(parts):
        raise RunError(f"--member {word!r} is not fold=NUMBER,seed=NUMBER, or one of the two; {there}")
    return wanted


def _numbers(what: str, numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"{what} {numbers[0]}"
    if list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{what}s {numbers[0]} to {numbers[-1]}"
    more = f", … ({len(numbers)})" if len(numbers) > 10 else ""
    return f"{what}s {', '.join(map(str, numbers[:10]))}{more}"


def threads_of(config: TrainingConfig, share: Share, before: RunRecord | None, world: World | None = None) -> int:
    """Return the threads of each model's training.

    They are those of a run that goes on, or of the configuration, or all that this process may use, divided among the
    workers, or the ranks on this machine.

    Warns:
        RunWarning: more threads than the process may use, or threads where they change nothing.
    """
    world = world or World()
    status, workers = use_fast_blas(), min(share.workers, len(config.seeds) * config.folds) * world.local_size
    threads = config.threads
    if threads is None and before is not None:  # an older version began it
        recorded = before.environment.get("threads")
        threads = recorded if isinstance(recorded, int) and 1 <= recorded <= 64 else None
    # On every path: a rank that left it out would let the others wait for a message that nobody sends.
    usual = 1 if status.library is None else max(status.threads // workers, 1)
    of_first = int(world.first("threads", usual if threads is None else threads))
    if status.library is None:
        if threads not in (None, 1) and before is None:
            warnings.warn(
                f"threads={threads} changes nothing on {device_name()} without OpenBLAS: MLX has threads of its own",
                RunWarning,
                stacklevel=2,
            )
        return 1
    threads = of_first if threads is None else threads
    # Ranks are processes of their own, and each may be allowed a part of the cores only.
    kind, limit = (
        ("workers", status.threads) if world.size == 1 else ("ranks", max(status.threads, os.cpu_count() or 1))
    )
    if threads * workers > limit:
        who = f"{workers} {kind} with {_counted(threads)} each" if workers > 1 else _counted(threads)
        warnings.warn(
            f"{who}, and this process may use {limit}: they wait for each other, and the bytes stay the same",
            RunWarning,
            stacklevel=2,
        )
    return threads


def _counted(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"
