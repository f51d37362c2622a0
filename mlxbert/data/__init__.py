"""Competition data: files read into frames, texts into tokens, tokens into batches."""
