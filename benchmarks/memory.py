"""Peak memory of one training step, with and without each of the things that save some.

    python -m benchmarks.memory            # MiniLM's size
    python -m benchmarks.memory --base     # bert-base's size
    python -m benchmarks.memory --half --steps 1

A random encoder of that size and a binary head, 32 rows of 128 tokens a step, dropout 0.1, AdamW; each case is a
process of its own. "Process" is the peak resident memory of the process, libraries included (some 150 MB); "MLX" is
the peak of MLX's own allocations, which on a GPU is the number that counts. Seconds are the last step's, and are of
this machine: on a CPU MLX multiplies half precision in scalar loops, tens of times slower than float32, and there it
saves memory alone.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from benchmarks.child import answer, peak_memory
from benchmarks.machine import machine

_ROWS, _LENGTH = 32, 128
SIZES: dict[str, dict[str, int]] = {
    "MiniLM": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {},
}
# Settings of the step, and into how many batches its rows are cut.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "float32, 32 rows": ({}, 1),
    "checkpointed layers": ({"checkpoint_layers": True}, 1),
    "4 batches of 8 accumulated": ({}, 4),
    "4 of 8, checkpointed layers": ({"checkpoint_layers": True}, 4),
    "bfloat16": ({"compute_dtype": "bfloat16"}, 1),
    "float16": ({"compute_dtype": "float16"}, 1),
}


def measure_here(case: str, size: str, steps: int) -> None:
    """The child's part: train, and print the peaks."""
    import mlx.core as mx

    from heads.binary import BinaryClassificationHead
    from mlxbert.models.bert import BertConfig, BertCore
    from mlxbert.training.optimizer import Schedule, parameter_rules
    from mlxbert.training.step import StepSettings, TrainStep
    from mlxbert.with_head import BertWithHead

    settings, batches = CASES[case]
    mx.random.seed(0)
    config = BertConfig(**SIZES[size])
    model = BertWithHead(BertCore(config), BinaryClassificationHead(config.hidden_size))
    step = TrainStep(model, parameter_rules(model, rate=1e-5), Schedule(steps), StepSettings(**settings))
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, config.vocab_size, (_ROWS, _LENGTH)).astype(np.int32)
    targets = model.head.encode_targets(np.arange(_ROWS) % 2)
    seconds = 0.0
    for _ in range(steps):
        begin = time.perf_counter()
        parts = np.split(np.arange(_ROWS), batches)
        mask = np.ones((_ROWS // batches, _LENGTH), np.int32)
        step([({"input_ids": ids[rows], "attention_mask": mask}, targets[mx.array(rows)], None) for rows in parts])
        seconds = time.perf_counter() - begin
    print(json.dumps({"process": peak_memory(), "mlx": mx.get_peak_memory() / 1e6, "seconds": seconds}))


def main(argv: list[str] | None = None) -> None:
    """Measure every case, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", action="store_true", help="bert-base's size instead of MiniLM's; 4 GB, and minutes")
    parser.add_argument("--steps", type=int, default=2, help="steps of each case (default 2)")
    parser.add_argument("--half", action="store_true", help="bfloat16 and float16 too; minutes a step on a CPU")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    size = "bert-base" if options.base else "MiniLM"
    if options.case:
        measure_here(options.case, size, options.steps)
        return
    print(f"machine   {machine()}\n\none step of {_ROWS} × {_LENGTH} tokens, an encoder of {size}'s size\n")
    print(f"{'':<30}{'process, MB':>12}{'MLX, MB':>10}{'of float32':>12}{'seconds':>10}")
    first = 0.0
    for case, (settings, _) in CASES.items():
        if "compute_dtype" in settings and not options.half:
            continue
        one = answer("memory", "--case", case, "--steps", options.steps, *(["--base"] if options.base else []))
        first = first or one["mlx"]
        numbers = f"{one['process']:>12.0f}{one['mlx']:>10.0f}{one['mlx'] / first:>12.0%}{one['seconds']:>10.1f}"
        print(f"{case:<30}{numbers}", flush=True)


if __name__ == "__main__":
    main()
