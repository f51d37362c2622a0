"""What a model card can show beside parity: what quantization cost, and how a fine-tuned model scored. Plain data."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from converter.parity.report import ReportError

PARITY = "parity.json"


@dataclass(frozen=True)
class QuantizedLayer:
    """One quantized layer: `bits` and `group_size` in `mode`, its `bytes`, and the relative `error` of its weights."""

    path: str
    mode: str
    bits: int
    group_size: int
    bytes: int
    error: float | None = None

    @property
    def form(self) -> str:
        """`4-bit affine, groups of 64`."""
        return f"{self.bits}-bit {self.mode}, groups of {self.group_size}"


@dataclass(frozen=True)
class SkippedLayer:
    """A layer that was not quantized, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Quality:
    """Quantized against float32 on one list of sentences that calibration never saw."""

    text: str
    sentences: int
    cosine_mean: float
    cosine_min: float
    rank_correlation: float | None
    logit_agreement: float | None = None
    logit_kl: float | None = None


@dataclass(frozen=True)
class Quantization:
    """The "quantization" block of `parity.json`.

    Attributes:
        recipe: what was asked for, such as "4bit" or "mixed".
        calibrated: whether rounding errors were compensated on calibration sentences.
        bytes: of the weight files.
        parameters: true count, packed integers unpacked.
        bits_per_weight: 8 × bytes ÷ parameters.
    """

    recipe: str
    calibrated: bool
    bytes: int
    parameters: int
    bits_per_weight: float
    layers: tuple[QuantizedLayer, ...]
    skipped: tuple[SkippedLayer, ...]
    quality: tuple[Quality, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Quantization:
        """Read the block; fields of a later version are ignored.

        Raises:
            ReportError: one of ours is missing or of another kind.
        """
        try:
            values = {field.name: data[field.name] for field in fields(cls)}
            values["layers"] = tuple(_known(QuantizedLayer, item) for item in values["layers"])
            values["skipped"] = tuple(_known(SkippedLayer, item) for item in values["skipped"])
            values["quality"] = tuple(_known(Quality, item) for item in values["quality"])
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ReportError(
                f"the quantization block of {PARITY} is damaged ({error!r}); fix: quantize the model again"
            ) from error

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """For each form of layer, the widest first: how many layers have it, and their bytes."""
        found: dict[str, list[QuantizedLayer]] = defaultdict(list)
        for layer in sorted(self.layers, key=lambda layer: (-layer.bits, layer.mode, -layer.group_size)):
            found[layer.form].append(layer)
        return {form: (len(layers), sum(layer.bytes for layer in layers)) for form, layers in found.items()}


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


def read_quantization(directory: Path) -> Quantization | None:
    """The block of a directory's `parity.json`; None where it has none.

    Raises:
        ReportError: it is damaged.
    """
    file = directory / PARITY
    try:
        parsed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{file} is not JSON ({error}); fix: run mlxbert-verify again") from error
    block = parsed.get("quantization") if isinstance(parsed, dict) else None
    return Quantization.from_json(block) if isinstance(block, dict) else None


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
