"""The way of a DataFrame into the first training step: which of our files its rows go through, in order.

A file counts if one of its functions gets the rows, in any form: frame, columns, texts, targets, tokens, folds or
batch, or an object that holds one of these.
"""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGES = ("converter", "mlxbert", "heads")
# A length that nothing else has: what is so long, or half as long (a fold of two), is the rows.
_ROWS = 997
_LENGTHS = frozenset((_ROWS, _ROWS // 2, _ROWS // 2 + 1))


class _FirstStepError(BaseException):
    """The first training step begins; not an `Exception`, so that nothing handles it on the way."""


def dataframe_way(model: Path, root: Path) -> list[str]:
    """Train a converted model on a small frame, up to the first training step; return the files, in reading order."""
    import pandas

    import mlxbert
    import mlxbert.runs
    from heads.head_registry import registered_heads
    from mlxbert.training.step import TrainStep

    registered_heads()  # the import of a head is no part of the way
    numbers = range(_ROWS)
    frame = pandas.DataFrame({"id": numbers, "text": [f"row {i}" for i in numbers], "y": [i % 2 for i in numbers]})
    files: dict[str, None] = {}

    def note(called: FrameType, event: str, _: Any) -> None:
        code = called.f_code
        if event != "call" or not code.co_filename.startswith(str(root)) or code.co_name.startswith("<"):
            return
        file = Path(code.co_filename).relative_to(root)
        if file.parts[0] in PACKAGES and file.as_posix() not in files:
            arguments = inspect.getargs(code)
            names = [*arguments.args, *filter(None, (arguments.varargs, arguments.varkw))]
            sys.setprofile(None)  # looking at the arguments calls functions, too
            if any(_holds_rows(called.f_locals.get(name)) for name in names):
                files[file.as_posix()] = None
            sys.setprofile(note)
        if code is TrainStep.accumulate.__code__:
            files.setdefault(file.as_posix())
            raise _FirstStepError

    cache = os.environ.get("MLXBERT_CACHE")
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["MLXBERT_CACHE"] = place  # an empty one: cached tokens would skip the tokenizer
        sys.setprofile(note)
        try:
            run = Path(place) / "run"
            mlxbert.train(frame, model=model, text="text", target="y", out=run, folds=2, progress=False)
        except _FirstStepError:
            pass
        finally:
            sys.setprofile(None)
            if cache is None:
                del os.environ["MLXBERT_CACHE"]
            else:
                os.environ["MLXBERT_CACHE"] = cache
    return list(files)


def _holds_rows(value: Any, depth: int = 2) -> bool:
    """Return whether a value is the rows, or holds them at most two levels deep."""
    if value is None or isinstance(value, str | bytes | int | float | type | Path):
        return False
    if type(value).__name__ == "DataFrame" or (_length(value) in _LENGTHS and not isinstance(value, dict)):
        return True
    inner: list[Any] = []
    if isinstance(value, dict | list | tuple) and len(value) < 10:
        inner = list(value.values() if isinstance(value, dict) else value)
    elif type(value).__module__.partition(".")[0] in PACKAGES:
        inner = list(getattr(value, "__dict__", {}).values())
    return depth > 0 and any(_holds_rows(item, depth - 1) for item in inner)


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except Exception:  # objects without a length raise errors of all kinds
        return None
