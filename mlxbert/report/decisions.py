"""In sentences: how probabilities became labels, which thresholds were fitted, and what the submission holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from heads.calibration import threshold_metric
from heads.metrics import METRICS
from mlxbert.files.reading import read_json
from mlxbert.files.typed_json import from_json
from mlxbert.report.run_files import ReportedRun
from mlxbert.runs.files import RunError, RunFiles


@dataclass(frozen=True)
class FittedValues:
    """What a head learned beside its weights."""

    temperature: float | None = None
    threshold: float | None = None
    thresholds: tuple[float, ...] | None = None


@dataclass(frozen=True)
class _Head:
    fitted: FittedValues


@dataclass(frozen=True)
class _OurPart:
    head: _Head


@dataclass(frozen=True)
class _MemberConfig:
    mlxbert: _OurPart


def fitted_values(run: ReportedRun) -> list[FittedValues]:
    """Return what the trained members' heads learned beside their weights; members that are not there are left out.

    Raises:
        RunError: a member's config.json is damaged.
    """
    files = RunFiles(run.path)
    found = []
    for member in run.record.members:
        file = files.member(member) / "config.json"
        values = read_json(file, RunError)
        if values is not None and files.is_done(member):
            config = from_json(_MemberConfig, values, place=str(file), fix="fix: train again", error=RunError)
            found.append(config.mlxbert.head.fitted)
    return found


def decisions(run: ReportedRun) -> list[str]:
    """Return what was done about thresholds, labels and the submission, a sentence each."""
    return [*_labels(run), *_submission(run)]


def _labels(run: ReportedRun) -> Iterator[str]:
    if run.task in ("regression", "time_series"):
        return
    fitted = fitted_values(run)
    if run.task == "multiclass":
        yield "A row is given the class with the highest probability."
    elif run.task == "ordinal":
        yield "A row is given the median rating: the first one that half of the probability does not exceed."
    else:
        yield from _thresholds(run, fitted)
    temperatures = [one.temperature for one in fitted if one.temperature is not None]
    if not run.record.config.calibrate:
        yield "Probabilities are not calibrated, and no threshold is fitted (--no-calibrate)."
    elif any(value != 1 for value in temperatures):
        yield f"Probabilities are calibrated by a temperature, fitted on held-out rows: {_range(temperatures)}."


def _thresholds(run: ReportedRun, fitted: list[FittedValues]) -> Iterator[str]:
    which = "a row is positive" if run.task == "binary" else "a label is given"
    values = [one.threshold for one in fitted if one.threshold is not None]
    values += [value for one in fitted for value in one.thresholds or ()]
    if not values:
        return
    if any(value != 0.5 for value in values):
        # One label of many is judged by F1, whatever the metric over all of them.
        metric = threshold_metric(run.metric) if run.task == "binary" and run.metric in METRICS else "f1"
        yield (
            f"Thresholds are fitted for {metric} on held-out rows: {which} from a probability of {_range(values)} on. "
            "The score of a row never depends on a threshold that was fitted on it; new rows are decided at the mean "
            "of the members' thresholds."
        )
    else:
        yield f"No threshold is fitted: {which} from a probability of 0.5 on."
    for history in run.histories:
        if history.finished is not None and history.finished.note:
            yield f"{history.member}: thresholds stay at one half: {history.finished.note}."


def _submission(run: ReportedRun) -> Iterator[str]:
    form = run.record.submission
    words = {
        "labels": "labels, decided as above",
        "probabilities": "probabilities, not labels (mlxbert predict --values labels writes labels)",
        "values": "numbers in the target's own unit",
    }[form.values]
    there = "submission.csv holds" if RunFiles(run.path).submission.is_file() else "A submission of this run holds"
    columns = ", ".join(form.columns[:5]) + (f" and {len(form.columns) - 5} more" if len(form.columns) > 5 else "")
    yield f"{there} {words}: {form.id_column}, {columns}."


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
