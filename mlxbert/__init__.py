"""mlxbert: BERT encoders on MLX, converted from PyTorch and proven equal to it.

Importing it does three things beside defining names, all here. It finds its own `heads` where the user's folder has
something of that name. It says what to install where MLX has no backend. On a Linux CPU it gives MLX a real BLAS and a
larger buffer cache; these are a matter of the process, not of a model, so that a script that imports mlxbert and
multiplies through `mlx.core` has them too, whatever it imported first.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from mlxbert.own_packages import use_own_package

use_own_package("heads")

from mlxbert.backend.device import require_backend, reuse_memory, use_fast_blas  # noqa: E402

require_backend()
use_fast_blas()
reuse_memory()

# Everything else is imported when it is first used: `import mlxbert` and a command's `--help` wait for none of it.
_LATER = {
    "BertConfig": "mlxbert.models.bert",
    "BertCore": "mlxbert.models.bert",
    "BertOutput": "mlxbert.models.base",
    "BertWithHead": "mlxbert.with_head",
    "MLXBertError": "mlxbert.errors",
    "Run": "mlxbert.runs",
    "Trainer": "mlxbert.training.trainer",
    "TrainingConfig": "mlxbert.training.config",
    "load": "mlxbert.checkpoint",
    "load_with_head": "mlxbert.pretrained",
    "resume": "mlxbert.runs",
    "train": "mlxbert.runs",
}

__all__ = [
    "BertConfig",
    "BertCore",
    "BertOutput",
    "BertWithHead",
    "MLXBertError",
    "Run",
    "Trainer",
    "TrainingConfig",
    "load",
    "load_with_head",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a name of `__all__`, or a module of this package, at its first use."""
    if name in _LATER:
        value = getattr(importlib.import_module(_LATER[name]), name)
    elif name.isidentifier() and not name.startswith("_") and importlib.util.find_spec(f"mlxbert.{name}") is not None:
        return importlib.import_module(f"mlxbert.{name}")
    else:
        raise AttributeError(f"module 'mlxbert' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from mlxbert.checkpoint import load
    from mlxbert.errors import MLXBertError
    from mlxbert.models.base import BertOutput
    from mlxbert.models.bert import BertConfig, BertCore
    from mlxbert.pretrained import load_with_head
    from mlxbert.runs.run import Run
    from mlxbert.runs.session import resume, train
    from mlxbert.training.config import TrainingConfig
    from mlxbert.training.trainer import Trainer
    from mlxbert.with_head import BertWithHead
