"""The forward pass of bert-base, batch 8 × 128, float32, on the CPU: PyTorch, mlxbert, mlx-embeddings as installed.

    python -m benchmarks.forward --repeat 5

Every measurement is a process of its own, and the sides take turns, so that a busy minute hits both: what counts is
the ratio of neighbours, pair by pair. All sides load one checkpoint (bert-base's shape, random weights) and encode the
same ids; the largest difference between their hidden states is printed, so that nobody is fast at something else. A
process runs the model once to warm up and then `--forwards` times; its fastest pass counts, for either side, because
other load only ever adds to a time. mlx-embeddings multiplies in MLX's own BLAS and takes about a minute a pass: it
has `--slow-repeat` processes of one pass each, without warming up.

A benchmark shows, and asserts nothing: the exit code is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.family_sizes import write_checkpoint
from benchmarks.machine import load, machine

_BATCH, _LENGTH = 8, 128
_AT_MOST, _AT_LEAST = 1.5, 20.0


@dataclass(frozen=True)
class Timing:
    """Seconds of one forward pass (a process's fastest) and the last hidden state, (B, L, D)."""

    seconds: float
    hidden: np.ndarray


def token_ids(directory: Path) -> np.ndarray:
    """The ids that every side encodes, (B, L): any of the checkpoint's vocabulary but that of padding."""
    config = json.loads((directory / "config.json").read_text())
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], (_BATCH, _LENGTH))
    return np.where(ids == config.get("pad_token_id"), ids - 1, ids) % config["vocab_size"]


def torch_side(directory: Path) -> Callable[[], np.ndarray]:
    """transformers' encoder with its default attention (torch's fused one), in eval mode, without gradients."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor(token_ids(directory))
    mask = torch.ones_like(ids)

    def run() -> np.ndarray:
        with torch.no_grad():
            return model(ids, attention_mask=mask).last_hidden_state.numpy()

    return run


def mlxbert_side(directory: Path) -> Callable[[], np.ndarray]:
    """Our encoder, called as a user calls it: with a mask, and with its pooler if it has one."""
    import mlx.core as mx

    from mlxbert.checkpoint import new_encoder
    from mlxbert.models.architecture import config_from_hf

    mx.set_default_device(mx.cpu)
    config = config_from_hf(json.loads((directory / "config.json").read_text()))
    weights: dict[str, mx.array] = dict(mx.load(str(directory / "model.safetensors")))  # type: ignore[arg-type]
    model = new_encoder(config, weights)
    model.load_weights(list(weights.items()))
    model.eval()
    ids = mx.array(token_ids(directory))
    mask = mx.ones(ids.shape, mx.int32)

    def run() -> np.ndarray:
        output = model(ids, attention_mask=mask)
        mx.eval([array for array in (output.last_hidden_state, output.pooler_output) if array is not None])
        return np.array(output.last_hidden_state)

    return run


def mlx_embeddings_side(directory: Path) -> Callable[[], np.ndarray]:
    """mlx-embeddings' own model, in an MLX that nobody has given another BLAS."""
    import mlx.core as mx
    from mlx_embeddings.models.bert import Model, ModelArgs

    assert "mlxbert" not in sys.modules
    mx.set_default_device(mx.cpu)
    model = Model(ModelArgs.from_dict(json.loads((directory / "config.json").read_text())))
    model.load_weights(list(model.sanitize(mx.load(str(directory / "model.safetensors"))).items()))
    model.eval()
    ids = mx.array(token_ids(directory))
    mask = mx.ones(ids.shape, mx.int32)

    def run() -> np.ndarray:
        hidden = model(ids, attention_mask=mask).last_hidden_state
        mx.eval(hidden)
        return np.array(hidden)

    return run


SIDES = {"torch": torch_side, "mlxbert": mlxbert_side, "mlx-embeddings": mlx_embeddings_side}


def measure_here(side: str, directory: Path, forwards: int) -> None:
    """The child's part: time one side, print the seconds, save the hidden state beside the checkpoint."""
    run = SIDES[side](directory)
    if side != "mlx-embeddings":
        run()
    samples = []
    for _ in range(forwards):
        start = time.perf_counter()
        hidden = run()
        samples.append(time.perf_counter() - start)
    np.save(directory / f"{side}.npy", hidden)
    print(json.dumps(min(samples)))


def measure(side: str, directory: Path, forwards: int) -> Timing:
    """Time one side in a process of its own."""
    path = os.pathsep.join(entry for entry in (str(Path.cwd()), *sys.path) if entry)
    command = [sys.executable, "-m", "benchmarks.forward", "--side", side, "--checkpoint", str(directory)]
    answer = subprocess.run(
        [*command, "--forwards", str(forwards)],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return Timing(float(answer.splitlines()[-1]), np.load(directory / f"{side}.npy"))


def spread(values: list[float], unit: str) -> str:
    """Median [smallest – largest]."""
    low, high = min(values), max(values)
    digits = 3 if low < 10 else 1
    return f"{statistics.median(values):.{digits}f}{unit} [{low:.{digits}f} – {high:.{digits}f}]"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="pairs of processes, torch and mlxbert (default 5)")
    parser.add_argument("--forwards", type=int, default=7, help="timed passes in each process (default 7)")
    parser.add_argument(
        "--slow-repeat", type=int, default=1, help="processes of mlx-embeddings, a minute each; 0: none (default 1)"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if min(options.repeat, options.forwards) < 1 or options.slow_repeat < 0:
        parser.error("--repeat and --forwards must be at least 1, --slow-repeat at least 0")
    return options


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table and the two verdicts."""
    options = parse(argv)
    if options.side:
        measure_here(options.side, options.checkpoint, options.forwards)
        return
    print(f"machine   {machine()}\nbefore    {load()}", flush=True)
    timings: dict[str, list[Timing]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        write_checkpoint(directory)
        for _ in range(options.repeat):
            for side in ("torch", "mlxbert"):
                timings[side].append(measure(side, directory, options.forwards))
        for _ in range(options.slow_repeat):
            timings["mlx-embeddings"].append(measure("mlx-embeddings", directory, 1))

    print(f"\nforward pass of bert-base, {_BATCH} × {_LENGTH} tokens, float32: median [min – max] over processes\n")
    reference = timings["torch"][0].hidden
    for side, values in timings.items():
        if values:
            difference = float(np.abs(values[-1].hidden - reference).max())
            seconds = spread([timing.seconds for timing in values], " s")
            print(f"{side:<16}{seconds:<32}{len(values)} processes   hidden state off torch's by {difference:.1e}")
    pairs = zip(timings["torch"], timings["mlxbert"], strict=True)
    ratios = [ours.seconds / theirs.seconds for theirs, ours in pairs]
    print(f"\nmlxbert / torch            {spread(ratios, '×')}   pair by pair")
    ratio = statistics.median(ratios)
    verdicts = [f"≤ {_AT_MOST}× torch's time: {'yes' if ratio <= _AT_MOST else 'no'} ({ratio:.2f}×)"]
    if timings["mlx-embeddings"]:
        slow, fast = (statistics.median(t.seconds for t in timings[side]) for side in ("mlx-embeddings", "mlxbert"))
        print(f"mlx-embeddings / mlxbert   {slow / fast:.1f}×   of the medians")
        verdict = "yes" if slow / fast >= _AT_LEAST else "no"
        verdicts.append(f"≥ {_AT_LEAST:.0f}× faster than mlx-embeddings: {verdict} ({slow / fast:.1f}×)")
    print("", *verdicts, sep="\n")


if __name__ == "__main__":
    main()
