"""From a task to a model: a converted encoder, a pooling and the head that the task calls for.

A head that the checkpoint brings along is not used.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from heads.base import Head
from heads.errors import HeadError, unknown_name
from heads.head_registry import COMPETITION_TYPES, best_head, get_head, registered_heads
from heads.labels import Label, label_list
from mlxbert.checkpoint import load, resolve
from mlxbert.errors import MLXBertError
from mlxbert.factory.competition import Competition, get_competition
from mlxbert.pooling.spec import PoolingModule
from mlxbert.tokenization import Tokenizer
from mlxbert.with_head import BertWithHead

Choice = str | Mapping[str, Any] | PoolingModule


class FactoryError(MLXBertError):
    """An unknown task, or options that no model can be made of."""


def create_model(
    task: str | type[Head],
    checkpoint: str | Path,
    *,
    num_labels: int | None = None,
    classes: Sequence[Label] | None = None,
    horizon: int | None = None,
    pooling: Choice = "mean",
    revision: str | None = None,
    dtype: mx.Dtype | None = None,
    **head_options: Any,
) -> tuple[BertWithHead, Tokenizer]:
    """A new head for a task on a converted encoder, and the encoder's tokenizer; in evaluation mode.

    Args:
        task: a competition type (its registered head of highest priority), the name of a head, or a head class.
        checkpoint: a converted directory, or the id of a converted repository on the Hub.
        num_labels: how many classes, labels or target columns; classes are then 0, 1, ….
        classes: the labels, in the order of the logits; of ratings the lowest first, of two the positive one last.
        horizon: steps ahead, of a time series.
        pooling: of `mlxbert.pooling.spec.CHOICES`, or a module of `mlxbert.pooling`.
        revision: a branch, tag or commit of the Hub repository.
        dtype: what the encoder computes in; as for `mlxbert.load`.
        head_options: arguments of the head, such as `objective="focal"` (or a loss of `heads.losses.register_loss`) or
            `dropout=0.2`.

    Raises:
        FactoryError: an unknown task or option (with the nearest names), or options that contradict each other.
        MLXBertError: the checkpoint cannot be loaded, or not pooled so.
    """
    head_class = head_for(task)
    options = _options(head_class, num_labels, classes, horizon, head_options)
    return _assemble(checkpoint, pooling, revision, dtype, lambda hidden_size: head_class(hidden_size, **options))


def create_for_competition(
    name: str | Competition,
    checkpoint: str | Path | None = None,
    *,
    pooling: Choice | None = None,
    revision: str | None = None,
    dtype: mx.Dtype | None = None,
    **head_options: Any,
) -> tuple[BertWithHead, Tokenizer]:
    """The model for a ready configuration (`mlxbert.factory.competition.get_competition` has the rest of it).

    Args:
        name: of a registered configuration, or one itself.
        checkpoint: None: the configuration's own, where `mlxbert-convert` puts it.
        pooling: None: the configuration's.
        revision: as for `create_model`; likewise `dtype`.
        head_options: instead of the configuration's.

    Raises:
        CompetitionError: an unknown name (with the nearest ones).
        FactoryError: the default checkpoint is not converted yet (the message has the command to run).
        MLXBertError: as `create_model` raises.
    """
    competition = get_competition(name) if isinstance(name, str) else name
    options = dict(competition.head)
    if competition.task == "multilabel":
        options.setdefault("classes", competition.target)
    elif competition.task == "regression":
        options.setdefault("num_labels", len(competition.target))
    return create_model(
        competition.task,
        default_checkpoint(competition) if checkpoint is None else checkpoint,
        pooling=competition.pooling if pooling is None else pooling,
        revision=revision,
        dtype=dtype,
        **{**options, **head_options},
    )


def default_checkpoint(competition: Competition) -> Path:
    """The converted default checkpoint of a configuration, relative to the working directory.

    Raises:
        FactoryError: it is not there yet.
    """
    places = [Path(place) for place in competition.converted_places]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise FactoryError(
            f"competition {competition.name!r}: its default checkpoint is not at {' or '.join(map(str, places))}; "
            f"run: mlxbert-convert {competition.checkpoint} -o {places[0]}, or name a converted directory: "
            "--model DIRECTORY (Python: model=, create_for_competition: checkpoint=)"
        )
    return found


def head_for(task: str | type[Head]) -> type[Head]:
    """The head class of a competition type (the one of highest priority), or of a head's name.

    Raises:
        FactoryError: neither a type nor a name (with the nearest of both), or not a registered head.
    """
    if isinstance(task, type) and issubclass(task, Head):
        if "head_name" not in vars(task):
            raise FactoryError(f"{task.__qualname__} is not registered; fix: @register_head(…) above the class")
        return task
    if not isinstance(task, str):
        raise FactoryError(f"the task must be a competition type, a head's name or a head class, not {task!r}")
    try:
        if task in COMPETITION_TYPES:
            return best_head(task)
        if task not in registered_heads():
            raise unknown_name("task", task, {*COMPETITION_TYPES, *registered_heads()})
        return get_head(task)
    except HeadError as error:
        raise FactoryError(str(error)) from error


def fitted_model(
    head_class: type[Head],
    checkpoint: str | Path,
    targets: Any,
    *,
    pooling: Choice = "mean",
    revision: str | None = None,
    dtype: mx.Dtype | None = None,
    **arguments: Any,
) -> tuple[BertWithHead, Tokenizer]:
    """As `create_model`, of a head that learns from targets what they tell: classes, scaler, balanced weights.

    Args:
        head_class: the head.
        checkpoint: as for `create_model`; likewise `pooling`, `revision` and `dtype`.
        targets: as `Head.from_targets` takes them, with `arguments` for it.
    """
    learned = set(inspect.signature(head_class.from_targets).parameters)
    check_options(head_class, {name: value for name, value in arguments.items() if name not in learned})
    return _assemble(
        checkpoint,
        pooling,
        revision,
        dtype,
        lambda hidden_size: head_class.from_targets(hidden_size, targets, **arguments),
    )


def check_options(head_class: type[Head], options: Mapping[str, Any]) -> None:
    """Refuse what the head's constructor does not take.

    Raises:
        FactoryError: names the option, and the nearest one or all there are.
    """
    known = sorted(set(inspect.signature(head_class.__init__).parameters) - {"self", "hidden_size"})
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=2, cutoff=0.6)
            fix = f"did you mean {' or '.join(map(repr, near))}?" if near else f"its options: {', '.join(known)}"
            raise FactoryError(f"head {head_class.head_name!r} has no option {option!r}; {fix}")


def _options(
    head_class: type[Head],
    num_labels: int | None,
    classes: Sequence[Label] | None,
    horizon: int | None,
    head_options: Mapping[str, Any],
) -> dict[str, Any]:
    """The head's constructor arguments."""
    name = head_class.head_name
    parameters = inspect.signature(head_class.__init__).parameters
    options = dict(head_options)
    if classes is not None:
        try:
            classes = options["classes"] = label_list(classes, name)
        except HeadError as error:
            raise FactoryError(str(error)) from error
    if horizon is not None:
        options["horizon"] = horizon
    if num_labels is not None:
        if isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 1:
            raise FactoryError(f"num_labels must be a positive whole number, not {num_labels!r}")
        if "num_targets" in parameters:
            options["num_targets"] = num_labels
        elif "classes" not in parameters:
            raise FactoryError(f"head {name!r} has no classes to number; fix: leave num_labels out")
        elif classes is None:
            # One logit means two classes: transformers' num_labels=1 for a binary head.
            options["classes"] = tuple(range(2 if name == "binary" and num_labels == 1 else num_labels))
        elif len(classes) != num_labels:
            raise FactoryError(f"num_labels={num_labels}, but {len(classes)} classes are given; fix: leave it out")
    if (
        "classes" in parameters
        and "classes" not in options
        and parameters["classes"].default is inspect.Parameter.empty
    ):
        raise FactoryError(f"head {name!r} must know its labels; fix: classes=(…), or num_labels=…")
    check_options(head_class, options)
    return options


def _assemble(
    checkpoint: str | Path, pooling: Choice, revision: str | None, dtype: mx.Dtype | None, make_head: Any
) -> tuple[BertWithHead, Tokenizer]:
    directory = resolve(checkpoint, revision)
    core, tokenizer = load(directory, dtype=dtype)
    try:
        head = make_head(core.config.hidden_size)
    except HeadError as error:
        raise FactoryError(str(error)) from error
    model = BertWithHead(core, head, pooling, source=directory)
    model.eval()
    return model, tokenizer
