"""Predict with a model that mlxbert-export wrote: torch and transformers alone, no mlx, no mlxbert, no internet.

    python inference.py test.csv -o submission.csv --sample-submission sample_submission.csv

    from inference import Predictor
    found = Predictor("/kaggle/input/my-export").predict([{"text": "Forest fire near La Ronge"}])
    found.labels, found.probabilities, found.values        # what the task has; None for what it has not

`inference.json` beside this file says how a row becomes a text and what the submission looks like; each member (a seed
and fold) is a Hugging Face directory with a `head.json`, which says how its vectors become predictions.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import difflib
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any, TextIO

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional
from tqdm import tqdm

Row = Mapping[str, Any]
Array = np.ndarray[Any, Any]

CHUNK = 2048
"""Rows that are read, tokenized and written at once: memory does not grow with the file."""


class InferenceError(Exception):
    """Something the caller can mend: the message names the thing and the fix, in one line."""


# Reading: cells as the training file's kinds have them (mlxbert.data.cells has the rule and its reasons).

MISSING = frozenset(("", "NA", "N/A", "#N/A", "<NA>", "NaN"))
MISSING_NUMBERS = MISSING | {"nan", "None", "none", "NULL", "null"}
WHOLE = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|Inf|INF|Infinity)")
TRUTH = {"True": True, "true": True, "TRUE": True, "False": False, "false": False, "FALSE": False}
TABLES, LINES = (".csv", ".tsv", ".tab"), (".jsonl", ".ndjson", ".json")


# Of text tables, as the training file was found to be (mlxbert.data.quoting); a row with other quotes is refused.
QUOTINGS: dict[str, dict[str, Any]] = {
    "none": {"quoting": csv.QUOTE_NONE},
    "minimal": {"strict": True},
    "escaped": {"strict": True, "escapechar": "\\"},
}


def read_rows(path: Path, kinds: Mapping[str, str], quoting: str | None = None) -> Iterator[list[dict[str, Any]]]:
    """The rows of a CSV, TSV or JSONL file, at most `CHUNK` at a time, None where a value is missing.

    `quoting` of a text table: a key of `QUOTINGS`; None: "minimal".

    Raises:
        InferenceError: no such file, one of another format, or a broken line (it is named).
    """
    suffix = path.suffix.lower()
    if path.is_dir() or not path.exists():
        raise InferenceError(f"{path} is {'a directory' if path.is_dir() else 'not there'}; fix: check the path")
    if suffix not in TABLES + LINES:
        raise InferenceError(
            f"{path}: {suffix or 'no extension'!r} is not read; fix: give {', '.join(TABLES + LINES)}, or a pandas "
            "frame to Predictor.predict"
        )
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding=_encoding(path), newline="" if suffix in TABLES else None) as file:
        chunks = _table(path, file, kinds, quoting or "minimal") if suffix in TABLES else _lines(path, file, kinds)
        first = True
        for chunk in chunks:
            first = False
            yield chunk
        if first:
            raise InferenceError(f"{path} has no rows; fix: is it the right file?")


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for name in ("utf-8-sig", "cp1252"):
        decoder = codecs.getincrementaldecoder(name)()
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    if b"\0" in chunk:
                        raise InferenceError(f"{path} is not text: it has zero bytes; fix: unpack it, or convert it")
                    decoder.decode(chunk)
                decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            continue
        if name != "utf-8-sig":
            _say(f"{path} is not UTF-8; it is read as {name}")
        return name
    _say(f"{path} is not UTF-8; it is read as latin-1")
    return "latin-1"


def _separator(path: Path, file: Any) -> str:
    head = file.read(1 << 20).lstrip("\ufeff\r\n").splitlines()
    file.seek(0)
    own, other = ("\t", ",") if path.suffix.lower() in (".tsv", ".tab") else (",", "\t")
    bare = "".join(head[0].split('"')[::2]) if head else ""  # what stands in quotes separates nothing
    return next((mark for mark in (own, other, ";", "|") if mark in bare), own)


def _table(path: Path, file: Any, kinds: Mapping[str, str], quoting: str) -> Iterator[list[dict[str, Any]]]:
    separator = _separator(path, file)
    # Where a backslash escapes nothing it is a character, and is to be kept.
    escape = re.compile(rf'\\(["\\\r\n{re.escape(separator)}])|\\')
    lines = file if quoting != "escaped" else (escape.sub(lambda f: f[0] if f[1] else "\\\\", line) for line in file)
    reader = csv.reader(lines, delimiter=separator, **QUOTINGS[quoting])
    try:
        yield from _chunks(path, reader, kinds)
    except csv.Error as error:
        raise InferenceError(
            f"{path}: line {reader.line_num}: a quote opens a cell and does not close it at its end ({error}); "
            "fix: --quoting none if quotes are characters like any other, or mend it"
        ) from None


def _chunks(path: Path, reader: Any, kinds: Mapping[str, str]) -> Iterator[list[dict[str, Any]]]:
    header: list[str] = next((row for row in reader if row), [])
    names = [_bare(cell) or f"Unnamed: {i}" for i, cell in enumerate(header)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        reason = f"column {twice[0]!r} comes twice; fix: rename one" if twice else "no header; fix: is it empty?"
        raise InferenceError(f"{path}: {reason}")
    rows = _complete(path, reader, len(names))
    while part := list(islice(rows, CHUNK)):
        cells = zip(names, zip(*part, strict=True), strict=True)
        columns = [convert(column, kinds.get(name, "text")) for name, column in cells]
        yield [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _complete(path: Path, reader: Any, width: int) -> Iterator[list[str]]:
    """Rows of `width` cells: short ones filled up, blank lines left out where there are several columns."""
    for row in reader:
        if width > 1 and (not row or (len(row) == 1 and row[0].isspace())):
            continue
        if len(row) == width + 1 and not row[-1].strip():
            row.pop()  # a separator at the end of the line
        if len(row) > width:
            raise InferenceError(
                f"{path}: line {reader.line_num} has {len(row)} cells, the header {width}; fix: mend quotes or commas"
            )
        yield row + [""] * (width - len(row))


def _lines(path: Path, file: Iterable[str], kinds: Mapping[str, str]) -> Iterator[list[dict[str, Any]]]:
    def records() -> Iterator[dict[str, Any]]:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InferenceError(f"{path}: line {number} is not JSON ({error}); fix: one object a line") from None
            if not isinstance(record, dict):
                raise InferenceError(f"{path}: line {number} is no object; fix: one object a line")
            record = {name.strip(): plain(value) for name, value in record.items()}
            yield {name: as_text(value) if kinds.get(name) == "text" else value for name, value in record.items()}

    rows = records()
    seen: dict[str, None] = {}
    while part := list(islice(rows, CHUNK)):
        seen |= dict.fromkeys(name for row in part for name in row)
        yield [{**seen, **row} for row in part]  # a key that only some lines have is a column all the same


def convert(cells: Sequence[str], kind: str) -> list[Any]:
    """A column's text cells as values of its kind; what does not fit it stays text."""
    if kind not in ("number", "boolean"):
        return [None if cell in MISSING else cell for cell in cells]
    bare = [cell.strip() for cell in cells]
    if kind == "boolean":
        return [
            TRUTH.get(one, None if one in MISSING_NUMBERS else cell) for one, cell in zip(bare, cells, strict=True)
        ]
    # As pandas has it: one value that is no whole number makes floats of the column.
    number: Any = int if all(WHOLE.fullmatch(one) and abs(int(one)) < 2**63 for one in bare) else float
    return [
        number(one) if NUMBER.fullmatch(one) else None if one in MISSING_NUMBERS else cell
        for one, cell in zip(bare, cells, strict=True)
    ]


