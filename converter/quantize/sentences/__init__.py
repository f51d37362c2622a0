"""Sentences that choose codes and bits, and others that quality is measured on: README.md has what is what."""
