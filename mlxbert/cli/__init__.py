"""The `mlxbert` command line."""

from mlxbert.cli.group import main

__all__ = ["main"]