def plain(value: Any) -> Any:
    """A cell as plain Python: None for what is missing, a tuple for a list, a time in UTC without time zone."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def shown(value: Any, missing: str = "unknown") -> str:
    """A cell as a reader would write it: 22 for 22.0."""
    if value is None:
        return missing
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        digits = repr(value)
        single = len(digits) > 14 and abs(value) < 1e38 and float(np.float32(value)) == value
        return str(np.float32(value)) if single else digits
    if isinstance(value, datetime):
        midnight = (value.hour, value.minute, value.second, value.microsecond) == (0, 0, 0, 0)
        return value.date().isoformat() if midnight else value.isoformat(sep=" ")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, tuple):
        return ", ".join(shown(item, missing) for item in value)
    return str(value).strip() or missing


def as_text(value: Any) -> str | None:
    """An id or text as a person would write it; None for a missing one."""
    return value if value is None or isinstance(value, str) else shown(value, "")


def find(names: Iterable[str], name: str, what: str = "the data") -> str:
    """`name` as `names` has it: that, or the one that differs by padding or a byte order mark alone.

    Raises:
        InferenceError: there is none; the nearest names are given.
    """
    known = [str(one) for one in names]
    same = [one for one in known if one == name] or [one for one in known if _bare(one) == _bare(name)]
    if len(same) == 1:
        return same[0]
    folded = {one.strip().casefold(): one for one in known}
    near = [repr(folded[one]) for one in difflib.get_close_matches(name.strip().casefold(), folded, n=3)]
    more = f" … and {len(known) - 10} more" if len(known) > 10 else ""
    hint = f"did you mean {' or '.join(near)}?" if near else f"its columns: {', '.join(map(repr, known[:10]))}{more}"
    raise InferenceError(f"{what} has no column {name!r}; {hint}")


def _bare(name: str) -> str:
    return name.strip().strip("\ufeff").strip()


# Row texts: mlxbert.factory.text_columns.


class RowText:
    """How a row becomes a text: a column, several ("column: value, …"), a template "{Sex}, age {Age}", or a pair."""

    def __init__(self, settings: Mapping[str, Any]):
        self.parts = [part for part in (settings["first"], settings.get("second")) if part is not None]
        self.missing: str = settings.get("missing", "unknown")
        self.columns = tuple(dict.fromkeys(name for part in self.parts for name in self._names(part)))

    def render(
        self, rows: Sequence[Row], what: str = "the data", start: int = 0
    ) -> tuple[list[str], list[str] | None]:
        """Texts and second texts (None where the rows are no pairs); `start` numbers the rows in messages."""
        names = dict.fromkeys(name for row in rows for name in row)
        own = {name: find(names, name, what) for name in self.columns}
        made = [
            [
                self._text(part, {name: plain(row.get(own[name])) for name in own}, own, start + i)
                for part in self.parts
            ]
            for i, row in enumerate(rows)
        ]
        for i, texts in enumerate(made):
            if any(re.search("[\ud800-\udfff]", text) for text in texts):
                raise InferenceError(f"{what}: row {start + i} holds an unpaired surrogate, no text; fix: drop it")
        first = [texts[0] for texts in made]
        return first, [texts[1] for texts in made] if len(self.parts) > 1 else None

    def _text(self, part: Any, row: Row, own: Mapping[str, str], number: int) -> str:
        if not isinstance(part, str):
            return ", ".join(f"{_bare(own[name])}: {shown(row[name], self.missing)}" for name in part)
        if "{" not in part:
            return "" if row[part] is None else row[part] if isinstance(row[part], str) else shown(row[part])
        pieces = []
        for literal, name, spec, _ in Formatter().parse(part):
            pieces.append(literal)
            if name is None:
                continue
            value = row[name]
            try:
                pieces.append(shown(value, self.missing) if not spec or value is None else format(value, spec))
            except (TypeError, ValueError) as error:
                raise InferenceError(
                    f"row {number}: column {name!r} is {value!r}, which {{{name}:{spec}}} cannot format ({error})"
                ) from None
        return "".join(pieces)

    @staticmethod
    def _names(part: Any) -> list[str]:
        if not isinstance(part, str):
            return list(part)
        return [name for _, name, _, _ in Formatter().parse(part) if name] if "{" in part else [part]


# Pooling, (B, L, D) and a boolean mask (B, L) to (B, D): mlxbert.pooling.


def _first(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)


def _mean_sqrt_len(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).sqrt()


def _weighted_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = torch.arange(1, hidden.shape[1] + 1, device=hidden.device) * mask
    return (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


def _last_token(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]  # padding is on the right


POOLING: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": _first,
    "mean": _mean,
    "max": _max,
    "mean_sqrt_len": _mean_sqrt_len,
    "weighted_mean": _weighted_mean,
    "last_token": _last_token,
}


def pool(settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], output: Any, mask: Any) -> torch.Tensor:
    """An encoder's output to (B, D), by a member's pooling settings and tensors."""
    name, hidden = settings["name"], output.last_hidden_state
    if name == "pooler":
        return output.pooler_output
    if name == "attention":
        inner = functional.linear(hidden, tensors["pooling.dense.weight"], tensors["pooling.dense.bias"]).tanh()
        scores = functional.linear(inner, tensors["pooling.score.weight"])[..., 0]  # (B, L)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(1)
        return (hidden * weights[..., None]).sum(1)
    if name == "weighted_layers":
        weights = tensors["pooling.layer_logits"].softmax(0)  # (layers,)
        mixed = torch.stack(output.hidden_states[-len(weights) :]).mul(weights[:, None, None, None]).sum(0)
        return POOLING[settings["strategy"]](mixed, mask)
    return POOLING[name](hidden, mask)


# Heads: logits to what is averaged over members, in float64 (heads/).


def sigmoid(x: Array) -> Array:
    """1 / (1 + e⁻ˣ), without overflow on either side."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def softmax(x: Array) -> Array:
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def outcome(head: Mapping[str, Any], logits: Array) -> Array:
    """(B, outputs) logits to P(positive), P(class), P(label), P(y > k), or values in the user's units."""
    name = head["name"]
    if name in ("binary", "multilabel"):
        return sigmoid(logits / head["temperature"])
    if name == "multiclass":
        return softmax(logits / head["temperature"])
    if name == "ordinal":
        above = sigmoid(logits)
        return np.cumprod(above, axis=1) if head["objective"] == "corn" else above
    values = logits[:, : head["targets"]]  # "gaussian" has the variances behind the means
    scaler = head["scaler"]
    if scaler is None:
        return values
    values = values * scaler["scale"] + scaler["center"]
    return np.expm1(values) if scaler["log"] else values


