"""Every form of a checkpoint's files, and every wrapper around its names, for every registered architecture."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.canonical import plan_source, read
from converter.source import open_source
from mlxbert.models.architecture import HeadKind, architecture, supported
from tests.converter.test_convert import FILES, FORMS, prefixed
from tests.support.tiny import tiny_model

torch = pytest.importorskip("torch", reason="the files are PyTorch's")

WRAPPERS = ("module.", "_orig_mod.", "module._orig_mod.", "model.", "model.module.", "encoder.", "net.")
KINDS = (None, HeadKind.MASKED_LM)
"""None: the encoder alone."""

CASES = [(model_type, kind) for model_type in supported() for kind in KINDS]
pytestmark = pytest.mark.parametrize(
    ("model_type", "kind"),
    CASES,
    ids=[f"{model_type}-{kind.name if kind else 'encoder'}" for model_type, kind in CASES],
)


@cache
def model_of(model_type: str, kind: HeadKind | None) -> Any:
    declared = architecture(model_type)
    name = declared.encoder_class if kind is None else declared.head_of(kind)
    assert name is not None
    return tiny_model(name)


def state_of(model_type: str, kind: HeadKind | None, directory: Path) -> dict[str, Any]:
    """The tensors of a model, without tied copies, and its `config.json` in the directory."""
    model = model_of(model_type, kind)
    directory.mkdir()
    model.save_pretrained(directory)
    source = open_source(str(directory))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in source.entries}
    (directory / "model.safetensors").unlink()
    return state


def assert_same(path: Path, model_type: str, kind: HeadKind | None) -> None:
    """The planned tensors, under their canonical names, are those of the model; nothing is missing or left over."""
    source = open_source(str(path))
    _, planned = plan_source(source)
    prefix = architecture(model_type).prefix
    state = model_of(model_type, kind).state_dict()
    expected = {name if kind is not None else prefix + name: tensor.numpy() for name, tensor in state.items()}
    written = {prefix + item.target: read(source, item, "float32") for item in planned.encoder}
    written |= {item.target: read(source, item, "float32") for item in planned.heads}
    for name, array in written.items():
        assert np.array_equal(array, expected[name]), name
    encoder = {name for name in expected if name.startswith(prefix)}
    assert encoder <= set(written)
    assert bool(planned.heads) == (kind is not None)


# The form "position_ids" has BERT's own names: tests/converter/test_convert.py.
@pytest.mark.parametrize("form", [form for form in FORMS if form != "position_ids"])
def test_a_directory(form: str, model_type: str, kind: HeadKind | None, tmp_path: Path) -> None:
    directory = tmp_path / "source"
    FORMS[form](directory, state_of(model_type, kind, directory))
    assert_same(directory, model_type, kind)


@pytest.mark.parametrize("name", FILES)
def test_one_file(name: str, model_type: str, kind: HeadKind | None, tmp_path: Path) -> None:
    directory = tmp_path / "source"
    FILES[name](directory / name, state_of(model_type, kind, directory))
    assert_same(directory / name, model_type, kind)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper(wrapper: str, model_type: str, kind: HeadKind | None, tmp_path: Path) -> None:
    directory = tmp_path / "source"
    state = state_of(model_type, kind, directory)
    torch.save({"state_dict": prefixed(wrapper, state)}, directory / "x.ckpt")
    assert_same(directory / "x.ckpt", model_type, kind)


def test_the_encoder_under_the_prefix_of_its_class(model_type: str, kind: HeadKind | None, tmp_path: Path) -> None:
    directory = tmp_path / "source"
    state = state_of(model_type, kind, directory)
    prefix = "" if kind is not None else architecture(model_type).prefix
    torch.save(prefixed(prefix, state), directory / "pytorch_model.bin")
    assert_same(directory, model_type, kind)
