"""`parity.json` of a quantization that was measured and never compared with PyTorch: a cost, and no verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping

from converter.parity.environment import describe
from converter.parity.report import FORMAT_VERSION, NOT_COMPARED
from converter.quantize.cost import QuantizationReport

_UNUSED = ("torch", "transformers")


def cost_json(quantization: QuantizationReport, *, why: str, weights: Mapping[str, str]) -> str:
    """The cost alone, which takes MLX and no PyTorch; `ParityReport.from_json` refuses to read a verdict out of it.

    Args:
        quantization: what was packed, and what that cost on held-out text.
        why: nothing was compared.
        weights: the weight files' names and sha256.
    """
    environment = {name: value for name, value in describe("not checked").items() if name not in _UNUSED}
    content = {
        "format_version": FORMAT_VERSION,
        "passed": None,  # neither passed nor failed, and false to whoever asks for no more than that
        NOT_COMPARED: why,
        "weights": dict(weights),
        "environment": environment,
        "quantization": quantization.to_dict(),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
