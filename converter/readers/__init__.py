"""One reader a file format; none of them imports torch or runs anything that a file contains."""
