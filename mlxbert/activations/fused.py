"""Element-wise arithmetic in one pass over memory, where there is a compiler to make that pass.

MLX's CPU backend calls a scalar function for every element of erf, exp and softmax (12–25 ns each), and passes over
memory once for every other operation. `mx.compile` turns a chain of plain arithmetic into one vectorized loop, with
g++, when it is first run: about 0.4 s a loop, kept as a file in the temporary directory for later processes. Without
g++ MLX runs such a chain operation by operation by itself: slower, and with the same result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps

import mlx.core as mx

Arithmetic = Callable[..., list[mx.array]]

_log = logging.getLogger("mlxbert")
_compiles: dict[mx.DeviceType, bool] = {}


def fused(*limits: float) -> Callable[[Arithmetic], Arithmetic]:
    """Decorate element-wise arithmetic, arrays of one shape to arrays of that shape, to be compiled.

    The function sees its arrays flattened, then each of `limits` as a scalar array, and uses neither reductions nor
    arrays of its own. Numbers that it clips with belong in `limits`: where g++ knows the clipped value, it makes a
    branch of it and gives up on vectorizing the loop (GELU of 8 × 128 × 3072 numbers: 9 ms instead of 5). MLX cuts a
    path of more than 11 operations between input and output into several loops (`max_compile_depth`, compile.cpp).
    """

    def decorate(function: Arithmetic) -> Arithmetic:
        # Not shapeless: that inserts a broadcast at every operation, each counts in the depth, and the loop falls to
        # pieces. Another shape costs another trace, 0.2 ms; the loop itself knows no shape.
        compiled = mx.compile(function)

        @wraps(function)
        def run(*arrays: mx.array) -> list[mx.array]:
            # Flattened, because for every other layout MLX compiles another loop, which is not vectorized.
            flat = [*(array.reshape(-1) for array in arrays), *(mx.array(limit) for limit in limits)]
            device = mx.default_device().type
            if device not in _compiles:
                _compiles[device] = _works(compiled, flat)
            outputs = (compiled if _compiles[device] else function)(*flat)
            return [output.reshape(arrays[0].shape) for output in outputs]

        return run

    return decorate


def _works(compiled: Arithmetic, arrays: list[mx.array]) -> bool:
    """Run a compiled function on other numbers: does the compiler work, and can what it wrote be loaded?

    MLX itself asks only whether there is a g++. The error would come when the numbers are computed: in the caller's
    hands, and too late to do without.
    """
    try:
        mx.eval(compiled(*(mx.ones([1] * array.ndim, array.dtype) for array in arrays)))
    except RuntimeError as error:
        reason = str(error).rpartition("the output is:")[2]
        _log.warning(
            "mlxbert: mx.compile fails here (%s); activations and softmax run uncompiled, which is slower; "
            "fix: install g++ with its headers, or set MLX_DISABLE_COMPILE=1 to silence this line",
            " ".join(reason.split())[:200],
        )
        return False
    return True
