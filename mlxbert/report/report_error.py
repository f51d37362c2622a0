"""What a report cannot be made of."""

from __future__ import annotations

from mlxbert.errors import MLXBertError


class ReportError(MLXBertError):
    """A damaged table of a run, or an output that must not be written: one line with the place and the fix."""
