"""The backend of MLX on this machine, and the BLAS that it multiplies with."""

from mlxbert.backend.device import BackendError, BlasSettingError, BlasStatus, require_backend, use_fast_blas

__all__ = ["BackendError", "BlasSettingError", "BlasStatus", "require_backend", "use_fast_blas"]
