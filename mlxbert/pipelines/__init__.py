"""Text in, answers out, for the checkpoint's own heads: the keys and shapes of transformers' pipelines.

Each takes what `mlxbert.load_with_head` returns: `fill_mask(model, tokenizer, "Paris is the [MASK] of France.")`.
"""

from mlxbert.pipelines.spans import answer, tag
from mlxbert.pipelines.texts import PipelineError, classify, fill_mask

__all__ = ["PipelineError", "answer", "classify", "fill_mask", "tag"]
