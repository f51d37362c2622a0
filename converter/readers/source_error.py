"""The one error that reading a source raises."""

from __future__ import annotations

from pathlib import Path

from mlxbert.errors import MLXBertError


class SourceError(MLXBertError):
    """A source cannot be read; the message names the file, what is wrong with it, and the fix."""


def os_error(path: Path, error: OSError) -> SourceError:
    """The operating system's refusal, said with the fix."""
    if isinstance(error, PermissionError):
        return SourceError(f"{path}: permission denied; fix: make it readable (chmod u+r {path})")
    return SourceError(f"{path}: {error.strerror or error}; fix: check that the file can be read")
