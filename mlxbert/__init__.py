"""mlxbert: BERT encoders on MLX, converted from PyTorch and proven equal to it.

Importing it does two things beside defining names, both here: it says what to install where MLX has no backend, and
on a Linux CPU it gives MLX a real BLAS and a larger buffer cache. These are a matter of the process, not of a model: a
script that imports mlxbert and multiplies through `mlx.core` has them too, whatever it imported first.
"""

from mlxbert import backend

backend.require_backend()
backend.use_fast_blas()
backend.reuse_buffers()

from mlxbert.checkpoint import load  # noqa: E402
from mlxbert.config import BertConfig  # noqa: E402
from mlxbert.core import BertCore  # noqa: E402
from mlxbert.errors import MLXBertError  # noqa: E402
from mlxbert.output import BertOutput  # noqa: E402
from mlxbert.pretrained import load_with_head  # noqa: E402
from mlxbert.with_head import BertWithHead  # noqa: E402

__all__ = ["BertConfig", "BertCore", "BertOutput", "BertWithHead", "MLXBertError", "load", "load_with_head"]
