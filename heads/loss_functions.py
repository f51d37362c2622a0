"""The former name of `heads.losses`, kept for code that imports it."""

from heads.losses import *  # noqa: F403
from heads.losses import __all__ as __all__