@dataclass(frozen=True)
class Predictions:
    """Averaged over the members.

    Attributes:
        probabilities: P(positive) (N,); P(class) (N, C) of multiclass and ordinal; P(label) (N, L). None for numbers.
        labels: (N,) in the user's own values, or 0 and 1 (N, L) of multilabel. None for numbers.
        values: numbers in the user's units, (N, targets); of a time series (forecasts, horizon). None for classes.
    """

    probabilities: Array | None = None
    labels: list[Any] | None = None
    values: Array | None = None


def decide(head: Mapping[str, Any], mean: Array, thresholds: Array) -> Predictions:
    """Of the members' mean outcome (N, …) and mean thresholds."""
    name, classes = head["name"], head.get("classes", [])
    if name == "binary":
        return Predictions(mean[:, 0], [classes[int(one)] for one in mean[:, 0] >= thresholds[0]])
    if name == "multilabel":
        return Predictions(mean, (mean >= thresholds).astype(int).tolist())
    if name == "multiclass":
        return Predictions(mean, [classes[i] for i in mean.argmax(axis=1)])
    if name == "ordinal":
        edges = np.concatenate([np.ones((len(mean), 1)), mean, np.zeros((len(mean), 1))], axis=1)
        median = (mean > 0.5).sum(axis=1)
        return Predictions(np.maximum(-np.diff(edges, axis=1), 0.0), [classes[i] for i in median])
    return Predictions(values=mean)


# Time series: heads.time_series and heads.time_series.


def scaled_history(head: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], history: Array) -> Array:
    """(B, window) in the user's units to (B, columns): scaled, then its trend and season (STL as two matrices)."""
    scaler = head["scaler"]
    if not np.isfinite(history).all() or (scaler["log"] and (history <= -1).any()):
        raise InferenceError("the history has a value that is missing, or that has no logarithm; fix: fill it in")
    scaled = ((np.log1p(history) if scaler["log"] else history) - scaler["center"]) / scaler["scale"]
    if not head["period"]:
        return scaled
    trend, season = (tensors[f"history.{name}"].double().cpu().numpy() for name in ("trend", "seasonal"))
    return np.concatenate([scaled, scaled @ trend, scaled @ season], axis=1)


def calendar_features(cycles: Sequence[str], times: Array) -> Array:
    """Sine and cosine of how far each date is into each cycle: (B, 2 · cycles)."""
    if times.dtype.kind != "M":
        raise InferenceError(f"calendar features need dates, and the times are {times.dtype}; fix: give ISO dates")
    seconds = times.astype("datetime64[s]")
    day = (seconds - seconds.astype("datetime64[D]")) / np.timedelta64(1, "D")
    found = {"day": day, "week": ((seconds.astype("datetime64[D]").astype(np.int64) + 3) % 7 + day) / 7}
    for name, unit in (("month", "M"), ("year", "Y")):
        start = seconds.astype(f"datetime64[{unit}]")
        length = (start + 1).astype("datetime64[s]") - start.astype("datetime64[s]")
        found[name] = (seconds - start.astype("datetime64[s]")) / length
    angles = [2 * np.pi * found[cycle] for cycle in cycles]
    return np.stack([function(angle) for angle in angles for function in (np.sin, np.cos)], axis=1)


def time_series_logits(
    head: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], features: torch.Tensor, extra: Mapping[str, Array]
) -> torch.Tensor:
    """Text features (B, D), histories and times to logits: what the network adds to a naive forecast."""
    window, period, horizon = head["window"], head["period"], head["horizon"]
    parts, naive = [features], features.new_zeros(len(features), horizon)
    if window:
        past = torch.from_numpy(scaled_history(head, tensors, extra["history"]).astype(np.float32)).to(features.device)
        last = past[:, window - 1 : window]
        if head["baseline"] == "last":
            naive = last.expand(-1, horizon)
        elif head["baseline"] == "seasonal":
            naive = past[:, window - period + torch.arange(horizon) % period]
        levels = 2 * window if period else window  # the seasonal part has no level
        relative = torch.cat([past[:, :levels] - last, past[:, levels:]], dim=1)
        layer = functional.linear(relative, tensors["head.history_layer.weight"], tensors["head.history_layer.bias"])
        parts.append(functional.gelu(layer))
    if head["calendar"]:
        made = calendar_features(head["calendar"], extra["made_at"]).astype(np.float32)
        parts.append(torch.from_numpy(made).to(features.device))
    logits = functional.linear(torch.cat(parts, dim=1), tensors["head.output.weight"], tensors["head.output.bias"])
    return logits[:, :horizon] + naive


