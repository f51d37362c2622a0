"""The proof: probes, the PyTorch reference, the two gates with their limits, and the reports they end in."""
