"""Peak memory and time of a training step: everything that saves some, for three sizes of an encoder.

    python -m benchmarks.memory                        # measure what is not recorded yet
    python -m benchmarks.memory --only large/lora      # one cell, again
    python -m benchmarks.memory --table                # print the tables of what is recorded
    python -m benchmarks.memory --write                # put them into docs/scale.md

Random encoders of the sizes of MiniLM, bert-base and bert-large, with a binary head, dropout 0.1 and AdamW; 8 rows of
128 tokens a step. A cell is a process of its own, which loads the encoder from a file, as `mlxbert train` does, and
takes a step to warm up and then two more, of which the faster one counts. "Process" is the peak resident memory of
this process, libraries included (some 70 MB); "MLX" is the peak of MLX's own allocations, which on a GPU is the number
that counts. A step's time is of this machine: on a CPU, MLX multiplies half precision in scalar loops, tens of times
slower than float32.

A measured cell is one line of `benchmarks/results/memory.jsonl`; the last line of a cell counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import answer, peak_memory
from benchmarks.machine import machine

RECORDED = Path(__file__).parent / "results" / "memory.jsonl"
NOTES = Path(__file__).parent.parent / "docs" / "scale.md"
_BEGIN, _END = "<!-- python -m benchmarks.memory --write -->", "<!-- end of memory -->"
ROWS, LENGTH = 8, 128
ADAPTERS: dict[str, Any] = {"rank": 8, "alpha": 16}
SIZES: dict[str, dict[str, int]] = {
    "MiniLM": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
LIMIT = 0.45
"""Of the memory of full training, both with checkpointed layers: LoRA of rank 8 on a large encoder."""


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        title: of the line.
        settings: of the step.
        batches: into how many batches the rows are cut.
        lora: whether adapters are trained instead of the encoder.
        packed: whether the encoder is quantized to 4 bits.
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    batches: int = 1
    lora: bool = False
    packed: bool = False


CHECKPOINTED = {"checkpoint_layers": True}
CASES = {
    "full": Case("float32"),
    "bfloat16": Case("bfloat16 compute", {"compute_dtype": "bfloat16"}),
    "checkpointed": Case("checkpointed layers", CHECKPOINTED),
    "accumulated": Case("4 batches of 2 accumulated", batches=4),
    "lora": Case("LoRA", lora=True),
    "lora-checkpointed": Case("LoRA, checkpointed layers", CHECKPOINTED, lora=True),
    "qlora": Case("QLoRA, 4 bits", lora=True, packed=True),
    "qlora-checkpointed": Case("QLoRA, 4 bits, checkpointed layers", CHECKPOINTED, lora=True, packed=True),
}


def directory_of(cell: str, models: Path) -> Path:
    """The encoder of a cell."""
    size, name = cell.split("/")
    return models / (f"{size}-4bit" if CASES[name].packed else size)


def write_encoder(cell: str, models: Path) -> None:
    """Write the random encoder of a cell, as a conversion does."""
    import mlx.core as mx

    from converter.convert import convert
    from heads.binary import BinaryClassificationHead
    from mlxbert.models.bert import BertConfig, BertCore
    from mlxbert.with_head import BertWithHead

    size, name = cell.split("/")
    if not (models / size).is_dir():
        mx.random.seed(0)
        config = BertConfig(**SIZES[size])
        BertWithHead(BertCore(config), BinaryClassificationHead(config.hidden_size)).save(models / size)
    if CASES[name].packed:
        convert(models / size, directory_of(cell, models), quantize="4bit", verify=False, encoder_only=True)


def measure_here(cell: str, models: Path, steps: int) -> None:
    """The child's part: train, and print the peaks."""
    import mlx.core as mx

    from heads.binary import BinaryClassificationHead
    from mlxbert.adapters import LoRA, add_adapters
    from mlxbert.checkpoint import load_core
    from mlxbert.training.optimizer import Schedule, parameter_rules
    from mlxbert.training.step import StepSettings, TrainStep
    from mlxbert.with_head import BertWithHead

    case = CASES[cell.partition("/")[2]]
    mx.random.seed(0)
    core = load_core(directory_of(cell, models), dequantize=False)
    model = BertWithHead(core, BinaryClassificationHead(core.config.hidden_size))
    if case.lora:
        add_adapters(core, LoRA(**ADAPTERS))
    step = TrainStep(model, parameter_rules(model, rate=1e-5), Schedule(steps), StepSettings(**case.settings))
    loaded = peak_memory()
    mx.reset_peak_memory()
    ids = np.random.default_rng(0).integers(1000, core.config.vocab_size, (ROWS, LENGTH)).astype(np.int32)
    targets = model.head.encode_targets(np.arange(ROWS) % 2)
    parts = np.split(np.arange(ROWS), case.batches)
    mask = np.ones((len(parts[0]), LENGTH), np.int32)
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        step([({"input_ids": ids[rows], "attention_mask": mask}, targets[mx.array(rows)], None) for rows in parts])
        seconds.append(time.perf_counter() - begin)
    trained = sum(array.size for array in step.weights.values())
    peaks = {"process": peak_memory(), "mlx": mx.get_peak_memory() / 1e6, "loaded": loaded}
    print(json.dumps({**peaks, "seconds": seconds[1:] or seconds, "trained": trained}))


