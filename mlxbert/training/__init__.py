"""Fine-tuning on a competition's data: reading it, folds, batches, training, out-of-fold predictions."""
