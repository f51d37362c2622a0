"""A small model of an architecture through every command, each step compared with transformers or the step before."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors.numpy import load_file

import mlxbert
from converter.convert import convert
from converter.export.checkpoint import export
from converter.export.run import export_directory
from converter.publish.push import push
from converter.verify import verify
from mlxbert.encode import SentenceEncoder
from mlxbert.model_arrays import named_parameters
from mlxbert.models.base import Encoder, module_at
from mlxbert.runs import train
from tests.support.run_samples import QUICK, sample
from tests.support.run_samples import texts as sample_texts
from tests.support.tiny import save_tiny, save_tokenizer

TEXTS = ["a b c", "the tin hat is in the house, then", "a"]
# Rows of 64 or more, so that every layer divides into groups.
WIDTHS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


def checkpoint(directory: Path, class_name: str) -> tuple[Path, Path]:
    """A source of transformers, converted and proven equal to it; both directories."""
    source = directory / "source"
    save_tiny(source, class_name, **WIDTHS)
    save_tokenizer(source)
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# A small random encoder\n")
    converted = convert(source, directory / "converted", verify=True).path
    report = verify(converted, source)
    assert report.passed
    assert any("sentences" in probe for probe in report.probes)
    return source, converted


def exported_back(source: Path, converted: Path, out: Path) -> None:
    """The conversion becomes the source again, tensor by tensor."""
    before, after = load_file(source / "model.safetensors"), load_file(export(converted, out) / "model.safetensors")
    assert set(before) == set(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def wrong_layer_is_named(source: Path, converted: Path) -> None:
    """One wrong weight in the last layer: the comparison fails, and names that layer alone."""
    core, _ = mlxbert.load(converted)
    last = core.num_layers - 1
    path = next(group.paths[0] for group in core.linears() if group.stage == core.num_layers)
    file = converted / "model.safetensors"
    right = file.read_bytes()
    tensors: dict[str, Any] = dict(mx.load(str(file)))
    tensors[f"{path}.weight"] = tensors[f"{path}.weight"] * 1.01
    mx.save_safetensors(str(file), tensors, {"format": "mlx"})
    try:
        report = verify(converted, source)
    finally:
        file.write_bytes(right)
    assert not report.passed
    wrong = {point.name for point in report.points if point.check == "layer-local" and not point.passed}
    assert wrong == {core.layer_name(last)}


def quantized(source: Path, out: Path, recipe: str, **options: Any) -> None:
    """Packed, it still says much the same of texts."""
    packed = convert(source, out, quantize=recipe, verify=False, **options).path
    core, tokenizer = mlxbert.load(packed)
    exact, _ = mlxbert.load(source.parent / "converted")
    assert core.packed is not None
    assert {*core.packed.layers} <= {*_matrices(exact)}
    assert any(path in core.packed.layers for group in exact.linears() for path in group.paths)
    vectors = [
        np.array(one(**(inputs := tokenizer(TEXTS))).pool("mean", inputs["attention_mask"])) for one in (core, exact)
    ]
    cosines = (vectors[0] * vectors[1]).sum(axis=1) / np.prod([np.linalg.norm(v, axis=1) for v in vectors], axis=0)
    assert cosines.min() > 0.9


def _matrices(core: Encoder) -> list[str]:
    found = [name.removesuffix(".weight") for name, array in named_parameters(core).items() if array.ndim == 2]
    assert all("weight" in module_at(core, path) for path in found)
    return found


def encoded(source: Path, converted: Path) -> None:
    """Embeddings of texts are the mean of transformers' hidden states, of the source and of the converted directory.

    sentence-transformers loads the converted directory too, and gives the same.
    """
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    found = SentenceEncoder.from_pretrained(converted, pooling="mean").encode(TEXTS)
    for directory in (source, converted):
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        model, info = transformers.AutoModel.from_pretrained(directory, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        with torch.no_grad():
            hidden = model.eval()(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        assert _distance(found, ((hidden * mask).sum(1) / mask.sum(1)).numpy()) < 1e-5
    assert _distance(found, SentenceTransformer(str(converted), device="cpu").encode(TEXTS)) < 1e-5


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of an element of two arrays of vectors (N, D) of length 1."""
    a, b = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (a, b))
    return float(np.abs(a - b).max())


def publishable(converted: Path) -> None:
    """A push would send every file of the manifest, and its card; nothing of it is refused."""
    plan = push(converted, "mlx-community/a-small-encoder", dry_run=True, progress=False).plan
    assert {"config.json", "model.safetensors", "parity.json", "README.md"} <= {*plan.send}
    assert plan.unverified is None


def trained(converted: Path, out: Path) -> Path:
    """A cross-validated run of two folds; its members load, and predict what the run predicts."""
    frame = sample("binary", rows=24)
    run = train(
        frame,
        model=converted,
        out=out,
        target="y",
        text="text",
        id="id",
        **(QUICK | {"epochs": 1}),
        checkpoint_layers=True,
    )
    assert len(run.predict(frame).index) == len(frame)
    return out


def script_of(directory: Path) -> ModuleType:
    """The script beside an exported model, as its user imports it."""
    spec = importlib.util.spec_from_file_location("journey_inference", directory / "inference.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # its dataclasses look themselves up there
    spec.loader.exec_module(script)
    return script


def exported_run(run: Path, out: Path) -> None:
    """The run in PyTorch, without MLX, predicts the same probabilities; and each of its models verifies."""
    frame = sample("binary", rows=24, seed=1)
    export_directory(run, out)
    predictor = script_of(out).Predictor(out, device="cpu")
    theirs = predictor.predict(frame.drop(columns="y"))
    ours = mlxbert.Run.open(run).predict(frame.drop(columns="y"))
    assert np.abs(np.asarray(theirs.probabilities).reshape(len(frame), -1)[:, -1] - ours.iloc[:, -1]).max() < 1e-5
    member = next(iter(sorted((run / "members").iterdir())))
    assert verify(member).passed


def through_every_command(directory: Path, class_name: str) -> None:
    """All of it."""
    source, converted = checkpoint(directory, class_name)
    exported_back(source, converted, directory / "back")
    wrong_layer_is_named(source, converted)
    calibration = directory / "texts.txt"
    calibration.write_text("\n".join(sample_texts(60)[0]), encoding="utf-8")
    quantized(source, directory / "4bit", "4bit")
    quantized(source, directory / "mixed", "mixed", calibration=calibration)
    quantized(source, directory / "auto", "auto", calibration=calibration, target_bits=6.0)
    encoded(source, converted)
    publishable(converted)
    run = trained(converted, directory / "run")
    exported_run(run, directory / "exported")
