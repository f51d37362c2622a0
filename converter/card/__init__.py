"""The model card: facts of a directory, how to load it, and the page."""
