"""Small random BERTs of every class, built by transformers, every parameter randomized.

transformers' own initialization (LayerNorm 1 and 0, zero biases) would hide swapped tensors.
"""

from __future__ import annotations

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


def randomize(model: Any, seed: int = 0) -> Any:
    """Every parameter from a normal distribution whose scale keeps the activations alive; evaluation mode."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if name.endswith(("LayerNorm.weight", "layer_norm.weight")) else 0.0
            scale = parameter.shape[1] ** -0.5 if parameter.ndim == 2 and "embeddings" not in name else 0.3
            parameter.copy_(centre + scale * noise)
    return model.eval()


def declared_of(class_name: str) -> Architecture:
    """What is declared of the architecture with this class of transformers."""
    declared = (architecture(model_type) for model_type in supported())
    return next(one for one in declared if class_name == one.encoder_class or class_name in one.heads)


def tiny_model(architecture: str = "BertModel", *, seed: int = 0, pooler: bool = True, **sizes: Any) -> Any:
    """A randomized transformers model of the class `architecture`."""
    import transformers

    declared, model = declared_of(architecture), getattr(transformers, architecture)
    config = model.config_class(**{**declared.tiny, **sizes})
    if architecture == declared.encoder_class:
        return randomize(model(config, add_pooling_layer=pooler), seed)
    return randomize(model(config), seed)


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
