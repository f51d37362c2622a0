"""One mapping table per architecture."""
