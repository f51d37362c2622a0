"""PyTorch and Hugging Face BERT checkpoints to MLX, with proof; torch is imported lazily, and here only."""
