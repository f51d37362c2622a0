"""Quantization: recipes, rounding, calibration, the allotment of bits, and the cost of the result."""
