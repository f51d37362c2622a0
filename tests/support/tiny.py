"""Small random BERTs of every class, built by transformers, every parameter randomized.

transformers' own initialization (LayerNorm 1 and 0, zero biases) would hide swapped tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
CLASSES = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
    "BertLMHeadModel",
)


def randomize(model: Any, seed: int = 0) -> Any:
    """Every parameter from a normal distribution whose scale keeps the activations alive; evaluation mode."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            scale = parameter.shape[1] ** -0.5 if parameter.ndim == 2 and "embeddings" not in name else 0.3
            parameter.copy_(centre + scale * noise)
    return model.eval()


def tiny_model(architecture: str = "BertModel", *, seed: int = 0, pooler: bool = True, **sizes: Any) -> Any:
    """A randomized transformers model of the class `architecture`."""
    import transformers

    config = transformers.BertConfig(**{**SIZES, **sizes})
    if architecture == "BertModel":
        return randomize(transformers.BertModel(config, add_pooling_layer=pooler), seed)
    return randomize(getattr(transformers, architecture)(config), seed)


def save_tiny(directory: Path, architecture: str = "BertModel", **options: Any) -> Any:
    """Save a `tiny_model` as a Hugging Face directory with a vocabulary; returns the model."""
    model = tiny_model(architecture, **options)
    model.save_pretrained(directory)
    write_vocab(directory / "vocab.txt", model.config.vocab_size)
    return model


def write_vocab(file: Path, size: int) -> None:
    """A `vocab.txt` of `size` lines: BERT's special tokens, letters, and pieces."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokens += [f"word{i}" for i in range(size)]
    file.write_text("\n".join(tokens[:size]) + "\n", encoding="utf-8")


def save_tokenizer(directory: Path) -> None:
    """The files that transformers' own loader wants beside `vocab.txt`."""
    from transformers import BertTokenizer

    BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
