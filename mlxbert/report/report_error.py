"""What a report cannot be made of."""

from __future__ import annotations

from mlxbert.errors import MLXBertError


class ReportError(MLXBertError):
    """Not a run, a damaged file of one, or an output that must not be written: one line with the place and the fix."""