def as_times(values: Sequence[Any], name: str) -> Array:
    """Dates, ISO strings or numbers as datetime64 or numbers, none missing, increasing."""
    array = np.asarray(values)
    try:
        array = array.astype("datetime64") if array.dtype.kind in "OUS" else array
        wrong = np.isnat(array) if array.dtype.kind == "M" else ~np.isfinite(array)
    except (TypeError, ValueError) as error:
        raise InferenceError(f"column {name!r} has no times ({error}); fix: give ISO dates or numbers") from None
    if wrong.any() or (array[1:] <= array[:-1]).any():
        raise InferenceError(f"column {name!r} must have a time in every row, each after the last; fix: sort by it")
    return array


# Members and their average.


class Member:
    """One fine-tuned model: a Hugging Face directory and its head."""

    def __init__(self, directory: Path, device: torch.device):
        self.head = _read_json(directory / "head.json")
        whole = self.head["class"] == "BertForSequenceClassification"
        options = {} if whole else {"add_pooling_layer": self.head["pooler"]}
        with _quiet():
            self.model, report = getattr(transformers, self.head["class"]).from_pretrained(
                directory, local_files_only=True, output_loading_info=True, **options
            )
        wrong = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
        if wrong:
            raise InferenceError(f"{directory}: {wrong[0]} is missing, or one too many; fix: export again")
        self.model = self.model.float().to(device).eval()  # float32 computes anywhere, whatever the files hold
        tensors = {} if whole else load_file(directory / "head.safetensors", device=str(device))
        # STL's matrices stay float64.
        self.tensors = {key: value if key.startswith("history.") else value.float() for key, value in tensors.items()}

    def __call__(self, batch: Mapping[str, torch.Tensor], extra: Mapping[str, Array]) -> Array:
        """A padded batch, and histories and times of a time series, to its outcome (B, …) in float64."""
        return outcome(self.head, self.logits(batch, extra).double().cpu().numpy())

    def logits(self, batch: Mapping[str, torch.Tensor], extra: Mapping[str, Array]) -> torch.Tensor:
        """A padded batch to logits (B, outputs), or values where the class of transformers gives those."""
        if self.head["class"] == "BertForSequenceClassification":
            return self.model(**batch).logits
        pooling = self.head["pooling"]
        output = self.model(**batch, output_hidden_states=pooling["name"] == "weighted_layers")
        features = pool(pooling, self.tensors, output, batch["attention_mask"].bool())
        if self.head["name"] == "time_series":
            return time_series_logits(self.head, self.tensors, features, extra)
        logits = functional.linear(features, self.tensors["head.output.weight"], self.tensors.get("head.output.bias"))
        return logits - self.tensors["head.thresholds"] if "head.thresholds" in self.tensors else logits


class Predictor:
    """Rows to predictions, averaged over the members.

    Attributes:
        settings: `inference.json`.
        members: loaded at the first use.
        tokenizer: likewise.
    """

    def __init__(self, directory: str | Path | None = None, *, device: str | None = None, text: str | None = None):
        """Look at an exported directory.

        Args:
            directory: that; None: where this file lies.
            device: "cpu", "cuda", …; None: cuda where there is one.
            text: the column to read, for a model that was exported without its run.

        Raises:
            InferenceError: no such directory, or no such device.
        """
        self.directory = Path(__file__).parent if directory is None else Path(directory)
        self.settings = _read_json(self.directory / "inference.json")
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise InferenceError(f"device {device!r}: {str(error).splitlines()[0]}; fix: --device cpu") from None
        if text is not None and self.settings["text"] is not None:
            raise InferenceError("the export knows its text already; fix: leave --text out")
        row_text = self.settings["text"] if text is None else {"first": text}
        self.text = None if row_text is None else RowText(row_text)

    @cached_property
    def members(self) -> list[Member]:
        """Every seed and fold."""
        return [Member(self.directory / name, self.device) for name in self.settings["members"]]

    @cached_property
    def tokenizer(self) -> Any:
        """The encoder's, the same for all members."""
        directory = self.directory / self.settings["members"][0]
        with _quiet():
            return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)

    def predict(
        self, rows: Any, *, batch_size: int = 32, start: int = 0, progress: Callable[[int], object] | None = None
    ) -> Predictions:
        """Predictions in the order of the rows; of a time series one forecast for each row that has its history.

        Args:
            rows: dicts by column, a pandas frame, or texts alone where one column is read.
            batch_size: rows the models are given at once.
            start: what the first row's number is, for messages.
            progress: called after each batch with its number of rows.

        Raises:
            InferenceError: a column is missing, a text is no text, or a series is too short.
        """
        if self.text is None:
            raise InferenceError("a model exported without its run knows no column; fix: Predictor(…, text='column')")
        if hasattr(rows, "to_dict"):
            rows = rows.to_dict("records")
        if not rows:
            raise InferenceError("there are no rows")
        if all(isinstance(row, str) for row in rows):
            rows = [{self.text.columns[0]: row} for row in rows]
        extra: dict[str, Array] = {}
        if self.settings["task"] == "time_series":
            rows, extra = self._series(rows)
        texts, pairs = self.text.render(rows, start=start)
        head = self.members[0].head
        thresholds = np.mean([member.head.get("thresholds", [0.5]) for member in self.members], axis=0)
        return decide(head, self._mean_outcome(texts, pairs, extra, batch_size, progress), thresholds)

    @torch.inference_mode()
    def _mean_outcome(
        self,
        texts: list[str],
        pairs: list[str] | None,
        extra: Mapping[str, Array],
        batch_size: int,
        progress: Callable[[int], object] | None,
    ) -> Array:
        """(N, …) float64; batches are of similar length, and the rows' order is restored."""
        encoded = self.tokenizer(
            texts,
            pairs,
            truncation=True,
            max_length=self.settings["max_length"],
            padding=False,
            return_token_type_ids=True,
        )
        ids, types = encoded["input_ids"], encoded["token_type_ids"]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        parts = []
        for at in range(0, len(order), batch_size):
            rows = order[at : at + batch_size]
            batch = self._padded([ids[row] for row in rows], [types[row] for row in rows])
            some = {name: array[rows] for name, array in extra.items()}
            parts.append(np.mean([member(batch, some) for member in self.members], axis=0))
            if progress is not None:
                progress(len(rows))
        found = np.concatenate(parts)
        restored = np.empty_like(found)
        restored[order] = found
        return restored

    def _padded(self, ids: list[list[int]], types: list[list[int]]) -> dict[str, torch.Tensor]:
        """(B, L) tensors, padded on the right: BERT's positions count from the left."""
        longest = max(map(len, ids))

        def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=self.device)

        return {
            "input_ids": padded(ids, self.tokenizer.pad_token_id or 0),
            "token_type_ids": padded(types, 0),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
        }

    def _series(self, rows: Sequence[Row]) -> tuple[Sequence[Row], dict[str, Array]]:
        """The rows that a forecast is made at, with their histories and times."""
        head = self.members[0].head
        window, target, time = max(head["window"], 1), self.settings["target"], self.settings["time"]
        if len(rows) < window:
            raise InferenceError(
                f"a forecast reads {window} values, and the series has {len(rows)}; fix: a longer one"
            )
        extra: dict[str, Array] = {}
        if head["window"]:
            name = find(rows[0], target[0])
            try:
                values = np.array([np.nan if plain(row.get(name)) is None else row[name] for row in rows], np.float64)
            except (TypeError, ValueError):
                raise InferenceError(f"column {name!r} has a value that is no number; fix: mend it") from None
            extra["history"] = np.lib.stride_tricks.sliding_window_view(values, window)
        if head["calendar"]:
            name = find(rows[0], time)
            extra["made_at"] = as_times([plain(row.get(name)) for row in rows], name)[window - 1 :]
        return rows[window - 1 :], extra


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no remarks of transformers: what matters is checked here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise InferenceError(f"{file} is not there; fix: give a directory that mlxbert-export wrote") from None


