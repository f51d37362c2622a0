"""What a model card can show beside parity: what quantization cost, and how a fine-tuned model scored. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from converter.parity.report import MAX_BYTES, ReportError, require_version
from converter.parity.report import NAME as PARITY
from converter.quantize.cost import QuantizationReport, read_cost
from mlxbert.files.reading import read_json


@dataclass(frozen=True)
class Scores:
    """How a run scored on rows that its models had not seen: the "trained" block of `config.json`.

    Attributes:
        task, metric: what was learned, and what chose the weights.
        pooled: of all `data_rows`, each predicted by the models that had not seen it.
        folds, models: of the run; this is one of its models.
        own, own_rows: of this model alone, on the rows that its fold held out.
    """

    task: str
    metric: str
    pooled: Mapping[str, float]
    folds: int
    data_rows: int
    models: int
    own: Mapping[str, float]
    own_rows: int


def read_quantization(directory: Path) -> QuantizationReport | None:
    """The block of a directory's `parity.json`; None where it has none.

    Raises:
        ReportError: it is damaged, or of another version.
    """
    parsed = read_json(directory / PARITY, ReportError, limit=MAX_BYTES)
    block = (parsed or {}).get("quantization")
    if not isinstance(block, dict):
        return None
    require_version(parsed)
    return read_cost(block, ReportError)


def read_scores(block: Mapping[str, Any]) -> Scores | None:
    """The scores in the "mlxbert" block of `config.json`; None where the model was not fine-tuned by this project.

    Raises:
        ReportError: the block is damaged.
    """
    trained = block.get("trained")
    if trained is None:
        return None
    try:
        scores: Scores = _known(Scores, trained)
        return replace(scores, pooled=_numbers(scores.pooled), own=_numbers(scores.own))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(
            f'the "trained" block of config.json is damaged ({error!r}); fix: save the model again'
        ) from error


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that there are: a metric may have none, which is null."""
    return {str(name): float(value) for name, value in values.items() if value is not None}


def _known(kind: Any, data: Mapping[str, Any]) -> Any:
    return kind(**{field.name: data[field.name] for field in fields(kind) if field.name in data})
