"""mlxbert: BERT encoders on MLX, converted from PyTorch and proven equal to it.

Importing it does three things beside defining names, all here. It finds its own `heads` where the user's folder has
something of that name. It says what to install where MLX has no backend. On a Linux CPU it gives MLX a real BLAS and a
larger buffer cache; these are a matter of the process, not of a model, so that a script that imports mlxbert and
multiplies through `mlx.core` has them too, whatever it imported first.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mlxbert.own_packages import use_own_package

use_own_package("heads")

from mlxbert.backend.device import require_backend, reuse_memory, use_fast_blas  # noqa: E402

require_backend()
use_fast_blas()
reuse_memory()

from mlxbert.checkpoint import load  # noqa: E402
from mlxbert.errors import MLXBertError  # noqa: E402
from mlxbert.models.base import BertOutput  # noqa: E402
from mlxbert.models.bert import BertConfig, BertCore  # noqa: E402
from mlxbert.pretrained import load_with_head  # noqa: E402
from mlxbert.with_head import BertWithHead  # noqa: E402

# Fine-tuning is imported when it is asked for: whoever only loads a model waits for none of it.
_LATER = {
    "Run": "mlxbert.runs",
    "Trainer": "mlxbert.training.trainer",
    "TrainingConfig": "mlxbert.training.config",
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
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'mlxbert' has no attribute {name!r}")


if TYPE_CHECKING:
    from mlxbert.runs.run import Run
    from mlxbert.runs.session import resume, train
    from mlxbert.training.config import TrainingConfig
    from mlxbert.training.trainer import Trainer
