"""Small random BERTs of every class, built by transformers, every parameter randomized.

transformers' own initialization (LayerNorm 1 and 0, zero biases) would hide swapped tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlxbert.models.architecture import Architecture, architecture, supported

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
    """Save a `tiny_model` as a Hugging Face directory with a vocabulary; returns the model."""
    model = tiny_model(architecture, **options)
    model.save_pretrained(directory)
    if declared_of(architecture).tokenizer_class == "RobertaTokenizer":
        write_bpe(directory, model.config.vocab_size)
    else:
        write_vocab(directory / "vocab.txt", model.config.vocab_size)
    return model


def write_bpe(directory: Path, size: int) -> None:
    """A `vocab.json` of `size` tokens (special ones, every byte, pieces of words) with its `merges.txt`."""
    from tokenizers import pre_tokenizers

    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pairs = [("Ġ", letter) for letter in "abcdefghilmnoprstuw"] + [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n")]
    merges = pairs[: max(size - len(tokens) - 1, 0)]
    tokens += ["".join(pair) for pair in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_vocab(file: Path, size: int) -> None:
    """A `vocab.txt` of `size` lines: BERT's special tokens, letters, and pieces."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokens += [f"word{i}" for i in range(size)]
    file.write_text("\n".join(tokens[:size]) + "\n", encoding="utf-8")


def save_tokenizer(directory: Path) -> None:
    """The files that transformers' own loader wants beside the vocabulary."""
    import transformers

    if (directory / "vocab.txt").is_file():
        transformers.BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
    else:
        transformers.AutoTokenizer.from_pretrained(directory).save_pretrained(directory)
