"""What CONTRIBUTING promises of a new architecture: two files, and every command knows it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import converter.mappings
import mlxbert.models
from mlxbert.models import architecture as registry
from tests.support.journey import through_every_command

torch = pytest.importorskip("torch", reason="the reference is transformers on PyTorch")
transformers = pytest.importorskip("transformers")

ENCODER = '''
"""LoudBERT, an invention of this test: BERT whose embeddings count twice."""

from dataclasses import dataclass, replace
from typing import ClassVar

import mlx.core as mx

from mlxbert.models.base import Context, Inputs
from mlxbert.models.bert import BERT, BertConfig, BertCore


@dataclass(frozen=True)
class LoudBertConfig(BertConfig):
    model_type: ClassVar[str] = "loudbert"


class LoudBertCore(BertCore):
    def embed_inputs(self, inputs: Inputs) -> tuple[mx.array, Context]:
        x, context = super().embed_inputs(inputs)
        return 2 * x, context


ARCHITECTURES = (
    replace(
        BERT,
        model_type="loudbert",
        table="loudbert",
        config=LoudBertConfig,
        encoder=LoudBertCore,
        encoder_class="LoudBertModel",
        prefix="loud.",
        heads={},
    ),
)
'''
MAPPING = '''
"""LoudBERT's tensor names."""

from dataclasses import replace

from converter.mappings import bert

MAPPING = replace(bert.MAPPING, model_type="loudbert", heads=())
'''


def torch_classes() -> dict[str, Any]:
    """LoudBERT in transformers."""

    class LoudBertConfig(transformers.BertConfig):
        model_type = "loudbert"

    class LoudBertModel(transformers.BertModel):
        config_class = LoudBertConfig
        base_model_prefix = "loud"

        def __init__(self, config: Any, add_pooling_layer: bool = True):
            super().__init__(config, add_pooling_layer)
            self.embeddings.register_forward_hook(lambda _module, _inputs, output: 2 * output)

    return {"LoudBertConfig": LoudBertConfig, "LoudBertModel": LoudBertModel}


@pytest.fixture
def loudbert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both files in folders of their own, beside those of the package; the class that transformers knows it by."""
    for package, text in ((mlxbert.models, ENCODER), (converter.mappings, MAPPING)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "loudbert.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    classes = torch_classes()
    config, model = classes.values()
    transformers.AutoConfig.register("loudbert", config, exist_ok=True)
    transformers.AutoModel.register(config, model, exist_ok=True)
    transformers.AutoTokenizer.register(config, transformers.BertTokenizer, exist_ok=True)
    for name, value in classes.items():
        # transformers replaces its lazy module when it loads a class; all of these modules are of one type.
        monkeypatch.setattr(type(sys.modules["transformers"]), name, value, raising=False)
    registry._architectures.cache_clear()
    yield "LoudBertModel"
    registry._architectures.cache_clear()


def test_an_architecture_is_added_in_two_files_and_goes_through_every_command(loudbert: str, tmp_path: Path) -> None:
    assert "loudbert" in registry.supported()
    through_every_command(tmp_path, loudbert)
