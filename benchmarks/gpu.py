"""Forward and training on a GPU, CUDA or Metal: mlxbert and PyTorch, in float32, bfloat16 and float16.

    python -m benchmarks.gpu                                    # a bert-base-sized model; some ten minutes
    python -m benchmarks.gpu --only forward --dtypes bfloat16
    python -m benchmarks.gpu --tiny                             # a model of a few kilobytes; some minutes on a CPU

Texts of 128 and 512 tokens, and of mixed lengths (padded to the longest; PyTorch also packed without padding, where
flash-attn is installed). Every measurement is a process of its own, and the sides take turns. Before a time counts,
the hidden states are compared with PyTorch's in float32, and in training the losses of three steps without dropout. In
training, weights and optimizer are float32 on both sides, and half precision is that of the encoder (PyTorch:
autocast, in float16 with scaled gradients).

TFLOP/s counts the products of real tokens: 2 for a multiplication and an addition, three times as much for a training
step; padding is no work done. The share is of what the card's maker says for dense matrices of this precision. In
float32 both sides multiply as TF32 where the card can, which is MLX's default.

What runs on the CPU: MLX has no silent fallback. An operation without a kernel for the GPU raises an error, and only
what is put on a stream of the CPU is computed there. The script counts such streams that are made or entered while a
pass is built and run; it does not see an operation's own argument `stream`, which mlxbert uses nowhere. It also
counts the fused attention kernels of a forward pass (MLX has one for float32 on Metal, and none on CUDA).

A benchmark shows, and asserts nothing: the exit code is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import speed_inputs as inputs
from benchmarks.child import answer
from benchmarks.machine import load, machine
from benchmarks.speed_sides import difference
from benchmarks.speed_table import progress, spread
from benchmarks.speed_training import head_weights
from heads.command_line import install_fix

PYTORCH, COMPILED, PACKED, OURS = "PyTorch", "PyTorch compiled", "PyTorch packed", "mlxbert"
SIDES = (PYTORCH, COMPILED, PACKED, OURS)
DTYPES = ("float32", "bfloat16", "float16")
RATE = 5e-6
LOSSES = "reference-losses.npy"
# The largest difference from PyTorch in float32 (random weights, hidden states of size 1); TF32 has float16's digits.
LIMITS = {"float32": 3e-2, "bfloat16": 2.5e-1, "float16": 3e-2}
# The largest difference of a loss: that of hidden states, averaged over many of them.
LOSS_LIMITS = {"float32": 3e-3, "bfloat16": 2.5e-2, "float16": 3e-3}
# Dense TFLOP/s as published: (float32, with TF32 where there is one; bfloat16; float16, both with float32 sums). None:
# not published. A name is some whole words of the device's name; the first that fits counts.
# NVIDIA: data sheets of H200, H100, A100, L40S, L4, A10, T4 (numbers "with sparsity" are halved), and appendix A of
# the Ada (RTX 4090) and Ampere GA102 (RTX 3090) architecture papers.
# Apple: press releases of M1 (2020), M1 Pro and Max (2021), M1 Ultra (2022): float32 alone.
PEAKS: dict[str, tuple[float | None, float | None, float | None]] = {
    "H200": (494.5, 989.5, 989.5),
    "H100 PCIe": (378.0, 756.0, 756.0),
    "H100 NVL": (417.5, 835.5, 835.5),
    "H100": (494.5, 989.5, 989.5),
    "A100": (156.0, 312.0, 312.0),
    "L40S": (183.0, 362.0, 362.0),
    "L4": (60.0, 121.0, 121.0),
    "A10": (62.5, 125.0, 125.0),
    "T4": (8.1, None, 65.0),
    "RTX 4090": (82.6, 165.2, 165.2),
    "RTX 3090": (35.6, 71.0, 71.0),
    "M1 Ultra": (21.0, None, None),
    "M1 Max": (10.4, None, None),
    "M1 Pro": (5.2, None, None),
    "Apple M1": (2.6, None, None),
}

# These words make another card of the same name, with other peaks.
_VARIANTS = ("Ti", "SUPER", "D", "NVL", "PCIe", "GH200", "Laptop", "Mobile", "Max", "Max-Q", "Ultra", "Pro")
_NAMED = tuple(name for name in PEAKS if name.split()[-1] in _VARIANTS)


@dataclass(frozen=True)
class Batch:
    """Texts of these lengths, padded to the longest.

    Attributes:
        ids, mask: (B, L) int64.
    """

    ids: np.ndarray
    mask: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Real tokens of each text, (B,)."""
        return self.mask.sum(1)


