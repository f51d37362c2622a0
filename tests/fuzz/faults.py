"""Ten faults that are planted in the product, one a kind, to see that the fuzz suite finds each."""

from __future__ import annotations

import dataclasses
import json
import pickle
import stat
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

Patch = AbstractContextManager[Any]


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        target: which finds it.
        finding: how what is found begins.
        plant: puts the fault in the place of the right code.
        first: the first seed to try; those before it are known to find nothing.
    """

    target: str
    finding: str
    plant: Callable[[], Patch]
    first: int = 0


def _offsets_believed() -> Patch:
    """A reader that takes a header's offsets to be two numbers."""
    from converter.readers import safetensors

    def offsets(path: Path, key: str, claim: Any) -> tuple[int, int]:
        start, end = claim["data_offsets"]
        return start, end

    return mock.patch.object(safetensors, "_offsets", offsets)


def _sizes_believed() -> Patch:
    """A configuration that takes the memory that it names before it looks at the names."""
    from mlxbert.models.bert import BertConfig

    honest = BertConfig.from_hf

    def from_hf(config: Any, *args: Any, **kwargs: Any) -> BertConfig:
        for value in config.values():
            if isinstance(value, int) and 2**30 < value < 2**60:
                bytearray(4 * value)
        return honest(config, *args, **kwargs)

    return mock.patch.object(BertConfig, "from_hf", from_hf)


def _pipes_opened() -> Patch:
    """A reader that opens a pipe as if it were a file."""
    from mlxbert.files import reading

    def require(path: Path, mode: int, error: Any) -> None:
        if stat.S_ISFIFO(mode):
            path.open("rb").close()

    return mock.patch.object(reading, "_require_regular", require)


def _names_followed() -> Patch:
    """An output directory that writes beside itself."""
    from mlxbert.files.output_directory import OutputDirectory

    honest = OutputDirectory.copy

    def copy(self: OutputDirectory, name: str, source: Path) -> None:
        honest(self, name, source)
        (self.path.parents[1] / "outside" / "copied").write_bytes(b"x")

    return mock.patch.object(OutputDirectory, "copy", copy)


def _pickles_run() -> Patch:
    """A reader of .bin files that unpickles them."""
    from converter import source

    honest = source.read_weights

    def read(path: Path, *args: Any, **kwargs: Any) -> Any:
        with suppress(Exception), zipfile.ZipFile(path) as archive:
            name = next(one for one in archive.namelist() if one.endswith("data.pkl"))
            pickle.loads(archive.read(name))
        return honest(path, *args, **kwargs)

    return mock.patch.object(source, "read_weights", read)


def _names_printed() -> Patch:
    """Messages that show names as they are."""
    from heads import errors

    return mock.patch.object(errors, "_escape", lambda character: character)


def _rows_swallowed() -> Patch:
    """A reader of tables that lets a lone quote swallow what follows."""
    import pandas

    from mlxbert.data import reading

    honest = reading.read_data

    def read(path: Any, *args: Any, **kwargs: Any) -> Any:
        data = honest(path, *args, **kwargs)
        with suppress(Exception):
            frame = pandas.read_csv(path, sep="\t", dtype=str, on_bad_lines="skip", engine="python")
            data = dataclasses.replace(data, frame=frame)
        return data

    return mock.patch.object(reading, "read_data", read)


def _runs_believed() -> Patch:
    """A run whose fields are taken to have their types."""
    from mlxbert.runs.run import Run

    honest = Run.open

    def open_run(path: str | Path) -> Run:
        info = json.loads((Path(path) / "run.json").read_text())
        assert info["folds"]["count"] + 1 > len(" ".join(info["members"])) - 10**9
        return honest(path)

    return mock.patch.object(Run, "open", open_run)


def _answers_believed() -> Patch:
    """A download that takes an answer's fields to be there."""
    from mlxbert import hub

    honest = hub.snapshot

    def snapshot(repo_id: str, *args: Any, **kwargs: Any) -> Any:
        from huggingface_hub import HfApi

        info = HfApi().model_info(repo_id)
        assert len(info.siblings or []) > 0
        return honest(repo_id, *args, **kwargs)

    return mock.patch.object(hub, "snapshot", snapshot)


def _outputs_replaced() -> Patch:
    """A write that puts a file in the place of whatever is there."""
    from mlxbert.files import output_file

    def replace(path: Path, data: bytes, **options: Any) -> None:
        temporary = path.with_name("temporary")
        temporary.write_bytes(data)
        temporary.replace(path)

    return mock.patch.object(output_file, "replace_file", replace)


FAULTS: dict[str, Fault] = {
    "a header whose fields are believed": Fault("header", "raw exception", _offsets_believed),
    "memory for what a configuration claims": Fault("header", "memory", _sizes_believed, 130),
    "a pipe that is waited for": Fault("run", "hang", _pipes_opened, 70),
    "a file written outside": Fault("checkpoint", "wrote outside", _names_followed),
    "a pickle that is run": Fault("checkpoint", "ran code", _pickles_run),
    "names that steer the terminal": Fault("header", "control characters", _names_printed, 160),
    "rows that a quote swallows": Fault("cells", "wrong result", _rows_swallowed),
    "a run whose fields are believed": Fault("run", "raw exception", _runs_believed, 100),
    "an answer whose fields are believed": Fault("hub", "raw exception", _answers_believed, 20),
    "an output that is no file replaced": Fault("output", "wrong result", _outputs_replaced),
}
