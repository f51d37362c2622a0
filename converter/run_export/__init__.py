"""A run, or one trained model of it, for places without MLX: PyTorch weights, and `inference.py` beside them."""
