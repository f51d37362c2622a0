"""``python -m tests.fuzz``: many hostile inputs; prints each kind of finding with the seed that repeats it."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import click

from tests.fuzz.samples import build
from tests.fuzz.targets import ENVIRONMENT, TARGETS
from tests.support.forked import driver

PIECE = 50


@click.command()
@click.option("--inputs", default=10_000, show_default=True, help="Inputs of each target.")
@click.option("--seconds", default=3600, show_default=True, help="Stop after this time, wherever it is.")
@click.option(
    "--target",
    "targets",
    type=click.Choice(list(TARGETS)),
    multiple=True,
    help="Only these targets; repeat it for several.",
)
@click.option("--first", default=0, show_default=True, help="The first seed.")
@click.option("--limit", default=20, show_default=True, help="Seconds that one input may take.")
def main(inputs: int, seconds: int, targets: tuple[str, ...], first: int, limit: int) -> None:
    """Damage inputs by seed; report raw exceptions, hangs, memory, writes outside and code that runs."""
    end = time.monotonic() + seconds
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    counts: dict[str, list[int]] = {target: [0, 0] for target in targets or TARGETS}
    with (
        tempfile.TemporaryDirectory() as folder,
        driver("tests.fuzz.worker", ENVIRONMENT) as work,
    ):
        samples = Path(folder) / "samples"
        build(samples)
        for start in range(first, first + inputs, PIECE):
            for target, (done, refused) in counts.items():
                if time.monotonic() > end:
                    break
                seeds = [start, min(start + PIECE, first + inputs)]
                job = {
                    "samples": str(samples),
                    "target": target,
                    "seeds": seeds,
                    "fault": None,
                    "limit": limit,
                }
                ended = work(job)
                counts[target] = [done + ended["done"], refused + ended["refused"]]
                for seed, text in ended["findings"]:
                    if not found[target, _kind(text)]:
                        click.echo(f"{target} {seed}: {text}")
                    found[target, _kind(text)].append(seed)
    for target, (done, refused) in counts.items():
        click.echo(f"{target:<12}{done:>8} taken {refused:>8} refused")
    for (target, kind), seeds in sorted(found.items()):
        click.echo(f"FOUND {len(seeds):>5} x {target}: {kind} (first seed {seeds[0]})")
    sys.exit(1 if found else 0)


def _kind(text: str) -> str:
    """What findings have in common: the place and the type, without names and numbers."""
    place = text.rpartition(" at ")[2] if " at " in text else ""
    return f"{text[:40]} … {place}" if place else text[:60]


if __name__ == "__main__":
    main()
