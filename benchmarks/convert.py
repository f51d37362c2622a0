"""How long a conversion takes and how much memory, against copying and hashing the same file.

Both sides in one run, in turn, warm cache: `cp` + `sync` + `sha256sum` of a bert-base in float32 (438 MB), and
`mlxbert-convert --no-verify` of it. Both leave the file on the disk and know its hash; the conversion checks every
number and renames every tensor besides.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from benchmarks.child import timed
from benchmarks.machine import machine
from converter.mapping import plan
from converter.mappings.bert import MAPPING
from mlxbert.models.bert import BertConfig

CONVERT = "import sys; from converter.cli import convert; sys.argv[0] = 'mlxbert-convert'; convert()"
TIME_LIMIT, MEMORY_LIMIT = 2.0, 350
NO_TORCH = (
    "import sys; from converter.convert import convert; convert(sys.argv[1], sys.argv[2], verify=False); "
    "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
)


def make_bert_base(directory: Path) -> None:
    """A random bert-base in the form of `bert-base-uncased`: `bert.` prefix, a head, LayerNorm gamma and beta."""
    random = np.random.default_rng(0)
    tensors = {}
    config = BertConfig()
    sizes = {name: getattr(config, name) for name in BertConfig.__dataclass_fields__}
    for rule in MAPPING.encoder:
        for layer in range(config.num_hidden_layers) if "{i}" in rule.target else (0,):
            shape = tuple(sizes[size] for size in rule.shape)
            name = rule.target.replace("{i}", str(layer))
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[f"bert.{name}"] = random.standard_normal(shape, np.float32) * np.float32(0.02)
    tensors["cls.seq_relationship.weight"] = random.standard_normal((2, 768), np.float32)
    tensors["cls.seq_relationship.bias"] = random.standard_normal((2,), np.float32)
    plan(MAPPING, config, {name: array.shape for name, array in tensors.items()})
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    hf = {"model_type": "bert", "architectures": ["BertForNextSentencePrediction"]}
    (directory / "config.json").write_text(json.dumps(hf))


@dataclass(frozen=True)
class Measured:
    """Seconds of each side, run by run, the conversion's peaks in MB, and the size of the file in bytes."""

    ours: list[float]
    baseline: list[float]
    peaks: list[float]
    size: int

    @property
    def ratios(self) -> list[float]:
        """The conversion's time over that of its neighbour."""
        return [a / b for a, b in zip(self.ours, self.baseline, strict=True)]


def measured(directory: Path, scratch: Path, repeat: int) -> Measured:
    """Convert the checkpoint in `directory`, and copy and hash its file, in turn."""
    file = directory / "model.safetensors"
    out, copy = scratch / "out", scratch / "copy"
    hasher = "sha256sum" if shutil.which("sha256sum") else "shasum -a 256"
    baseline = ["sh", "-c", f"cp '{file}' '{copy}' && sync && {hasher} '{copy}' && rm '{copy}'"]
    ours = [sys.executable, "-c", CONVERT, str(directory), "-o", str(out), "--no-verify"]
    found = Measured([], [], [], file.stat().st_size)
    for run in range(repeat + 1):  # the first of each warms the cache
        seconds, _ = timed(baseline)
        our_seconds, peak = timed(ours)
        shutil.rmtree(out)
        if run:
            found.baseline.append(seconds)
            found.ours.append(our_seconds)
            found.peaks.append(peak)
    return found


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="counted runs of each side (default 5)")
    options = parser.parse_args(argv)
    console = Console()
    console.print(machine())
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        directory = Path(scratch) / "bert-base"
        directory.mkdir()
        # In a process of its own: a child's ru_maxrss begins at the size that its parent had when it was forked.
        make = "import sys; from pathlib import Path; from benchmarks.convert import make_bert_base as make; "
        subprocess.run([sys.executable, "-c", make + "make(Path(sys.argv[1]))", str(directory)], check=True)
        found = measured(directory, Path(scratch), options.repeat)
        helps = [timed([sys.executable, "-c", CONVERT, "--help"])[0] for _ in range(options.repeat)]
        imported = subprocess.run(
            [sys.executable, "-c", NO_TORCH, str(directory), str(Path(scratch) / "out")],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    title = f"Convert bert-base, {found.size / 1e6:.0f} MB float32, --no-verify, {options.repeat} runs in turn"
    table = Table(title=title)
    for column in ("", "median", "min", "max", "limit"):
        table.add_column(column, justify="left" if not column else "right")

    def row(what: str, values: list[float], form: str, limit: str = "") -> None:
        table.add_row(what, *(form.format(f(values)) for f in (statistics.median, min, max)), limit)

    row("mlxbert-convert, s", found.ours, "{:.2f}")
    row("cp + sync + sha256sum, s", found.baseline, "{:.2f}")
    row("ratio", found.ratios, "{:.2f}", f"{TIME_LIMIT:.2f}")
    row("peak memory, MB", found.peaks, "{:.0f}", f"{MEMORY_LIMIT}")
    row("--help, s", helps, "{:.2f}", "0.30")
    console.print(table)
    console.print(f"of torch and transformers, the conversion imported: {imported}")


if __name__ == "__main__":
    main()
