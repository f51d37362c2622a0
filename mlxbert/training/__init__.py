"""Fine-tuning on competition data: reading it, folds, batches, the optimizer, and one training step."""
