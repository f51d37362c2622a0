"""How far MLX is from PyTorch, and half precision from float32: the numbers that the limits are set from.

    python -m benchmarks.parity_errors [--seeds N] [--only albert,roberta]

Both gates' parts on all-MiniLM-L6-v2 and all-mpnet-base-v2 (where their packages are installed) and on a random model
of every architecture, as large as its base model, every parameter randomized, in one run. Errors are `max_rel` of
`converter.parity.gates`, the largest over all hidden states, the pooler and all probes. The columns "noise" are those
of PyTorch in float32 from PyTorch in float64: an architecture whose noise is above a third of a limit needs another
limit. The half-precision columns round the weights and also compute in that dtype, on the probes of up to 64 tokens
(on a CPU MLX multiplies half precision slowly).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from benchmarks.family_sizes import BASE_SIZES
from benchmarks.inputs import PACKAGED, MissingInputError, packaged_source
from benchmarks.machine import machine
from converter.parity.gates import compare, measure, worst
from converter.parity.probes import make_probes
from converter.parity.reference import Reference
from converter.parity.report import CUMULATIVE, LOCAL, MAPPING, PADDING, ParityReport, Provenance
from converter.verify import directory_probes
from mlxbert.checkpoint import new_encoder
from mlxbert.models.architecture import architecture, config_from_hf, supported
from mlxbert.models.base import Encoder

# No probe is longer: with more positions it would only take longer.
_LONGEST = 514
_COLUMNS = ("model", "whole model", "noise", "a layer alone", "noise", "padding", "float16", "bfloat16")


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="probe seeds and random models (default 1)")
    parser.add_argument("--only", help="these model_types, separated by commas (default: all)")
    options = parser.parse_args(argv)
    names = options.only.split(",") if options.only else supported()

    table = Table(title="Largest error over all probes", box=None, padding=(0, 1), title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=column != "model")
    for limits in dict.fromkeys(limits_of(name) for name in names):
        those = [name for name in names if limits_of(name) == limits]
        table.add_row(f"limit: {', '.join(those)}", *limits)
    table.add_section()
    for name, model, seed, directory in models(range(options.seeds), names):
        core = core_of(model)
        whole, alone, padding = errors(model, core, seed, directory)
        noise = [f"{value:.1e}" for value in noise_of_torch(model, core, seed)]
        halves = half_precision(core, seed)
        table.add_row(f"{name}, seed {seed}", whole, noise[0], alone, noise[1], padding, *halves)
    console = Console(width=120)
    console.print(table)
    console.print(machine(), soft_wrap=True)


def limits_of(name: str) -> tuple[str, ...]:
    """The limits of an architecture, column by column; of noise, a third of the gate's."""
    limits = architecture(name).tolerances
    whole, alone = limits.mapping.cumulative, limits.mapping.local
    half = (limits.precision[dtype].max_rel for dtype in ("float16", "bfloat16"))
    return tuple(f"{limit:.1e}" for limit in (whole, whole / 3, alone, alone / 3, whole, *half))


def models(seeds: range, names: Sequence[str]) -> Iterator[tuple[str, Any, int, Path | None]]:
    """Yield (name, PyTorch model, seed, tokenizer directory or None), one at a time: each is half a gigabyte."""
    import torch
    import transformers

    for model_type, packaged in (("bert", "minilm"), ("mpnet", "mpnet")):
        if model_type not in names:
            continue
        try:
            directory = packaged_source(packaged)
        except MissingInputError as error:
            print(f"{PACKAGED[packaged]} left out: {error}")
            continue
        encoder = getattr(transformers, architecture(model_type).encoder_class)
        for seed in seeds:
            model = encoder.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
            yield f"{PACKAGED[packaged]} (real)", model.eval(), seed, directory
    for name in names:
        sizes = BASE_SIZES[name]
        longest = min(sizes["max_position_embeddings"], _LONGEST)
        for seed in seeds:
            config = transformers.CONFIG_MAPPING[name](
                **{**sizes, "max_position_embeddings": longest}, attn_implementation="eager"
            )
            yield name, randomized(getattr(transformers, architecture(name).encoder_class)(config), seed), seed, None


