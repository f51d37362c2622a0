"""Tests of `mlxbert.ray`."""
