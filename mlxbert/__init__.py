"""mlxbert: BERT encoders on MLX."""
