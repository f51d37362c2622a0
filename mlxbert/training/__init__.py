"""Fine-tuning: the optimizer, one training step, and the loop around it."""
