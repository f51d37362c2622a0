"""Calibration sentences and held-out sentences; README.md names their sources."""
