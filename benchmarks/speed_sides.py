"""The sides of `benchmarks.speed`: how each loads a model and computes; a process of its own each.

A process reads lines from standard input, `{"case": …, "seconds": …}`, and answers each with a line: the wall and CPU
seconds of its passes, and the largest difference of its numbers from the baseline's. Every side gets the same ids
and computes in float32 on the CPU with the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import speed_inputs as inputs

PYTORCH, COMPILED, OURS = "PyTorch", "PyTorch compiled", "mlxbert"
RUNTIME, OPENVINO, SENTENCES, EMBEDDINGS = "ONNX Runtime", "OpenVINO", "sentence-transformers", "mlx-embeddings"
REQUIRED: dict[str, tuple[str, ...]] = {
    OURS: (),
    PYTORCH: ("torch", "transformers"),
    COMPILED: ("torch", "transformers"),
    SENTENCES: ("sentence_transformers",),
    RUNTIME: ("onnx", "onnxruntime", "torch"),
    OPENVINO: ("openvino", "torch"),
    EMBEDDINGS: ("mlx_embeddings",),
}
"""The modules that a side imports."""
_EXTRAS = {"torch": "torch", "transformers": "torch", "onnx": "benchmark", "onnxruntime": "benchmark"}
BASELINES = {"forward": PYTORCH, "encode": SENTENCES, "train": PYTORCH}
"""The side that the others of a section are compared with."""
# A pass that takes longer has no further pass before it that only warms up.
_LONG = 2.0

Run = Callable[[], np.ndarray]
"""One pass; returns the numbers that are compared with the baseline's."""
Encode = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From ids and mask, (B, L) int64, to the last hidden state, (B, L, D) float32."""


@dataclass(frozen=True)
class Settings:
    """What a process is told.

    Attributes:
        side: one of `REQUIRED`.
        folder: with the files of `benchmarks.speed_inputs`.
        threads: to compute with.
    """

    side: str
    folder: Path
    threads: int


def absent(side: str) -> str | None:
    """Return the command that installs what a side needs; None: all is there."""
    from heads.command_line import install_command

    missing = [module for module in REQUIRED[side] if find_spec(module) is None]
    if not missing:
        return None
    extras = {_EXTRAS.get(module, "benchmark") for module in missing}
    return install_command(*sorted(extras))


# The last hidden state, by each side


def pytorch(settings: Settings) -> Encode:
    """transformers' encoder with its default attention, PyTorch's fused one; compiled for each shape on request."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(settings.threads)
    model: Any = AutoModel.from_pretrained(settings.folder / inputs.MODEL, dtype=torch.float32).eval()
    call = torch.compile(model, dynamic=False) if settings.side == COMPILED else model

    def encode(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            output = call(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        return np.asarray(output.last_hidden_state)

    return encode


def mlxbert(settings: Settings) -> Encode:
    """Our encoder as `mlxbert.load` gives it, with its pooler."""
    import mlx.core as mx

    from mlxbert.checkpoint import load_core

    mx.set_default_device(mx.cpu)
    model = load_core(settings.folder / inputs.CONVERTED)

    def encode(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        output = model(ids, attention_mask=mask)
        mx.eval([array for array in (output.last_hidden_state, output.pooler_output) if array is not None])
        return np.array(output.last_hidden_state)

    return encode


def onnx_runtime(settings: Settings) -> Encode:
    """ONNX Runtime on PyTorch's export of the model, with all of its optimizations."""
    import onnxruntime

    def export(out: Path) -> None:
        import torch

        module, example = _traceable(settings)
        axes = {0: "batch", 1: "length"}
        # The exporter through TorchScript needs the package onnx only.
        torch.onnx.export(
            module,
            example,
            str(out),
            input_names=["ids", "mask"],
            output_names=["hidden"],
            dynamic_axes={"ids": axes, "mask": axes, "hidden": axes},
            opset_version=18,
            dynamo=False,
        )

    file = inputs.made(settings.folder / "model.onnx", export)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def encode(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {"ids": ids, "mask": mask})[0])

    return encode


def openvino(settings: Settings) -> Encode:
    """OpenVINO on its own conversion of PyTorch's model, in float32 also where it would choose bfloat16."""
    import openvino as ov

    def convert(out: Path) -> None:
        module, example = _traceable(settings)
        out.mkdir()
        ov.save_model(ov.convert_model(module, example_input=example), out / "model.xml", compress_to_fp16=False)

    file = inputs.made(settings.folder / "openvino", convert) / "model.xml"
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": settings.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = ov.Core().compile_model(file, "CPU", hints)

    def encode(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.asarray(model((ids, mask))[0])

    return encode


def _traceable(settings: Settings) -> tuple[Any, tuple[Any, Any]]:
    """Return a module from ids and mask to the last hidden state, and an example of the two."""
    import torch
    from transformers import AutoModel

    class LastHiddenState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(settings.folder / inputs.MODEL, dtype=torch.float32)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    example = torch.ones((2, 16), dtype=torch.int64)
    mask = example.clone()
    mask[1, 8:] = 0
    return LastHiddenState().eval(), (example, mask)


def mlx_embeddings(settings: Settings) -> Encode:
    """mlx-embeddings' own model, in an MLX that nobody has given another BLAS."""
    import mlx.core as mx
    from mlx_embeddings.models.bert import Model, ModelArgs

    assert "mlxbert" not in sys.modules
    mx.set_default_device(mx.cpu)
    folder = settings.folder / inputs.CONVERTED
    model = Model(ModelArgs.from_dict(json.loads((folder / "config.json").read_text())))
    weights: Any = mx.load(str(folder / "model.safetensors"))
    model.load_weights(list(model.sanitize(weights).items()))
    model.eval()

    def encode(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        hidden = model(mx.array(ids), attention_mask=mx.array(mask)).last_hidden_state
        mx.eval(hidden)
        return np.array(hidden)

    return encode


ENCODERS: dict[str, Callable[[Settings], Encode]] = {
    PYTORCH: pytorch,
    COMPILED: pytorch,
    OURS: mlxbert,
    RUNTIME: onnx_runtime,
    OPENVINO: openvino,
    EMBEDDINGS: mlx_embeddings,
}


# The cases of a section


FORWARD = {"8 × 128": (8, 128), "32 × 32": (32, 32), "1 × 16": (1, 16), "1 × 512": (1, 512)}
CHECK = "check"
"""A case that is computed and compared, and not timed."""


def forward(settings: Settings) -> dict[str, Run]:
    """Return the forward passes; the check has padding."""
    encode = ENCODERS[settings.side](settings)
    config = json.loads((settings.folder / inputs.MODEL / "config.json").read_text())
    runs: dict[str, Run] = {}
    for name, shape in FORWARD.items():
        ids = inputs.ids(shape, config)
        runs[name] = partial(encode, ids, np.ones_like(ids))
    ids, mask = inputs.ragged((3, 24), config)
    runs[CHECK] = lambda: encode(ids, mask)[mask > 0]
    return runs


# The process


def cases(section: str, settings: Settings) -> dict[str, Run]:
    """Return the cases of a section, the check among them."""
    if section == "forward":
        return forward(settings)
    if section == "encode":
        from benchmarks.speed_encoding import encoding

        return encoding(settings)
    from benchmarks.speed_training import training

    return training(settings)


def serve(section: str, settings: Settings) -> None:
    """Answer the parent's lines."""
    # Packages print; the pipe is for answers only.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    runs = cases(section, settings)
    print(json.dumps({"cases": list(runs)}), file=answers, flush=True)
    compared: set[str] = set()
    for line in sys.stdin:
        order = json.loads(line)
        case, seconds = order["case"], order["seconds"]
        found, value = turn(runs[case], seconds, warm=case not in compared and settings.side != EMBEDDINGS)
        if case not in compared:
            compared.add(case)
            file = settings.folder / f"reference-{list(runs).index(case)}.npy"
            if settings.side == BASELINES[section]:
                np.save(file, value)
            found["error"] = difference(value, np.load(file))
        print(json.dumps(found), file=answers, flush=True)


def turn(run: Run, seconds: float, *, warm: bool) -> tuple[dict[str, Any], np.ndarray]:
    """Repeat a pass for so many seconds, and at least once; return each pass's seconds, and the numbers of the last.

    A pass before them does not count if `warm`, or if it is short: other processes ran in the meantime.
    """
    one, value = timed(run)
    passes = [] if warm or one[0] < _LONG else [one]
    while not passes or sum(wall for wall, _ in passes) < seconds:
        one, value = timed(run)
        passes.append(one)
    walls, cpus = zip(*passes, strict=True)
    return {"seconds": walls, "cpu": cpus}, value


def timed(run: Run) -> tuple[tuple[float, float], np.ndarray]:
    """Return wall and CPU seconds of one pass, and its numbers."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    value = run()
    return (time.perf_counter() - begin, time.process_time() - begin_cpu), value


def difference(value: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference; infinite if the shapes differ or a number is not finite."""
    if value.shape != expected.shape or not np.isfinite(value).all():
        return float("inf")
    return float(np.abs(value - expected).max())


def main(argv: list[str] | None = None) -> None:
    """Serve one side of one section, or make the files that its sides read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", choices=REQUIRED, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(argv)
    serve(options.section, Settings(options.side, options.folder, options.threads))


if __name__ == "__main__":
    main()
