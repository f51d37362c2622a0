"""The backend of MLX on this machine, and the BLAS that it multiplies with."""
