"""Small random encoders of every class, built by transformers, every parameter randomized.

transformers' own initialization (LayerNorm 1 and 0, zero biases) would hide swapped tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxbert.models.architecture import Architecture, architecture, supported
from tests.support.tokenizer_files import write_bpe, write_tokenizer, write_vocab

__all__ = ["save_tiny", "save_tokenizer", "tiny_model", "write_bpe", "write_tokenizer", "write_vocab"]

SIZES: dict[str, Any] = dict(architecture("bert").tiny)
CLASSES = ("BertModel", *architecture("bert").heads)
ALL_CLASSES = tuple(
    name for declared in map(architecture, supported()) for name in (declared.encoder_class, *declared.heads)
)
"""Every class of transformers that there is an encoder, and a head, for."""


def randomize(model: Any, seed: int = 0, *, like_trained: bool = False) -> Any:
    """Every parameter from a normal distribution whose scale keeps the activations alive; evaluation mode.

    `like_trained`: norms and biases as near to 1 and 0 as those of trained encoders, so that a small mistake is small.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    modules = list(model.modules())
    norms = {id(m.weight) for m in modules if isinstance(m, torch.nn.LayerNorm | torch.nn.RMSNorm)}
    tables = {id(m.weight) for m in modules if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre, scale = float(id(parameter) in norms), 0.3
            if parameter.ndim > 1 and id(parameter) not in tables:
                scale = parameter[0].numel() ** -0.5
            elif parameter.ndim == 1 and like_trained:
                scale = 0.2 if centre else 0.1
            parameter.copy_(centre + scale * noise)
    return model.eval()


def declared_of(class_name: str) -> Architecture:
    """What is declared of the architecture with this class of transformers."""
    declared = (architecture(model_type) for model_type in supported())
    return next(one for one in declared if class_name == one.encoder_class or class_name in one.heads)


def in_config(declared: Architecture, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields under the names that they have in the architecture's `config.json`."""
    names = dict(declared.config.ALIASES)
    if "intermediate_size" not in declared.config.CHECKS:
        names["intermediate_size"] = "hidden_dim"
    return {names.get(name, name): value for name, value in fields.items()}


def tiny_model(
    architecture: str = "BertModel", *, seed: int = 0, pooler: bool = True, like_trained: bool = False, **sizes: Any
) -> Any:
    """A randomized transformers model of the class `architecture`; `sizes` are fields of its configuration or ours."""
    import transformers

    declared, model = declared_of(architecture), getattr(transformers, architecture)
    config = model.config_class(**(in_config(declared, declared.tiny) | in_config(declared, sizes)))
    takes_pooler = "add_pooling_layer" in inspect.signature(model.__init__).parameters
    flags = {"add_pooling_layer": pooler} if architecture == declared.encoder_class and takes_pooler else {}
    return randomize(model(config, **flags), seed, like_trained=like_trained)


def save_tiny(directory: Path, architecture: str = "BertModel", **options: Any) -> Any:
    """Save a `tiny_model` as a Hugging Face directory with a tokenizer of its kind; return the model."""
    model = tiny_model(architecture, **options)
    model.save_pretrained(directory)
    write_tokenizer(directory, declared_of(architecture).tokenizer_class, model.config.vocab_size)
    return model


def save_tokenizer(directory: Path) -> None:
    """Write the files that transformers' own loader wants beside the vocabulary."""
    import transformers

    if (directory / "config.json").is_file():
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    else:
        tokenizer = transformers.BertTokenizer(str(directory / "vocab.txt"))
    tokenizer.save_pretrained(directory)