def batches(vocabulary: int, *, tiny: bool) -> dict[str, Batch]:
    """Return a batch for each case."""
    random = np.random.default_rng(0)
    mixed = np.clip(np.rint(random.lognormal(np.log(100), 0.7, 64)), 8, 512).astype(int)
    cases = {"64 × 128": np.full(64, 128), "16 × 512": np.full(16, 512), "64 mixed": mixed}
    if tiny:
        cases = {"4 × 16": np.full(4, 16), "2 × 32": np.full(2, 32), "4 mixed": np.array([5, 32, 9, 14])}
    found = {}
    for name, lengths in cases.items():
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        found[name] = Batch(random.integers(1, vocabulary, mask.shape) * mask, mask)
    return found


def operations(lengths: np.ndarray, config: dict[str, Any]) -> float:
    """Return the floating-point operations of the matrix products in a forward pass over texts of these lengths."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    linear = 2 * (4 * width**2 + 2 * width * inner) * lengths.sum()
    attention = 4 * width * (lengths.astype(float) ** 2).sum()
    return float(config["num_hidden_layers"] * (linear + attention))


def peak(device: str, dtype: str) -> float | None:
    """Return the published TFLOP/s of a card; None if it is not in the table."""
    words = f" {device.replace('-', ' ').replace('(', ' ').replace(')', ' ')} "
    if any(f" {variant} " in words for variant in _VARIANTS) and not any(f" {name} " in words for name in _NAMED):
        return None
    found = next((values for name, values in PEAKS.items() if f" {name} " in words), None)
    return None if found is None else found[DTYPES.index(dtype)]


# A side offers what a process measures.


@dataclass(frozen=True)
class Side:
    """A model on its device.

    Attributes:
        device: its name.
        forward: starts a forward pass, and waits for it.
        hidden: the hidden states of the real tokens, (T, D), text by text.
        step: takes a training step, and returns its loss.
        losses: the losses of three steps without dropout; they change the weights.
        reset: begins to measure the memory anew.
        memory: the peak of the device's memory since then, in MB; None: the device does not tell.
        facts: more columns about a forward pass.
    """

    device: str
    forward: Callable[[Batch], Any]
    hidden: Callable[[Batch], np.ndarray]
    step: Callable[[Batch], float]
    losses: Callable[[Batch], np.ndarray]
    reset: Callable[[], None]
    memory: Callable[[], float | None]
    facts: Callable[[Batch], dict[str, Any]]


def mlxbert(folder: Path, side: str, dtype: str, *, train: bool) -> Side:
    """Our encoder on MLX's default device."""
    import mlx.core as mx

    from heads.binary import BinaryClassificationHead
    from mlxbert.backend.device import device_name
    from mlxbert.checkpoint import load_core
    from mlxbert.training.optimizer import Schedule, parameter_rules
    from mlxbert.training.step import StepSettings, TrainStep
    from mlxbert.with_head import BertWithHead

    mx.random.seed(0)
    core = load_core(folder / inputs.CONVERTED, dtype=mx.float32 if train else getattr(mx, dtype))
    steps: dict[float, TrainStep] = {}

    def output(batch: Batch) -> mx.array:
        return core(mx.array(batch.ids), attention_mask=mx.array(batch.mask)).last_hidden_state

    def step(batch: Batch, dropout: float = 0.1) -> float:
        if dropout not in steps:
            width = core.config.hidden_size
            core.set_dropout(dropout)
            model = BertWithHead(core, BinaryClassificationHead(width, dropout=dropout))
            model.head.output.weight = mx.array(head_weights(width))
            rules = parameter_rules(model, rate=RATE)
            steps[dropout] = TrainStep(model, rules, Schedule(1, "constant"), StepSettings(compute_dtype=dtype))
        targets = (np.arange(len(batch.ids)) % 2).astype(np.float32)
        arguments = {"input_ids": batch.ids.astype(np.int32), "attention_mask": batch.mask.astype(np.int32)}
        return float(steps[dropout]([(arguments, targets, None)]).loss)

    def losses(batch: Batch) -> np.ndarray:
        return np.array([step(batch, 0.0) for _ in range(3)])

    def facts(batch: Batch) -> dict[str, Any]:
        with cpu_streams() as found:
            mx.eval(output(batch))
        # Not `mx.export_function`, which refuses operations with gradients of their own.
        graph = io.StringIO()
        mx.export_to_dot(graph, output(batch))
        return {"CPU streams": len(found), "fused attention": graph.getvalue().count("ScaledDotProductAttention")}

    return Side(
        device_name(),
        lambda batch: mx.eval(output(batch)),
        lambda batch: np.array(output(batch).astype(mx.float32))[batch.mask > 0],
        step,
        losses,
        mx.reset_peak_memory,
        lambda: mx.get_peak_memory() / 1e6,
        facts,
    )


