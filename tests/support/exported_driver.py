"""Run by a bare Python outside the checkout: predicts with every exported directory under its first argument.

It shares nothing with mlxbert: what it must not have is made impossible to import, and the network with it.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import socket
import sys
from pathlib import Path

FORBIDDEN = ("mlx", "mlxbert", "heads", "converter", "pandas", "statsmodels", "scipy", "sklearn")
for name in FORBIDDEN:
    sys.modules[name] = None  # type: ignore[assignment]


def refuse(*arguments: object) -> None:
    raise AssertionError(f"the network was asked for: {arguments}")


socket.socket.connect = refuse  # type: ignore[method-assign, assignment]
socket.getaddrinfo = refuse  # type: ignore[assignment]

sys.dont_write_bytecode = True  # the manifest lists what was exported
root = Path(sys.argv[1])
found = {}
for case in sorted(path.parent for path in root.glob("*/inference.py")):
    spec = importlib.util.spec_from_file_location(f"inference_{case.name}", case / "inference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    rows = json.loads((root / f"{case.name}.rows.json").read_text())
    made = module.Predictor(case, device="cpu").predict(rows, batch_size=7)
    found[case.name] = (made.probabilities, made.labels, made.values)
assert not any(sys.modules.get(name) for name in FORBIDDEN)
(root / "found.pickle").write_bytes(pickle.dumps(found))
