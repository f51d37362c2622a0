"""Texts to token ids."""

from mlxbert.tokenization.encoding import TruncationWarning
from mlxbert.tokenization.files import TokenizerError, TokenizerWarning
from mlxbert.tokenization.tokenizer import Encoding, Tokenizer

__all__ = ["Encoding", "Tokenizer", "TokenizerError", "TokenizerWarning", "TruncationWarning"]
