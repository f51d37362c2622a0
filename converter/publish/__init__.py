"""Publish a converted directory on the Hub."""