# The submission: mlxbert.runs.rows_to_predict and mlxbert.runs.submission have the rules and their reasons.


@dataclass(frozen=True)
class Plan:
    """What is written, known before anything is predicted.

    Attributes:
        ids: of every row of the test file, as text.
        id_column: that they are written under.
        submission: the format; its columns are in the order of the predictions.
        columns: all that are written, in their order.
        order: the ids in the order that they are written in.
        source: the test file's column of ids; None: the rows are numbered.
    """

    ids: list[str]
    id_column: str
    submission: Mapping[str, Any]
    columns: list[str]
    order: list[str]
    source: str | None


def write_submission(
    predictor: Predictor,
    test: Path,
    out: Path,
    *,
    sample: Path | None = None,
    values: str | None = None,
    id: str | None = None,
    batch_size: int = 32,
) -> Plan:
    """Read `test`, write the submission to `out`, whole or not at all; returns what was written.

    Args:
        predictor: the models.
        test: the file to predict; of a time series its history.
        out: the CSV file.
        sample: a sample submission, whose ids, columns and order the submission has.
        values: "labels", "probabilities" or "values"; None: as the sample, or the run's metric, calls for.
        id: the column that names a row; None: the sample's first, the training data's, or one that is called an id.
        batch_size: rows the models are given at once.

    Raises:
        InferenceError: the file cannot be read or written, or ids and columns are not the sample submission's;
            nothing was written.
    """
    if predictor.text is None:
        raise InferenceError("a model exported without its run knows no column; fix: --text COLUMN")
    kinds = _kinds(predictor, id)
    plan = make_plan(predictor, test, kinds, sample, values, id)
    header = [plan.id_column, *plan.submission["columns"]]
    places = [header.index(name) for name in plan.columns]
    settings = {**predictor.settings, "submission": plan.submission}

    def cells(progress: Callable[[int], object]) -> Iterator[list[Any]]:
        if settings["task"] == "time_series":
            rows = [row for chunk in read_rows(test, kinds, settings.get("quoting")) for row in chunk]
            window = max(predictor.members[0].head["window"], 1)
            found = predictor.predict(rows[-window:], batch_size=batch_size).values
            assert found is not None
            progress(found.shape[1])
            yield from ([value] for value in found[-1].tolist())
            return
        at = 0
        for chunk in read_rows(test, kinds, settings.get("quoting")):
            made = predictor.predict(chunk, batch_size=batch_size, start=at, progress=progress)
            at += len(chunk)
            yield from columns_of(settings, made)

    try:
        with _output(out) as file, tqdm(desc="Predicting", total=len(plan.ids), unit="row", mininterval=0.5) as bar:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(plan.columns)
            lines = ([name, *row] for name, row in zip(plan.ids, cells(bar.update), strict=True))
            made = ([line[place] for place in places] for line in lines)
            if sample is not None:
                by_id = dict(zip(plan.ids, made, strict=True))
                made = (by_id[name] for name in plan.order)
            writer.writerows(made)
    except OSError as error:
        raise InferenceError(f"{out} cannot be written: {error.strerror or error}; fix: another place") from None
    return plan


def make_plan(
    predictor: Predictor, test: Path, kinds: Mapping[str, str], sample: Path | None, values: str | None, id: str | None
) -> Plan:
    """What will be written, checked against the sample submission.

    Raises:
        InferenceError: a file cannot be read, or ids and columns are not the sample's.
    """
    settings = predictor.settings
    form = _of_values(settings, values)
    rows = [] if sample is None else [row for chunk in read_rows(sample, {}) for row in chunk]
    theirs = [name for name in rows[0] if not _is_blank(name, rows)] if rows else []
    others = [name for name in theirs if name not in form["columns"]] or theirs
    names: list[str] = []
    if settings["task"] == "time_series":
        ids, source = _future(predictor, test, kinds), settings["time"]
    else:
        ids, source, names = _ids(predictor, test, kinds, others, id)
    if sample is None:
        own = _header(settings, form, source, names, test)
        return Plan(ids, own, form, [own, *form["columns"]], ids, source)
    there = [name for name in others if name in names]
    key = next(name for name in (source, id, settings["id"], *there, *others) if name in theirs)
    assert key is not None
    wanted = [as_text(plain(row[key])) or "" for row in rows]
    _check_ids(sample, wanted, ids, test, source, key)
    if source is not None and key not in (source, form["id_column"]):
        _say(f"{sample} calls the ids {key!r}, {test} {source!r}: they are written as {key!r}")
    columns = [name for name in theirs if name != key]
    chosen, doubt = _values_of(settings, sample, columns, rows, values or settings.get("values"))
    form = _of_values(settings, chosen)
    form = {**form, "columns": _matched(settings, form, columns, sample)}
    if doubt:
        _say(doubt)
    return Plan(ids, key, form, theirs, wanted, source)


