"""Making a checkpoint small: recipes, calibration, the allotment of bits, and what all that costs."""
