"""Make `config.json` say how many labels a classifier has: its rows tell, the configuration may be wrong or silent.

transformers takes the length of `id2label`, else `num_labels`, else 2, and refuses a head of another size; so would
`mlxbert.load_with_head`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converter.source import Source
from mlxbert.errors import printable
from mlxbert.pretrained.head_class import original_architectures
from mlxbert.pretrained.labels import PROBLEM_TYPES

WEIGHT, BIAS = "classifier.weight", "classifier.bias"
# One score for each choice, whatever the configuration says of labels.
_WITHOUT_LABELS = ("BertForMultipleChoice",)


def with_true_labels(source: Source) -> Source:
    """Return the source with labels in its configuration that fit its classifier, and a note where they did not.

    Without a classifier, labels that cannot be read are left out: they must not stop the encoder.
    """
    config = dict(source.config)
    notes = []
    problem = config.get("problem_type")
    if problem is not None and problem not in PROBLEM_TYPES:
        del config["problem_type"]
        notes.append(
            f"problem_type {printable(repr(problem), 60)} is not known to transformers: left out of config.json"
        )
    rows = _rows(source)
    names = config.get("id2label")
    if rows is None:
        if names is not None and _by_index(names, None) is None:
            for field in ("id2label", "label2id"):
                config.pop(field, None)
            notes.append(
                "id2label does not name outputs 0, 1, 2, …, and there is no classifier: left out of config.json"
            )
        return replace(source, config=config, notes=(*source.notes, *notes)) if notes else source
    if _by_index(names, rows) is None and (names is not None or _count(config) != rows):
        labels, why = _fitted(names, config, rows)
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
        config.pop("num_labels", None)  # id2label says it
        notes.append(why)
    return replace(source, config=config, notes=(*source.notes, *notes)) if notes else source


def _rows(source: Source) -> int | None:
    """How many labels the source's classifier has; None: it has none, or one that is not whole."""
    weight, bias = source.entries.get(WEIGHT), source.entries.get(BIAS)
    if weight is None or bias is None or set(original_architectures(source.config)) & set(_WITHOUT_LABELS):
        return None
    whole = len(weight.shape) == 2 and bias.shape == weight.shape[:1] and weight.shape[0] > 0
    return weight.shape[0] if whole else None


def _count(config: Mapping[str, Any]) -> int:
    """How many labels transformers reads out of a configuration without `id2label`."""
    count = config.get("num_labels", 2)
    return count if type(count) is int else 0


def _by_index(names: Any, rows: int | None) -> dict[int, str] | None:
    """`id2label` where it names the outputs 0, 1, 2, … (`rows` of them, where that is known); else None."""
    if not isinstance(names, Mapping):
        return None
    try:
        found = {int(index): name for index, name in names.items()}
    except (TypeError, ValueError):
        return None
    texts = all(isinstance(name, str) for name in found.values())
    right = set(found) == set(range(len(names) if rows is None else rows))
    return found if texts and right and len(found) == len(names) and found else None


def _fitted(names: Any, config: Mapping[str, Any], rows: int) -> tuple[list[str], str]:
    """A name for each row, and what the user is told."""
    generic = [f"LABEL_{i}" for i in range(rows)]
    called = f"labels are LABEL_0 to LABEL_{rows - 1}" if rows > 1 else "its label is LABEL_0"
    has = f"{WEIGHT} has {rows} row{'s' if rows > 1 else ''}"
    if not isinstance(names, Mapping):
        given = "no number of labels (2 is then meant)"
        if "num_labels" in config:
            given = f"num_labels {printable(repr(config['num_labels']), 60)}"
        elif names is not None:
            given = "nothing that can be read of its labels (id2label is no object)"
        return generic, f"config.json says {given}, and {has}: {called}"
    known = {str(index): str(name) for index, name in names.items() if type(name) in (str, int, float)}
    fits = set(known) <= {str(i) for i in range(rows)} and str(rows - 1) in known
    if len(names) != rows and not fits:
        return generic, (
            f"config.json names {len(names)} label{'s' if len(names) != 1 else ''}, and {has}: which is which is not "
            f"known, so {called}; fix: put the right id2label into the source's config.json, and convert again"
        )
    labels = [known.get(str(i), label) for i, label in enumerate(generic)]
    labels = labels if len(set(labels)) == rows else generic
    keys, shown = printable(", ".join(map(str, names)), 80), printable(", ".join(labels), 160)
    return (
        labels,
        f"id2label does not name each output once by a text (its keys: {keys}), and {has}: labels are {shown}",
    )
