"""Read small files, replace outputs in one step, and write model directories whole or not at all."""
