"""`Predictor`: rows to predictions, averaged over the members of an exported run."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from converter.export.inference_modules.tables import Columns, InferenceError
from converter.export.inference_modules.torch_heads import Array, Predictions, pool, torch_head
from heads.forward_chaining import as_times
from mlxbert.data.frames import Table
from mlxbert.data.text_columns import RowText


class Member:
    """One fine-tuned model: a Hugging Face directory and its head.

    Attributes:
        head: the settings in `head.json`.
        model: the encoder, or a whole classifier of transformers.
        tensors: those of head and pooling; none where the classifier has all.
    """

    def __init__(self, directory: Path, device: torch.device):
        """Load the model, in float32, and check that the files hold each of its tensors and no other.

        Raises:
            InferenceError: a file or a tensor is missing, there is one too many, or the head is unknown.
        """
        self.head = read_json(directory / "head.json")
        self._torch_head = torch_head(self.head)
        model_class = getattr(transformers, self.head["class"])
        takes_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
        options = {"add_pooling_layer": self.head["pooler"]} if takes_pooler else {}
        with _quiet():
            self.model, report = model_class.from_pretrained(
                directory, local_files_only=True, output_loading_info=True, **options
            )
        wrong = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
        if wrong:
            raise InferenceError(f"{directory}: {wrong[0]} is missing, or one too many; fix: export again")
        self.model = self.model.float().to(device).eval()  # float32 computes anywhere, whatever the files hold
        tensors = {} if self.head["is_whole"] else load_file(directory / "head.safetensors", device=str(device))
        # STL's matrices stay float64.
        self.tensors = {key: value if key.startswith("history.") else value.float() for key, value in tensors.items()}

    def __call__(self, batch: Mapping[str, torch.Tensor], extra: Mapping[str, Array]) -> Array:
        """Return the outcome (B, …) of a padded batch in float64; `extra` has the histories and times of a series."""
        return self.outcome(self.logits(batch, extra).double().cpu().numpy())

    def logits(self, batch: Mapping[str, torch.Tensor], extra: Mapping[str, Array]) -> torch.Tensor:
        """Return logits (B, outputs), or values where the class of transformers computes those."""
        if self.head["is_whole"]:
            logits: torch.Tensor = self.model(**batch).logits
            return logits
        pooling = self.head["pooling"]
        output = self.model(**batch, output_hidden_states=pooling["name"] == "weighted_layers")
        features = pool(pooling, self.tensors, output, batch["attention_mask"].bool())
        return self._torch_head.logits(self.head, self.tensors, features, extra)

    def outcome(self, logits: Array) -> Array:
        """Return what is averaged over the members: P(positive), P(class), P(label), P(y > k), or values."""
        return self._torch_head.outcome(self.head, logits)

    def decide(self, mean: Array, thresholds: Array) -> Predictions:
        """Return the predictions of a mean outcome (N, …) and mean thresholds."""
        return self._torch_head.decide(self.head, mean, thresholds)

    @property
    def thresholds(self) -> list[float]:
        """The probability from which on a row is positive, or has each label."""
        return list(self.head.get("thresholds", [0.5]))


class Predictor:
    """Rows to predictions, averaged over the members.

    Attributes:
        settings: `inference.json`.
        text: how a row becomes a text; None for a model that was exported without its run.
        members: the models, loaded at the first use.
        tokenizer: likewise.
    """

    def __init__(self, directory: str | Path | None = None, *, device: str | None = None, text: str | None = None):
        """Read the settings of an exported directory.

        Args:
            directory: the exported directory; None: the one that this file is in.
            device: "cpu", "cuda", …; None: cuda where there is one.
            text: the column to read, for a model that was exported without its run.

        Raises:
            InferenceError: there is no such directory, or no such device.
        """
        self.directory = Path(__file__).parents[1] if directory is None else Path(directory)
        self.settings = read_json(self.directory / "inference.json")
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise InferenceError(f"device {device!r}: {str(error).splitlines()[0]}; fix: --device cpu") from None
        if text is not None and self.settings["text"] is not None:
            raise InferenceError("the export knows its text already; fix: leave --text out")
        self.text = _row_text({"first": text} if text is not None else self.settings["text"])

    @cached_property
    def members(self) -> list[Member]:
        """Every seed and fold."""
        return [Member(self.directory / name, self.device) for name in self.settings["members"]]

    @cached_property
    def tokenizer(self) -> Any:
        """The encoder's tokenizer, the same for all members."""
        directory = self.directory / self.settings["members"][0]
        with _quiet():
            return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)

    def predict(
        self, rows: Any, *, batch_size: int = 32, start: int = 0, progress: Callable[[int], object] | None = None
    ) -> Predictions:
        """Return predictions in the order of the rows; of a time series one forecast for each row with a history.

        Args:
            rows: dicts by column, a frame, a dict of columns, or texts alone where one column is read.
            batch_size: rows in one call of a model.
            start: the first row's number in messages.
            progress: called after each batch with its number of rows.

        Raises:
            InferenceError: a column is missing, a text is no text, or a series is too short.
        """
        if self.text is None:
            raise InferenceError("a model exported without its run knows no column; fix: Predictor(…, text='column')")
        table = self._table(rows)
        extra: dict[str, Array] = {}
        if self.settings["task"] == "time_series":
            table, extra = self._series(table)
        texts, pairs, _ = render(self.text, table, start)
        member = self.members[0]
        thresholds = np.mean([each.thresholds for each in self.members], axis=0)
        return member.decide(self._mean_outcome(texts, pairs, extra, batch_size, progress), thresholds)

    def _table(self, rows: Any) -> Table:
        if hasattr(rows, "columns") or isinstance(rows, Mapping):
            return Table(rows, "the data")
        rows = list(rows)
        if not rows:
            raise InferenceError("there are no rows")
        if all(isinstance(row, str) for row in rows):
            assert self.text is not None
            return Table({self.text.columns[0]: rows}, "the data")
        names = dict.fromkeys(name for row in rows for name in row)
        return Table({name: [row.get(name) for row in rows] for name in names}, "the data")

    @torch.inference_mode()
    def _mean_outcome(
        self,
        texts: list[str],
        pairs: list[str] | None,
        extra: Mapping[str, Array],
        batch_size: int,
        progress: Callable[[int], object] | None,
    ) -> Array:
        """Return the members' mean (N, …) in float64; batches hold rows of similar length."""
        has_types = self.settings.get("token_types", True)
        encoded = self.tokenizer(
            texts,
            pairs,
            truncation=True,
            max_length=self.settings["max_length"],
            padding=False,
            return_token_type_ids=has_types,
        )
        ids = encoded["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        parts = []
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch = self._padded({name: [encoded[name][row] for row in rows] for name in encoded})
            batch_extra = {name: array[rows] for name, array in extra.items()}
            parts.append(np.mean([member(batch, batch_extra) for member in self.members], axis=0))
            if progress is not None:
                progress(len(rows))
        outcome = np.concatenate(parts)
        restored = np.empty_like(outcome)
        restored[order] = outcome
        return restored

    def _padded(self, encoded: Mapping[str, list[list[int]]]) -> dict[str, torch.Tensor]:
        """Return (B, L) tensors, padded on the right: positions count from the left."""
        longest = max(map(len, encoded["input_ids"]))
        fillers = {"input_ids": self.tokenizer.pad_token_id or 0}
        return {
            name: torch.tensor(
                [row + [fillers.get(name, 0)] * (longest - len(row)) for row in rows], device=self.device
            )
            for name, rows in encoded.items()
        }

    def _series(self, table: Table) -> tuple[Table, dict[str, Array]]:
        """Return the rows that a forecast is made at, with their histories and times."""
        head = self.members[0].head
        window = max(head["window"], 1)
        if table.rows < window:
            raise InferenceError(
                f"a forecast reads {window} values, and the series has {table.rows}; fix: a longer one"
            )
        extra: dict[str, Array] = {}
        if head["window"]:
            column = table.column(self.settings["target"][0])
            try:
                values = np.array([np.nan if value is None else value for value in column.values], np.float64)
            except (TypeError, ValueError):
                raise InferenceError(f"column {column.name!r} has a value that is no number; fix: mend it") from None
            extra["history"] = np.lib.stride_tricks.sliding_window_view(values, window)
        if head["calendar"]:
            extra["made_at"] = times_in(table, self.settings["time"])[window - 1 :]
        rest: Columns = {str(name): list(table.column(name).values[window - 1 :]) for name in table.names}
        return Table(rest, table.what), extra


def render(text: RowText, table: Table, start: int = 0) -> tuple[list[str], list[str] | None, int]:
    """Return the texts of rows, the second texts (None: the rows are no pairs), and how many rows have no text.

    Raises:
        InferenceError: a column is missing, or a value is no text; `start` is the first row's number in the message.
    """
    rendered = text.render(table, table.what)
    for texts in (rendered.texts, rendered.pairs or []):
        for i, written in enumerate(texts):
            if re.search("[\ud800-\udfff]", written):
                raise InferenceError(
                    f"{table.what}: row {start + i} holds an unpaired surrogate, no text; fix: drop it"
                )
    return rendered.texts, rendered.pairs, rendered.empty


def times_in(table: Table, name: str) -> Array:
    """Return a column of dates, ISO strings or numbers as datetime64 or numbers.

    Raises:
        InferenceError: a time is missing, is none, or is not after the one before.
    """
    column = table.column(name)
    times = as_times(np.asarray(column.values), f"column {column.name!r}")
    if (times[1:] <= times[:-1]).any():
        raise InferenceError(f"column {column.name!r} must have times that increase; fix: sort by it")
    return times


def read_json(file: Path) -> Any:
    """Return what a JSON file of the export holds.

    Raises:
        InferenceError: it is not there.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise InferenceError(f"{file} is not there; fix: give a directory that mlxbert-export wrote") from None


def _row_text(settings: Mapping[str, Any] | None) -> RowText | None:
    if settings is None:
        return None
    parts: list[Any] = [settings["first"], settings.get("second")]
    first, second = (tuple(part) if isinstance(part, list) else part for part in parts)
    return RowText(first, second, settings.get("missing", "unknown"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and remarks: what matters is checked here."""
    logging = transformers.utils.logging
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