def _is_blank(name: str, rows: Sequence[Row]) -> bool:
    """Whether a column has neither name nor cell: separators at the end of every line make one."""
    return name.startswith("Unnamed: ") and all(row[name] in (None, "") for row in rows)


def _say(message: str, kind: str = "warning: ") -> None:
    """Print on standard error; a name out of a file must not steer the terminal."""
    safe = "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in message)
    print(f"inference.py: {kind}{safe}", file=sys.stderr)


def _kinds(predictor: Predictor, id: str | None) -> dict[str, str]:
    """Kinds of columns; those that name rows are read as they are written."""
    settings, text = predictor.settings, predictor.text
    told = [name for name in (id, settings["id"]) if name is not None]
    columns = () if text is None else text.columns
    ids = [*told, *(name for name in settings["kinds"] if is_called_id(name) and name not in columns)]
    return {**settings["kinds"], **dict.fromkeys(ids, "text")}


_ID = re.compile(
    r"(?i:ids?|idx|uuid|guid|index|identifier|row(number)?|unnamed: 0)"
    r"|(?i:.*[ _.-](id|idx|uuid|guid|index)|(id|uuid|guid)[ _.-].*)"
    r"|.*[a-z0-9](Id|ID|Idx|Index|UUID|Uuid|GUID|Guid)"
    r"|(?i:([cdegnopqrstu]|pm|txt|text|tweet|post|comment|msg|message|mail|user|item|product|review|article|row|line|"
    r"sentence|passenger|customer|client|order|case|record|question|answer|query|doc|document|image|img|sample|"
    r"example|test|train|object|entry|event|session|page|paragraph|essay|story|news|video|song|movie|book|job|patient|"
    r"account)id)"
)


def is_called_id(name: Any) -> bool:
    """Whether a column's name says that it names a row: id, PassengerId, user_id, qid, uuid, index, …."""
    return _ID.fullmatch(str(name).strip()) is not None


def names_rows(values: Sequence[Any]) -> bool:
    """Whether values could name rows: short words or whole numbers, none missing, none twice."""
    kinds = all(
        (isinstance(one, str) and 0 < len(one) <= 80)
        or (isinstance(one, int) and not isinstance(one, bool))
        or (isinstance(one, float) and one.is_integer())
        for one in values
    )
    return kinds and len(set(values)) == len(values)