@contextmanager
def cpu_streams() -> Iterator[list[str]]:
    """Record every stream of the CPU that is made by name or entered with `mx.stream` inside."""
    import mlx.core as mx

    found: list[str] = []

    def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            for argument in arguments:
                device = getattr(argument, "device", argument)
                if device in (mx.cpu, mx.Device(mx.cpu)):
                    found.append(name)
            return function(*arguments)

        return call

    names = ("stream", "new_stream", "new_thread_unsafe_stream", "default_stream")
    functions = {name: getattr(mx, name) for name in names if hasattr(mx, name)}
    for name, function in functions.items():
        setattr(mx, name, recorded(name, function))
    try:
        yield found
    finally:
        for name, function in functions.items():
            setattr(mx, name, function)


def pytorch(folder: Path, side: str, dtype: str, *, train: bool, reference: bool = False) -> Side:
    """transformers' BERT on CUDA, on Metal, or on the CPU where there is neither."""
    import torch
    from transformers import AutoModel

    kind = torch_device()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest" if reference else "high")
    attention = "flash_attention_2" if side == PACKED else "sdpa"
    # Weights are float32 in training, and autocast rounds them.
    chosen = torch.float32 if train else getattr(torch, dtype)
    options: dict[str, Any] = {"dtype": chosen, "attn_implementation": attention, "add_pooling_layer": False}
    encoder: Any = AutoModel.from_pretrained(folder / inputs.MODEL, **options).to(kind).eval()
    head = torch.nn.Linear(encoder.config.hidden_size, 1).to(kind)
    drop = torch.nn.Dropout(0.1)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(head_weights(encoder.config.hidden_size)))
        head.bias.zero_()
    call = torch.compile(encoder) if side == COMPILED else encoder
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=RATE, fused=kind == "cuda")
    scaler = torch.amp.GradScaler(kind, enabled=dtype == "float16" and kind == "cuda")

    def wait() -> None:
        if kind != "cpu":
            getattr(torch, kind).synchronize()

    def tensors(batch: Batch) -> dict[str, Any]:
        if side != PACKED:
            return {
                "input_ids": torch.from_numpy(batch.ids).to(kind),
                "attention_mask": torch.from_numpy(batch.mask).to(kind),
            }
        # All texts as one, with the places where they begin: flash-attn's kernel for variable lengths.
        ends = torch.tensor(np.concatenate([[0], np.cumsum(batch.lengths)]), dtype=torch.int32, device=kind)
        positions = np.concatenate([np.arange(n) for n in batch.lengths])
        longest = int(batch.lengths.max())
        packed = {
            name: torch.from_numpy(a)[None].to(kind)
            for name, a in (("input_ids", batch.ids[batch.mask > 0]), ("position_ids", positions))
        }
        return {
            **packed,
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def hidden(batch: Batch) -> np.ndarray:
        with torch.inference_mode():
            found = call(**tensors(batch)).last_hidden_state.float().cpu().numpy()
        return found[0] if side == PACKED else found[batch.mask > 0]

    def forward(batch: Batch) -> None:
        with torch.inference_mode():
            call(**tensors(batch))
        wait()

    def step(batch: Batch) -> float:
        encoder.train()
        narrow = nullcontext() if dtype == "float32" else torch.autocast(kind, getattr(torch, dtype))
        with narrow:
            states = call(**tensors(batch)).last_hidden_state
        states = states.float()
        if side == PACKED:
            owner = torch.from_numpy(np.repeat(np.arange(len(batch.ids)), batch.lengths)).to(kind)
            total = states.new_zeros(len(batch.ids), states.shape[-1]).index_add(0, owner, states[0])
        else:
            total = (states * torch.from_numpy(batch.mask).to(kind)[..., None]).sum(1)
        means = total / torch.from_numpy(batch.lengths).to(kind)[:, None]
        targets = (torch.arange(len(batch.ids), device=kind) % 2).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(drop(means))[:, 0], targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([*encoder.parameters(), *head.parameters()], 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return float(loss.item())

    def losses(batch: Batch) -> np.ndarray:
        modules = [module for module in (*encoder.modules(), drop) if isinstance(module, torch.nn.Dropout)]
        before = [module.p for module in modules]
        for module in modules:
            module.p = 0.0
        try:
            return np.array([step(batch) for _ in range(3)])
        finally:
            for module, probability in zip(modules, before, strict=True):
                module.p = probability

    def reset() -> None:
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def memory() -> float | None:
        return torch.cuda.max_memory_allocated() / 1e6 if kind == "cuda" else None

    device = torch.cuda.get_device_name() if kind == "cuda" else kind
    return Side(device, forward, hidden, step, losses, reset, memory, lambda _: {})


def torch_device() -> str:
    """Return "cuda", "mps" or "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


# A process


def measure_here(options: argparse.Namespace) -> dict[str, Any]:
    """The child's part: time the cases of one side, section and dtype; return what each took."""
    train = options.section == "train"
    arguments = (options.folder, options.side, options.dtype)
    if options.side == OURS:
        side = mlxbert(*arguments, train=train)
    else:
        side = pytorch(*arguments, train=train, reference=options.section == "reference")
    config = json.loads((options.folder / inputs.MODEL / "config.json").read_text())
    cases = batches(config["vocab_size"], tiny=options.tiny)
    files = [options.folder / f"reference-{number}.npy" for number in range(len(cases))]
    found: dict[str, Any] = {}
    first = next(iter(cases))
    if options.section == "reference":
        for file, batch in zip(files, cases.values(), strict=True):
            np.save(file, side.hidden(batch))
        np.save(options.folder / LOSSES, side.losses(cases[first]))
        return {}
    if train:
        error = difference(side.losses(cases[first]), np.load(options.folder / LOSSES))
        found = {name: {"error": error} for name in cases}
    else:
        for file, (name, batch) in zip(files, cases.items(), strict=True):
            found[name] = {"error": difference(side.hidden(batch), np.load(file)), **side.facts(batch)}
    for name, one in found.items():
        side.reset()
        run = partial(side.step if train else side.forward, cases[name])
        for _ in range(3):  # compile, and fill the caches
            run()
        seconds: list[float] = []
        while len(seconds) < 3 or sum(seconds) < options.seconds:
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        work = operations(cases[name].lengths, config) * (3 if train else 1)
        one |= {"seconds": statistics.median(seconds), "work": work, "memory": side.memory()}
    return {"device": side.device, "cases": found}


# The command


@dataclass
class Found:
    """What one side took in one case, process by process.

    Attributes:
        device: its name.
        cases: of `measure_here`.
    """

    device: str
    cases: list[dict[str, Any]]

    def median(self, key: str) -> float:
        """Return the median over the processes."""
        return statistics.median(case[key] for case in self.cases)


def process(options: argparse.Namespace, side: str, section: str, dtype: str) -> dict[str, Any]:
    """Run `measure_here` in a process of its own."""
    arguments = ["--side", side, "--section", section, "--dtype", dtype, "--folder", options.folder]
    return answer("gpu", *arguments, "--seconds", options.seconds, *(["--tiny"] if options.tiny else []))


def table(section: str, dtype: str, sides: list[str], options: argparse.Namespace) -> Table:
    """Let the sides take turns; return the table of one section and dtype."""
    found: dict[tuple[str, str], Found] = {}
    for turn in range(options.repeats):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            progress(f"{section}, {dtype}, {turn + 1} of {options.repeats}: {side}")
            one = process(options, side, section, dtype)
            for name, case in one["cases"].items():
                found.setdefault((name, side), Found(one["device"], [])).cases.append(case)
    progress("")
    made = Table(title=f"{section}, {dtype}; processes of each side: {options.repeats}; medians")
    facts = () if section == "train" else ("CPU streams", "fused attention")
    headings = ("", "", "ms", "over PyTorch's [min – max]", "TFLOP/s", "of the peak", "MB", *facts, "error")
    for heading in headings:
        made.add_column(heading, justify="right" if heading else "left")
    limit = (LOSS_LIMITS if section == "train" else LIMITS)[dtype]
    for name in dict.fromkeys(name for name, _ in found):
        made.add_section()
        for side in sides:
            made.add_row(name, side, *cells(found[name, side], found.get((name, PYTORCH)), dtype, facts, limit))
    return made


def cells(ours: Found, theirs: Found | None, dtype: str, facts: tuple[str, ...], limit: float) -> tuple[str, ...]:
    """Return a row of the table; no time, if the error is above the limit."""
    error = float(np.max([case["error"] for case in ours.cases]))  # NaN, if there is one
    if not error <= limit:
        return ("WRONG: not counted", "", "", "", "", *("" for _ in facts), f"{error:.1e}")
    seconds = ours.median("seconds")
    ratios = (
        [] if theirs is None else [a["seconds"] / b["seconds"] for a, b in zip(ours.cases, theirs.cases, strict=False)]
    )
    speed = ours.median("work") / seconds / 1e12
    most = peak(ours.device, dtype)
    memory = "?" if ours.cases[0]["memory"] is None else f"{max(case['memory'] for case in ours.cases):.0f}"
    return (
        f"{1000 * seconds:.2f}",
        "baseline" if ours is theirs else spread(ratios),
        f"{speed:.3g}",
        "unknown" if most is None else f"{speed / most:.0%}",
        memory,
        *(str(ours.cases[0].get(fact, "")) for fact in facts),
        f"{error:.1e}",
    )


def main(argv: list[str] | None = None) -> None:
    """Measure every side, and print a table for each section and dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("forward", "train"), help="measure this alone (default: both)")
    parser.add_argument(
        "--dtypes", default=",".join(DTYPES), help=f"some of {', '.join(DTYPES)} (the default), with commas"
    )
    parser.add_argument("--repeats", type=int, help="processes of each side (default 3, with --tiny 1)")
    parser.add_argument("--seconds", type=float, help="for each case in a process (default 2, with --tiny 0.1)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short texts; without a GPU always")
    for name in ("--side", "--section", "--dtype"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.side:
        print(json.dumps(measure_here(options)))
        return
    dtypes = options.dtypes.split(",")
    if unknown := [name for name in dtypes if name not in DTYPES]:
        parser.error(f"--dtypes: {', '.join(unknown)} unknown; known: {', '.join(DTYPES)}")
    if (options.repeats is not None and options.repeats < 1) or (options.seconds is not None and options.seconds <= 0):
        parser.error("--repeats must be at least 1, --seconds above 0")
    console = Console()
    console.width = max(console.width, 130)  # a log file has the whole table, too
    console.print(f"{machine()}; {load()}", soft_wrap=True)
    available = prepared(options, console)
    options.repeats = options.repeats or (1 if options.tiny else 3)
    options.seconds = options.seconds or (0.1 if options.tiny else 2.0)
    with tempfile.TemporaryDirectory() as scratch:
        options.folder = Path(scratch)
        progress("writing the model")
        answer("speed", "--prepare", "forward", scratch, *(["--tiny"] if options.tiny else []))
        process(options, available[0], "reference", "float32")
        for section in (options.only,) if options.only else ("forward", "train"):
            for dtype in dtypes:
                console.print(table(section, dtype, available, options))


def prepared(options: argparse.Namespace, console: Console) -> list[str]:
    """Return who can be measured here, and say what cannot, and why."""
    import mlx.core as mx

    has_gpu = mx.default_device() == mx.Device(mx.gpu)
    if not has_gpu:
        console.print("no GPU: MLX has none here. A tiny model is shown on the CPU; its numbers say nothing of a GPU.")
        options.tiny = True
    if find_spec("torch") is None:
        raise SystemExit(f"benchmarks.gpu compares with PyTorch, which is not installed; fix: {install_fix('torch')}")
    if has_gpu and torch_device() == "cpu":
        console.print("PyTorch has no GPU here, and is measured on the CPU; fix: install a build of torch with CUDA")
    if torch_device() == "cuda" and find_spec("flash_attn") is not None:
        return list(SIDES)
    console.print("PyTorch packed is left out: it needs CUDA and flash-attn (pip install flash-attn)")
    return [side for side in SIDES if side != PACKED]


if __name__ == "__main__":
    main()
