"""Predict with a model that mlxbert-export wrote: torch and transformers alone, no mlx, no mlxbert, no internet.

    python inference.py test.csv -o submission.csv --sample-submission sample_submission.csv

    from inference import Predictor
    found = Predictor("/kaggle/input/my-export").predict([{"text": "Forest fire near La Ronge"}])
    found.labels, found.probabilities, found.values        # None for what the task does not have

`inference.json` beside this file says how a row becomes a text and what the submission looks like. Each member (a seed
and fold) is a Hugging Face directory with a `head.json`, which says how its vectors become predictions. The code is in
the folder `inference_modules`.
"""

import sys
from pathlib import Path

# Import the modules beside this file: another export, which has modules of the same names, may be imported already.
_FOLDER = str(Path(__file__).resolve().parent)
sys.path.insert(0, _FOLDER)
for _name in [name for name in sys.modules if name.partition(".")[0] == "inference_modules"]:
    del sys.modules[_name]

from inference_modules.predictor import Member, Predictor  # noqa: E402
from inference_modules.submission_file import Plan, main, make_plan, write_submission  # noqa: E402
from inference_modules.tables import InferenceError, read_columns  # noqa: E402
from inference_modules.torch_heads import Predictions  # noqa: E402

sys.path.remove(_FOLDER)

__all__ = [
    "InferenceError",
    "Member",
    "Plan",
    "Predictions",
    "Predictor",
    "main",
    "make_plan",
    "read_columns",
    "write_submission",
]

if __name__ == "__main__":
    sys.exit(main())
