"""Where what can be made again is kept from one run to the next."""

from __future__ import annotations

import os
from pathlib import Path

from mlxbert.home import expand_home


def token_cache() -> Path:
    """The folder of token caches: below MLXBERT_CACHE, else XDG_CACHE_HOME/mlxbert, else ~/.cache/mlxbert."""
    own = os.environ.get("MLXBERT_CACHE")
    if own:
        return expand_home(own) / "tokens"
    return expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mlxbert" / "tokens"
