"""The one error that reading a source raises."""

from __future__ import annotations

from mlxbert.errors import MLXBertError


class SourceError(MLXBertError):
    """A source cannot be read; the message names the file, what is wrong with it, and the fix."""
