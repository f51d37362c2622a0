"""Back to PyTorch: converted checkpoints and trained runs."""
