"""Metrics by family; import them from `heads.metrics`."""
