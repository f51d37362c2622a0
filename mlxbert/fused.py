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
_cannot_compile: set[mx.DeviceType] = set()


def fused(function: Arithmetic) -> Arithmetic:
    """Compile element-wise arithmetic: arrays of one shape to arrays of that shape.

    `function` sees its arrays flattened and uses neither reductions nor arrays of its own. MLX cuts a path of more
    than 11 operations between input and output into several loops (`max_compile_depth` of its compile.cpp).
    """
    # Not shapeless: that inserts a broadcast at every operation, each counts in the depth, and the loop falls to
    # pieces (28 ms instead of 11). Another shape costs another trace, 0.2 ms; the loop itself knows no shape.
    compiled = mx.compile(function)
    tried: set[tuple[object, ...]] = set()

    @wraps(function)
    def run(*arrays: mx.array) -> list[mx.array]:
        device = mx.default_device().type
        if device not in _cannot_compile and (key := (device, *(array.dtype for array in arrays))) not in tried:
            _try(compiled, arrays, device)
            tried.add(key)
        # Flattened, because for every other layout MLX compiles another loop, which is not vectorized.
        outputs = (function if device in _cannot_compile else compiled)(*(array.reshape(-1) for array in arrays))
        return [output.reshape(arrays[0].shape) for output in outputs]

    return run


def _try(compiled: Arithmetic, arrays: tuple[mx.array, ...], device: mx.DeviceType) -> None:
    """Run the function once on other numbers, to see whether the compiler works and what it wrote can be loaded.

    MLX itself asks only whether there is a g++. The error would come when the numbers are computed: in the caller's
    hands, and too late to do without.
    """
    try:
        mx.eval(compiled(*(mx.zeros(1, array.dtype) for array in arrays)))
    except RuntimeError as error:
        _cannot_compile.add(device)
        reason = str(error).rpartition("the output is:")[2]
        _log.warning(
            "mlxbert: mx.compile fails here (%s); activations and softmax run uncompiled, which is slower; "
            "fix: install g++ with its headers, or set MLX_DISABLE_COMPILE=1 to silence this line",
            " ".join(reason.split())[:200],
        )
