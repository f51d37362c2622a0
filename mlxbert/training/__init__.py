"""Fine-tuning: data, folds, batches, optimizer, one training step, runs that resume to the bit."""
