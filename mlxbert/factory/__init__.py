"""The factory: from a task, a competition's name or a data frame to a model.

model, tokenizer = create_model("multiclass", "mlx_models/minilm", classes=("bird", "cat", "dog"))
model, tokenizer = create_for_competition("titanic")
print(infer_task(train["Survived"]))        # binary: two values, 0 and 1; the positive one is 1
made = from_dataframe(train, target="Survived", text="{Sex}, age {Age}", checkpoint="mlx_models/minilm")
"""

from mlxbert.factory.competition import (
    Competition,
    CompetitionError,
    Submission,
    get_competition,
    register_competition,
    registered_competitions,
    unregister_competition,
)
from mlxbert.factory.create import FactoryError, create_for_competition, create_model, default_checkpoint, head_for
from mlxbert.factory.frame_model import FrameModel, from_dataframe
from mlxbert.factory.frames import FrameError
from mlxbert.factory.infer_task import InferredTask, infer_task
from mlxbert.factory.target_rules import TaskError
from mlxbert.factory.text_columns import RowText, TextError

__all__ = [
    "Competition",
    "CompetitionError",
    "FactoryError",
    "FrameError",
    "FrameModel",
    "InferredTask",
    "RowText",
    "Submission",
    "TaskError",
    "TextError",
    "create_for_competition",
    "create_model",
    "default_checkpoint",
    "from_dataframe",
    "get_competition",
    "head_for",
    "infer_task",
    "register_competition",
    "registered_competitions",
    "unregister_competition",
]
