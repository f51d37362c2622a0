"""Encoders in MLX, one file for each architecture, and the contract that all of them keep (`mlxbert.models.base`)."""
