"""PEFT's format of adapters: read onto a base model, and written for PyTorch."""
