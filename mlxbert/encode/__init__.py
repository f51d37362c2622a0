"""Sentence embeddings."""

from mlxbert.encode.encoder import SentenceEncoder, SentenceEncoderWarning

__all__ = ["SentenceEncoder", "SentenceEncoderWarning"]