def measure(cell: str, steps: int, models: Path) -> dict[str, Any]:
    """Measure one cell, "SIZE/CASE", and record it; `models` keeps the encoders."""
    if not directory_of(cell, models).is_dir():
        # In a process of its own: a child's peak begins at the size of its parent.
        answer("memory", "--make", cell, "--models", models)
    found = answer("memory", "--child", cell, "--steps", steps, "--models", models)
    record = {"cell": cell, **found, "machine": machine()}
    with RECORDED.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
    return record


def recorded() -> dict[str, dict[str, Any]]:
    """Every recorded cell, its last measurement."""
    lines = RECORDED.read_text(encoding="utf-8").splitlines() if RECORDED.is_file() else []
    return {record["cell"]: record for record in map(json.loads, lines)}


def table(cells: dict[str, dict[str, Any]]) -> str:
    """The table: for each size, the peak of the process, that of MLX, and the seconds of a step."""
    head = [f"{size}: process, MLX, seconds" for size in SIZES]
    lines = [f"| | {' | '.join(head)} |", f"|---|{'---|' * len(SIZES)}"]
    for name, case in CASES.items():
        found = [cells.get(f"{size}/{name}") for size in SIZES]
        if any(found):
            lines.append(f"| {case.title} | {' | '.join(map(_shown, found))} |")
    return "\n".join(lines)


def _shown(record: dict[str, Any] | None) -> str:
    if record is None:
        return "not measured"
    seconds = min(record["seconds"])  # the other one may have been disturbed
    return f"{record['process'] / 1000:.2f} GB, {record['mlx'] / 1000:.2f} GB, {seconds:.2f} s"


def verdict(cells: dict[str, dict[str, Any]]) -> str:
    """The number of the issue: LoRA's memory of full training's, large encoder, checkpointed layers on both sides."""
    full, lora = (cells.get(f"large/{name}") for name in ("checkpointed", "lora-checkpointed"))
    if full is None or lora is None:
        return "large, checkpointed layers: LoRA against full training is not measured"
    shares = ", ".join(f"{lora[peak] / full[peak]:.0%} of {what}" for peak, what in _PEAKS.items())
    met = all(lora[peak] <= LIMIT * full[peak] for peak in _PEAKS)
    return (
        f"LoRA of rank {ADAPTERS['rank']} on the large encoder, checkpointed layers on both sides: {shares} of full "
        f"training (limit {LIMIT:.0%}: {'met' if met else 'MISSED'})"
    )


_PEAKS = {"process": "the process's memory", "mlx": "MLX's memory"}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="SIZE/CASE", default=[], help="these cells, again if recorded")
    parser.add_argument("--steps", type=int, default=3, help="steps of a cell; the first is not timed (default 3)")
    parser.add_argument("--models", type=Path, help="keep the random encoders there; 2 GB")
    parser.add_argument("--table", action="store_true", help="print the table; measure nothing")
    parser.add_argument("--write", action="store_true", help=f"put it into {NOTES.name}; measure nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    cells = [f"{size}/{name}" for size in SIZES for name in CASES]
    if unknown := sorted(set(options.only) - set(cells)):
        parser.error(f"{unknown[0]} is no cell; there are {', '.join(cells)}")
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    if options.make:
        write_encoder(options.make, options.models)
        print("{}")
        return
    if options.child:
        measure_here(options.child, options.models, options.steps)
        return
    if not (options.table or options.write):
        with tempfile.TemporaryDirectory() as scratch:
            known = recorded()
            for cell in options.only or [cell for cell in cells if cell not in known]:
                record = measure(cell, options.steps, options.models or Path(scratch))
                print(f"{cell:<28}{_shown(record)}", flush=True)
    found = recorded()
    machines = "; ".join(dict.fromkeys(record["machine"] for record in found.values()))
    text = f"{table(found)}\n\n{verdict(found)}.\n\nMeasured on: {machines}."
    if options.write:
        before, rest = NOTES.read_text(encoding="utf-8").split(_BEGIN)
        NOTES.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{rest.partition(_END)[2]}", encoding="utf-8")
    else:
        print(f"\n{text}")


if __name__ == "__main__":
    main()
