"""What honest packings cost, what broken ones do: the measurements behind `converter.quantize.cost`.

    python -m benchmarks.quantize_limits [--recipes 4bit mxfp4 …] [--models MiniLM …]

Every recipe is run on all-MiniLM-L6-v2 and on random BERTs of three shapes. A row shows the largest rounding error of
a matrix, and of the held-out lists the smallest mean cosine, cosine and rank correlation; then come the same files
broken in four ways. A limit lies between what is honest and what is broken.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file, save_file

from converter.convert import convert
from converter.mappings.bert import MAPPING
from converter.quantize.report import QuantizationReport, describe_quantization
from examples.packaged_minilm import model_directory
from mlxbert.checkpoint import load_core, read_config
from mlxbert.models.bert import BertConfig

Tensors = dict[str, Any]

# Name: width, layers, and the standard deviation of a matrix (None: 1 / √width, which keeps activations alive).
RANDOM: dict[str, tuple[int, int, float | None]] = {
    "random 64 × 2": (64, 2, None),
    "random 256 × 4": (256, 4, None),
    "initialized 384 × 6": (384, 6, 0.02),
}
RECIPES = ("2bit", "3bit", "4bit", "5bit", "6bit", "8bit", "mxfp4", "mxfp8", "nvfp4", "mixed")


def random_bert(directory: Path, width: int, layers: int, deviation: float | None, tokenizer: Path) -> None:
    """A seeded BERT, every parameter random, with all-MiniLM-L6-v2's tokenizer."""
    random = np.random.default_rng(0)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 32}
    hf = {"model_type": "bert", "architectures": ["BertModel"], **sizes, "intermediate_size": 4 * width}
    config = BertConfig.from_hf(hf)
    tensors = {}
    for rule in MAPPING.encoder:
        for layer in range(layers) if "{i}" in rule.target else (0,):
            shape = tuple(getattr(config, str(size)) for size in rule.shape)
            scale = deviation or (shape[1] ** -0.5 if len(shape) == 2 and "embeddings" not in rule.target else 0.3)
            centre = np.float32(rule.target.endswith("LayerNorm.weight"))
            noise = random.standard_normal(shape, np.float32) * np.float32(scale)
            tensors[rule.target.replace("{i}", str(layer))] = centre + noise
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(hf))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(tokenizer / name, directory / name)


def reversed_codes(tensors: Tensors, path: str, bits: int) -> None:
    """The codes of each byte or word in the opposite order."""
    words = tensors[f"{path}.weight"]
    codes = np.array(unpacked(words, bits))
    tensors[f"{path}.weight"] = packed(codes.reshape(len(codes), -1, 8)[..., ::-1].reshape(codes.shape), bits)


def shifted_groups(tensors: Tensors, path: str, bits: int) -> None:
    """Every group with its neighbour's scale and bias."""
    for leaf in ("scales", "biases"):
        if f"{path}.{leaf}" in tensors:
            tensors[f"{path}.{leaf}"] = np.roll(tensors[f"{path}.{leaf}"], 1, axis=-1)


def shifted_rows(tensors: Tensors, path: str, bits: int) -> None:
    """Every row with its neighbour's scales and biases."""
    for leaf in ("scales", "biases"):
        if f"{path}.{leaf}" in tensors:
            tensors[f"{path}.{leaf}"] = np.roll(tensors[f"{path}.{leaf}"], 1, axis=0)


def flipped_codes(tensors: Tensors, path: str, bits: int) -> None:
    """The largest code for the smallest."""
    tensors[f"{path}.weight"] = ~tensors[f"{path}.weight"]


BREAKS: tuple[Callable[[Tensors, str, int], None], ...] = (
    reversed_codes,
    shifted_groups,
    shifted_rows,
    flipped_codes,
)


def unpacked(words: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Words (rows, n) uint32 to codes (rows, 32 · n / bits), one little-endian stream of bits a row."""
    stream = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    return np.packbits(stream.reshape(len(words), -1, bits), axis=-1, bitorder="little")[..., 0]


def packed(codes: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """The way back."""
    stream = np.unpackbits(codes[..., None].astype(np.uint8), axis=-1, bitorder="little")[..., :bits]
    return np.packbits(stream.reshape(len(codes), -1), axis=1, bitorder="little").view("<u4")


def reports(source: Path, recipe: str, scratch: Path) -> Iterator[tuple[str, QuantizationReport]]:
    """The honest packing, then the broken ones."""
    exact_dir, out = scratch / f"{source.name}-float32", scratch / "packed"
    if not exact_dir.exists():
        convert(source, exact_dir, verify=False, dtype="float32")
    exact = load_core(exact_dir)
    convert(source, out, quantize=recipe, verify=False, overwrite=True)
    config = read_config(out)
    yield "honest", describe_quantization(out, config, exact, load_core(out, dtype=mx.float32, dequantize=True))
    written = load_core(out, dtype=mx.float32, dequantize=True)
    assert written.packed is not None
    honest = load_file(out / "model.safetensors")
    for spoil in BREAKS:
        tensors = dict(honest)
        for path, layer in written.packed.layers.items():
            spoil(tensors, path, layer.bits)
        save_file(tensors, out / "model.safetensors", metadata={"format": "mlx"})
        broken = load_core(out, dtype=mx.float32, dequantize=True)
        yield spoil.__name__, describe_quantization(out, config, exact, broken)


def measures(report: QuantizationReport) -> tuple[float, ...]:
    """Largest error of a matrix, and of the lists the smallest mean cosine, cosine and rank correlation."""
    return (
        max(layer.error for layer in report.layers),
        min(item.cosine_mean for item in report.quality),
        min(item.cosine_min for item in report.quality),
        min(item.rank_correlation or 0.0 for item in report.quality),
    )


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--models", nargs="*", default=("MiniLM", *RANDOM))
    args = parser.parse_args(argv)
    minilm = model_directory()
    table = Table(title="Honest packings and broken ones: the worst matrix, the worst held-out list")
    for column in ("recipe", "model", "files", "error", "cosine mean", "min", "rank", "verdict"):
        table.add_column(column, justify="left" if column in ("recipe", "model", "files") else "right")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            source = minilm
            if name in RANDOM:
                source = Path(folder) / name.replace(" ", "")
                random_bert(source, *RANDOM[name], minilm)
            for recipe in args.recipes:
                for files, report in reports(source, recipe, Path(folder)):
                    verdict = f"{len(report.failures)} failures" if report.failures else "passes"
                    table.add_row(recipe, name, files, *(f"{value:.4f}" for value in measures(report)), verdict)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
