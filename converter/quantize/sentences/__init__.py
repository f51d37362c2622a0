"""Sentences that choose codes and bits, and others that quality is measured on: README.md says whence they are."""
