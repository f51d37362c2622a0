"""A run as one HTML page and PNG plots."""

from mlxbert.report.page import write_report
from mlxbert.report.reported_run import ReportError

__all__ = ["ReportError", "write_report"]