def randomized(model: Any, seed: int, *, norm: float = 0.85, spread: float = 0.04) -> Any:
    """Every parameter random, at the scales of a trained BERT, so that no swapped tensor could hide.

    Args:
        model: is changed.
        seed: of the weights.
        norm: mean of the norms' weights.
        spread: deviation of the matrices.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    norms = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.LayerNorm)}
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        centre, scale = (norm, 0.1) if id(parameter) in norms else (0, spread if parameter.ndim > 1 else 0.1)
        parameter.data.copy_(centre + scale * noise)
    return model.eval()


def core_of(model: Any) -> Encoder:
    """The same weights in MLX; the names are the same."""
    weights = [(name, mx.array(tensor.numpy())) for name, tensor in model.state_dict().items()]
    core = new_encoder(config_from_hf(model.config.to_dict()), [name for name, _ in weights])
    core.load_weights(weights)
    core.eval()
    return core


def noise_of_torch(model: Any, core: Encoder, seed: int) -> tuple[float, float]:
    """PyTorch in float32 from PyTorch in float64: the whole model, and a layer alone on the float32 model's input."""
    exact = copy.deepcopy(model).double()
    whole, alone = [], []
    for probe in make_probes(core.config, seed=seed):
        with recorded(model, core) as calls:
            rounded = Reference(model, "").run(probe)
        expected = Reference(exact, "").run(probe)
        pairs = zip(expected.hidden_states, rounded.hidden_states, strict=True)
        whole += [measure(a, b, probe.keep) for a, b in pairs]
        with recorded(exact, core, inputs=[given for given, _ in calls]) as repeated:
            Reference(exact, "").run(probe)
        pairs = zip(repeated, calls, strict=True)
        alone += [measure(a.numpy(), b.numpy(), probe.keep) for (_, a), (_, b) in pairs]
    return worst(whole).max_rel or 0.0, worst(alone).max_rel or 0.0


@contextmanager
def recorded(model: Any, core: Encoder, inputs: Sequence[Any] = ()) -> Iterator[list[tuple[Any, Any]]]:
    """Record, inside, the hidden states that go into each layer and come out of it, in order of computation.

    With `inputs`, each layer reads one of them, and not what the layer before it gives.
    """
    paths = {id(module): path for path, module in core.named_modules()}
    layers = {paths[id(core.layer_modules(i)[0])] for i in range(core.num_layers)}
    calls: list[tuple[Any, Any]] = []
    given: list[Any] = []

    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        first = args[0] if args else kwargs["hidden_states"]
        if inputs:
            first = inputs[len(given)].to(first.dtype)
        given.append(first)
        return (first, *args[1:]), {name: value for name, value in kwargs.items() if name != "hidden_states"}

    def after(_module: Any, _args: Any, output: Any) -> None:
        calls.append((given[-1], output[0] if isinstance(output, tuple) else output))

    hooks = [model.get_submodule(path).register_forward_pre_hook(before, with_kwargs=True) for path in layers]
    hooks += [model.get_submodule(path).register_forward_hook(after) for path in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def errors(model: Any, core: Encoder, seed: int, directory: Path | None = None) -> list[str]:
    """The mapping gate's three largest errors; with real sentences where `directory` has a tokenizer."""
    probes = make_probes(core.config, seed=seed)
    if directory is not None:
        probes, _ = directory_probes(directory, core.config, seed, model.config.to_dict())
    provenance = Provenance("benchmark", None, {}, "the same weights", seed)
    reference = Reference(model, type(model).__name__)
    report = compare(reference, core, core, probes, written_dtype="float32", provenance=provenance)
    return [largest(report, check) for check in (CUMULATIVE, LOCAL, PADDING)]


def largest(report: ParityReport, check: str) -> str:
    """The worst point of one check; a problem is shown as such."""
    points = report.select(MAPPING, check)
    problems = [point.problem for point in points if point.problem]
    return problems[0] if problems else f"{max(point.max_rel or 0 for point in points):.1e}"


def half_precision(core: Encoder, seed: int) -> list[str]:
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


def hidden_states(core: Encoder, probe: Any) -> list[Any]:
    """Each (B, L, D), as float32 NumPy arrays."""
    import numpy as np

    output = core(probe.input_ids, probe.attention_mask, probe.token_type_ids, output_hidden_states=True)
    return [np.array(state.astype(mx.float32)) for state in output.hidden_states or ()]


if __name__ == "__main__":
    main()
