"""Task heads: tensors in, tensors out. Knows neither checkpoints nor tokenizers nor training."""
