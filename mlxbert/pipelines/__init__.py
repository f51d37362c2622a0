"""Text in, answers out, for the checkpoint's own heads: the keys and shapes of transformers' pipelines.

Each takes what `mlxbert.load_with_head` returns: `fill_mask(model, tokenizer, "Paris is the [MASK] of France.")`.
"""

from mlxbert.pipelines.answer import answer
from mlxbert.pipelines.batches import PipelineError
from mlxbert.pipelines.classify import classify
from mlxbert.pipelines.fill_mask import fill_mask
from mlxbert.pipelines.tag import tag

__all__ = ["PipelineError", "answer", "classify", "fill_mask", "tag"]