@contextmanager
def _output(out: Path) -> Iterator[TextIO]:
    """A file that becomes `out` at the end, or the device or pipe that `out` is; a link's file is replaced."""
    if out.exists() and not out.is_file():
        with out.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    real = Path(os.path.realpath(out))
    descriptor, temporary = tempfile.mkstemp(prefix=f".{real.name[:50]}.", dir=real.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(descriptor, real.stat().st_mode & 0o777 if real.exists() else 0o666 & ~umask)
            yield file
        Path(temporary).replace(real)
    finally:
        Path(temporary).unlink(missing_ok=True)


def columns_of(settings: Mapping[str, Any], found: Predictions) -> list[list[Any]]:
    """The submission's cells of each row, in the order of its columns."""
    submission = settings["submission"]
    if submission["values"] == "labels":
        assert found.labels is not None
        rows = [list(one) if isinstance(one, list) else [one] for one in found.labels]
        order = _order(settings, len(rows[0]))
        return [[row[place] for place in order] for row in rows]
    array = found.values if submission["values"] == "values" else found.probabilities
    assert array is not None
    if settings["task"] == "ordinal" and len(submission["columns"]) == 1:
        array = array @ np.arange(array.shape[1])  # the expected rank
    table = array[:, None] if array.ndim == 1 else array
    return table[:, _order(settings, table.shape[1])].tolist()


def _order(settings: Mapping[str, Any], count: int) -> list[int]:
    """Where each column is among `count` predictions: by its name, where these are the labels or the targets."""
    columns, names = settings["submission"]["columns"], [str(one) for one in settings["classes"] or settings["target"]]
    if len(names) == count and set(names) == set(columns):
        return [names.index(name) for name in columns]
    return list(range(count))


def _ids(
    predictor: Predictor, test: Path, kinds: Mapping[str, str], others: Sequence[str], id: str | None
) -> tuple[list[str], str | None, list[str]]:
    """Every row's id, the column that they stand in (None: the rows are numbered), and the names of all columns.

    The text's columns are checked on the way.
    """
    settings, text = predictor.settings, predictor.text
    assert text is not None
    names: list[str] = []
    empty, rows, column = 0, 0, None
    kept: dict[str, list[Any]] = {}
    kinds = {**kinds, **dict.fromkeys(others[:1], "text")}
    for chunk in read_rows(test, kinds, settings.get("quoting")):
        first, second = text.render(chunk, str(test), rows)
        empty += sum(not one.strip() and not two.strip() for one, two in zip(first, second or first, strict=True))
        if not names:
            names = list(chunk[0])
            column = _told_id(settings, names, others, id, test)
            candidates = (
                [column]
                if column is not None
                else [name for name in names if is_called_id(name) and name not in text.columns]
            )
            kept = {name: [] for name in candidates}
        for name, values in kept.items():
            values += [plain(row.get(name)) for row in chunk]
        rows += len(chunk)
    if column is None:
        found = [name for name, values in kept.items() if names_rows(values)]
        column = min(found, key=_likelihood, default=None)
    if empty:
        _say(f"{test}: {empty} of {rows} rows have no text; they are encoded as an empty one")
    if column is None:
        return [str(row) for row in range(rows)], None, names
    ids = [as_text(value) for value in kept[column]]
    if None in ids:
        raise InferenceError(f"{test}: row {ids.index(None)} has no id in column {column!r}; fix: fill it in")
    twice = [str(value) for value, count in Counter(ids).items() if count > 1]
    if twice:
        raise InferenceError(
            f"{test}: {len(twice)} ids come twice in column {column!r} (first: {twice[0]!r}); "
            "fix: drop repeated rows, or --id COLUMN"
        )
    if not others and all(re.fullmatch(r"-?[0-9]+\.0", str(one)) for one in ids):
        _say(
            f"{test}: the ids of column {column!r} are written as they stand there, {ids[0]} and not "
            f"{str(ids[0])[:-2]}; fix: --sample-submission, or write whole numbers in the file"
        )
    return [str(one) for one in ids], column, names


def _likelihood(name: str) -> int:
    folded = name.strip().casefold()
    return 0 if folded == "id" else 2 if folded in ("index", "idx", "row", "unnamed: 0") else 1


def _told_id(
    settings: Mapping[str, Any], names: Sequence[str], others: Sequence[str], id: str | None, test: Path
) -> str | None:
    """The column that names the rows: as told, the sample's first, or the training data's; None: none of these."""
    trained = settings["id"]
    if id is None and others and others[0] in names and trained not in others:
        return others[0]
    wanted = id or (trained if trained in names or not settings.get("id_found") else None)
    return None if wanted is None else find(names, wanted, str(test))


def _header(
    settings: Mapping[str, Any], form: Mapping[str, Any], source: str | None, names: Sequence[str], test: Path
) -> str:
    """What the ids are called where no sample says it."""
    own: str = form["id_column"]
    if source is None and own in names:
        _say(f"{test}: column {own!r} has a value twice or none; the rows are numbered as 'row'")
        return "row"
    if source is None and settings["id"] is not None and settings["id"] == own:
        _say(f"{test} has no column {own!r}: the rows are numbered as 'row'; fix: --id COLUMN")
        return "row"
    return own if source is None or source in (settings["id"], settings["time"]) else source


def _future(predictor: Predictor, test: Path, kinds: Mapping[str, str]) -> list[str]:
    """Names of the steps ahead: the series' times going on."""
    ahead = np.arange(1, predictor.members[0].head["horizon"] + 1)
    rows = [row for chunk in read_rows(test, kinds, predictor.settings.get("quoting")) for row in chunk]
    time = predictor.settings["time"]
    if time is None:
        return [str(len(rows) - 1 + step) for step in ahead]
    if len(rows) < 2:
        raise InferenceError(
            f"{test} has one row, which tells no step from one time to the next; fix: a longer series"
        )
    name = find(rows[0], time, str(test))
    times = as_times([row[name] for row in rows], name)
    gaps = np.diff(times)
    if times.dtype.kind == "M" and (gaps != gaps[0]).any():  # months are of unequal length: the same day of each
        months = times.astype("datetime64[M]")
        days, between = times - months, np.diff(months)
        if (between == between[0]).all() and (days == days[0]).all():
            return [str(one) for one in months[-1] + between[0] * ahead + days[0]]
    return [str(one) if times.dtype.kind == "M" else shown(plain(one)) for one in times[-1] + gaps[-1] * ahead]


def _check_ids(
    sample: Path, wanted: Sequence[str], ids: Sequence[str], test: Path, source: str | None, key: str
) -> None:
    """Refuse rows whose ids are not those of the sample; what is missing and what is beyond is listed.

    Raises:
        InferenceError: it is so, or an id of the sample comes twice or is missing.
    """
    twice = [value for value, count in Counter(wanted).items() if count > 1]
    if twice or "" in wanted:
        raise InferenceError(
            f"{sample}: id {(twice or [''])[0]!r} comes twice or is missing in column {key!r}; "
            "fix: download the sample again"
        )
    ours, theirs = set(ids), set(wanted)
    missing, extra = [one for one in wanted if one not in ours], [one for one in ids if one not in theirs]
    if not missing and not extra:
        return
    if source is None:
        raise InferenceError(
            f"{test} has no column that names its rows, so they are numbered from 0, and {sample} has other ids "
            f"({_some(wanted)}); fix: --id COLUMN"
        )
    alike = {_same(one): one for one in wanted}
    pairs = [(one, alike[_same(one)]) for one in extra if _same(one) in alike]
    if pairs and len(pairs) == len(extra) == len(missing):
        raise InferenceError(
            f"the same ids are written in two ways, {pairs[0][0]!r} in {test} and {pairs[0][1]!r} in {sample} "
            f"({len(pairs)} of {len(ids)}); fix: write them alike"
        )
    told = [f"{len(missing)} of the {len(wanted)} ids of {sample} are missing ({_some(missing)})"] if missing else []
    told += [f"{len(extra)} of its ids are not in {sample} ({_some(extra)})"] if extra else []
    raise InferenceError(
        f"{test}: {' and '.join(told)}, column {source!r}; fix: give the files that belong together, or --id COLUMN"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _number(cell: str) -> float | None:
    try:
        # A comma may be the decimal mark.
        value = float(cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _same(cell: str) -> str:
    """A cell however it is written: 1, 1.0, 001 and " 1" are one."""
    text = cell.strip()
    if text.lstrip("+-").isdecimal():
        return str(int(text)) if len(text) < 400 else text
    value = _number(text)
    return text if value is None else shown(value)


def _of_values(settings: Mapping[str, Any], values: str | None) -> dict[str, Any]:
    """The export's format, or that of other values.

    Raises:
        InferenceError: they do not fit the task.
    """
    form, task = dict(settings["submission"]), settings["task"]
    if values in (None, form["values"]):
        return form
    if task in ("regression", "time_series") or values == "values":
        fitting = "values" if task in ("regression", "time_series") else "labels or probabilities"
        raise InferenceError(f"a submission of {values!r} does not fit {task}; fix: --values {fitting}")
    columns = form["columns"]
    if task in ("multiclass", "ordinal"):
        columns = list(map(str, settings["classes"])) if values == "probabilities" else list(settings["target"])
    return {**form, "columns": columns, "values": values}


def _matched(settings: Mapping[str, Any], form: Mapping[str, Any], names: list[str], sample: Path) -> list[str]:
    """The sample's name of each prediction column, in the order of the predictions.

    Raises:
        InferenceError: it has other columns.
    """
    classes = [str(one) for one in settings["classes"] or settings["target"]]
    columns = classes if set(classes) == set(form["columns"]) else list(form["columns"])
    if set(columns) == set(names):
        return columns
    if len(columns) == len(names) and not settings["known_columns"]:
        return names  # without the run's own columns the sample's stand for them, one for one
    folded = {name.strip().casefold(): name for name in names}
    if len(columns) == len(names) == len(folded) and {one.casefold() for one in columns} == set(folded):
        return [folded[one.casefold()] for one in columns]
    if len(columns) == len(names) == 1:
        _say(f"{sample} calls the predictions {names[0]!r}, not {columns[0]!r}: they are written under that name")
        return names
    fix = "take the other columns out of it" if set(columns) < set(names) else "the sample of this competition"
    raise InferenceError(
        f"{sample} has the columns {', '.join(names)}, and the model predicts {', '.join(columns)}; "
        f"fix: {fix}, or --values labels|probabilities"
    )


def _values_of(
    settings: Mapping[str, Any], sample: Path, names: Sequence[str], rows: Sequence[Row], asked: str | None
) -> tuple[str | None, str]:
    """ "labels" or "probabilities", as asked for or as the sample's cells have them (None: they do not say), and what
    to warn of ("": nothing).
    """
    task, usual = settings["task"], settings["submission"]
    if task in ("regression", "time_series"):
        return asked, ""
    found = {plain(row[name]) for name in names for row in rows}
    cells = {str(value).strip() for value in found if value is not None}
    labels = {_same(shown(one)) for one in ((0, 1) if task == "multilabel" else settings["classes"] or ())}
    cells = {cell for cell in cells if _same(cell) in labels or cell not in MISSING_NUMBERS}
    strange = sorted(cell for cell in cells if _same(cell) not in labels)
    numbers = all(_number(cell) is not None for cell in cells)
    fractions = numbers and any(not (_number(cell) or 0.0).is_integer() for cell in strange)
    others = ""
    if strange:
        own = (0, 1) if task == "multilabel" else settings["classes"] or ()
        others = (
            f"{sample} holds {strange[0]!r}, which is none of the model's labels: its own are written, such as "
            f"{' and '.join(repr(shown(one)) for one in own[:2])}"
        )
    if asked is not None:
        return asked, others if asked == "labels" and not fractions else ""
    if task in ("multiclass", "ordinal"):
        if len(names) > 1:
            return "probabilities", ""
        rank = usual["values"] == "probabilities" and len(usual["columns"]) == 1  # of a ready configuration
        return ("probabilities", "") if rank else ("labels", others if len(cells) > 1 or not numbers else "")
    if not cells:
        return None, ""
    if not numbers:
        return "labels", others or _contradiction(settings, "labels", f"{sample} holds words")
    if fractions:
        why = f"{sample} holds fractions such as {strange[0]}"
        return "probabilities", _contradiction(settings, "probabilities", why)
    if not strange and len({_same(cell) for cell in cells}) > 1:
        return "labels", _contradiction(settings, "labels", f"{sample} holds {' and '.join(sorted(cells)[:2])}")
    if settings.get("ready"):
        return str(usual["values"]), ""
    few, wanted = ", ".join(sorted(cells)[:3]), settings.get("wanted")
    holds = f"{sample} holds {few} alone, which could stand for labels and for probabilities"
    if strange:
        holds = (
            f"{sample} holds {few}, and the labels are {', '.join(repr(shown(one)) for one in settings['classes'])}"
        )
    whole = all(cell.lstrip("+-").isdecimal() for cell in cells)
    chosen = wanted or ("labels" if whole and not strange else "probabilities")
    if wanted == "labels" and not strange:
        return str(chosen), ""
    other = "probabilities" if chosen == "labels" else "labels"
    return str(chosen), f"{holds}: {chosen} are written; {_option(other)}"


def _contradiction(settings: Mapping[str, Any], values: str, why: str) -> str:
    """What to warn of where the metric that was asked for compares something else; "": nothing."""
    wanted = settings.get("wanted")
    if wanted is None or wanted == values:
        return ""
    return f"{why}: {values} are written, though the run's metric compares {wanted}; {_option(wanted)}"


def _option(values: str) -> str:
    scored = "labels are scored (accuracy, F1)" if values == "labels" else "probabilities are scored (AUC, log loss)"
    return f"fix: --values {values} if {scored}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0 written, 2 could not, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="inference.py", description="Predict a file and write the submission.")
    parser.add_argument("test", type=Path, help="CSV, TSV or JSONL; of a time series its history")
    parser.add_argument("-o", "--out", type=Path, default=Path("submission.csv"), help="[default: submission.csv]")
    parser.add_argument("--sample-submission", type=Path, help="file whose ids, columns and order the output has")
    parser.add_argument("--id", help="column that names a row  [default: the sample's first, or the training's]")
    parser.add_argument(
        "--values", choices=("labels", "probabilities", "values"), help="what is written  [default: as the sample has]"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="[default: 32]")
    parser.add_argument("--device", help="cpu or cuda  [default: cuda where there is one]")
    parser.add_argument("--quoting", choices=[*QUOTINGS], help="of a text table  [default: as the training file's]")
    parser.add_argument("--text", help="the column to read, for a model exported without its run")
    given = parser.parse_args(arguments)
    if given.batch_size < 1:
        parser.error(f"--batch-size must be 1 or more, not {given.batch_size}")
    try:
        predictor = Predictor(device=given.device, text=given.text)
        if given.quoting:
            predictor.settings["quoting"] = given.quoting
        plan = write_submission(
            predictor,
            given.test,
            given.out,
            sample=given.sample_submission,
            values=given.values,
            id=given.id,
            batch_size=given.batch_size,
        )
    except InferenceError as error:
        _say(str(error), "error: ")
        return 2
    except KeyboardInterrupt:
        print("inference.py: interrupted; nothing was written", file=sys.stderr)
        return 130
    ids = "rows numbered from 0" if plan.source is None else f"ids from {plan.source!r}"
    print(f"Written   {given.out}: {len(plan.ids)} rows of {plan.submission['values']}, {ids}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
