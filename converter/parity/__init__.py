"""The proof that a conversion is the same model: probes, the PyTorch reference, the two gates, and their reports."""
