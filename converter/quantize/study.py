"""How far a calibrated model's sentence embeddings are from float32's, on text held back from its calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from converter.quantize.calibrated import Calibrated
from converter.quantize.quality import embeddings
from converter.quantize.texts import TokenBatch
from mlxbert.core import BertCore
from mlxbert.model_tensors import named_parameters

# The pooler has no part in the mean of hidden states; what it gives by itself counts a tenth.
_POOLER = "pooler.dense"
_POOLER_SHARE = 0.1

NOTHING = 1e-9
"""The smallest harm: of what is measured, noise may make less than 0."""


class Study:
    """Float32 embeddings of held-back texts, and what those of other weights differ by.

    Args:
        core: the float32 encoder; changed for the time of a measurement.
        held: the texts.
        pooling: how embeddings are made of hidden states.
    """

    def __init__(self, core: BertCore, held: Sequence[TokenBatch], pooling: Sequence[str]):
        self._core, self._held, self._pooling = core, held, tuple(pooling)
        self._exact = embeddings(core, held, self._pooling)
        self._exact_pooler = embeddings(core, held, ("pooler",)) if "pooler" in core else None

    def harms(self, alone: Calibrated, *, progress: Callable[[int, int], None]) -> dict[str, float]:
        """Mean 1 − cosine of each layer by itself; `alone`: every layer rounded as if it were the only one."""
        found = {}
        for done, path in enumerate(alone.weights):
            only = Calibrated({path: alone.weights[path]})
            if (bias := f"{path}.bias") in alone.biases:
                only.biases[bias] = alone.biases[bias]
            if path == _POOLER and self._exact_pooler is not None:
                harm = _POOLER_SHARE * (1 - self._cosine(only, ("pooler",), self._exact_pooler))
            else:
                harm = 1 - self.cosine(only)
            found[path] = max(harm, NOTHING)
            progress(done + 1, len(alone.weights))
        return found

    def cosine(self, calibrated: Calibrated) -> float:
        """Mean cosine of the calibrated model's embeddings with float32's."""
        return self._cosine(calibrated, self._pooling, self._exact)

    def _cosine(self, calibrated: Calibrated, pooling: Sequence[str], exact: np.ndarray) -> float:
        before = named_parameters(self._core)
        changed = [(f"{path}.weight", mx.array(weight.numbers)) for path, weight in calibrated.weights.items()]
        changed += [(name, mx.array(bias)) for name, bias in calibrated.biases.items()]
        try:
            self._core.load_weights(changed, strict=False)
            return float((embeddings(self._core, self._held, pooling) * exact).sum(axis=1).mean())
        finally:
            self._core.load_weights([(name, before[name]) for name, _ in changed], strict=False)
