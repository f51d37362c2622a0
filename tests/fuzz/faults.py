"""Ten faults that are planted in the product, one a kind, to see that the fuzz suite finds each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Fault:
    """A fault: which target finds it, by a finding that begins so, and what it puts in the place of what."""

    target: str
    finding: str
    plant: Callable[[], Any]


def _raw_key_error() -> Any:
    """A reader that believes the header's fields to be there."""
    import converter.readers.safetensors as module

    return mock.patch.object(module, "_parse_header", lambda path, raw: __import__("json").loads(raw.decode("utf-8")))


def _trusts_sizes() -> Any:
    """A reader of arrays that allocates what a header claims before it looks at the file."""
    import mlxbert.files.reading as module

    honest = module.parse_json

    def parse(path: Path, *args: Any, **kwargs: Any) -> Any:
        value = honest(path, *args, **kwargs)
        size = value.get("vocab_size") if isinstance(value, dict) else None
        if isinstance(size, int) and size > 10**6:
            bytearray(size * 32)
        return value

    return mock.patch.object(module, "parse_json", parse)


def _opens_anything() -> Any:
    """A reader that opens pipes and devices as if they were files."""
    import mlxbert.files.reading as module

    return mock.patch.object(
        module, "open_regular", lambda path, error: Path(path).open("rb", buffering=0) if Path(path).exists() else None
    )


def _follows_names() -> Any:
    """An output directory that writes wherever a name leads."""
    from mlxbert.files.output_directory import OutputDirectory

    honest = OutputDirectory.copy

    def copy(self: Any, name: str, source: Path) -> None:
        honest(self, name, source)
        (self.path.parents[1] / "outside" / "copied").write_bytes(b"x")

    return mock.patch.object(OutputDirectory, "copy", copy)


def _runs_pickles() -> Any:
    """A reader of .bin files that unpickles them."""
    import pickle

    import converter.source as source

    honest = source.read_weights

    def read(path: Path, *args: Any, **kwargs: Any) -> Any:
        if Path(path).suffix == ".bin":
            try:
                import zipfile

                with zipfile.ZipFile(path) as archive:
                    name = next(one for one in archive.namelist() if one.endswith("data.pkl"))
                    pickle.loads(archive.read(name))
            except Exception:
                pass
        return honest(path, *args, **kwargs)

    return mock.patch.object(source, "read_weights", read)


def _prints_names() -> Any:
    """Messages that show names as they are."""
    import heads.errors as module

    return mock.patch.object(module.MLXBertError, "__str__", Exception.__str__)


def _swallows_rows() -> Any:
    """A reader of tables that lets a lone quote swallow what follows."""
    import pandas

    import mlxbert.data.reading as module

    honest = module.read_data

    def read(path: Any, *args: Any, **kwargs: Any) -> Any:
        import dataclasses

        data = honest(path, *args, **kwargs)
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        if '"' not in text or not str(path).endswith(".tsv"):
            return data
        frame = pandas.read_csv(path, sep="\t", dtype=str, on_bad_lines="skip", engine="python")
        return dataclasses.replace(data, frame=frame)

    return mock.patch.object(module, "read_data", read)


def _believes_runs() -> Any:
    """A run's file whose fields are taken to have their types."""
    from mlxbert.runs import run as module

    def members(self: Any) -> list[Path]:
        return [self.path / "members" / name for name in self.info["folds"]["count"]]

    return mock.patch.object(module.Run, "members", property(members))


def _trusts_the_hub() -> Any:
    """A client that takes an answer's fields to be there."""
    import mlxbert.hub as module

    honest = module.snapshot

    def snapshot(*args: Any, **kwargs: Any) -> Any:
        import huggingface_hub

        info = huggingface_hub.HfApi().model_info(args[0])
        len(info.siblings), info.sha.lower()
        return honest(*args, **kwargs)

    return mock.patch.object(module, "snapshot", snapshot)


def _replaces_devices() -> Any:
    """An atomic write that puts a file in the place of whatever was there, through links too."""
    import mlxbert.files.output_file as module

    def replace(path: Path, data: bytes) -> None:
        target = Path(os.path.realpath(path))
        if target.is_fifo():
            time.sleep(60)
        target.write_bytes(data)

    return mock.patch.object(module, "replace_file", replace)


FAULTS: dict[str, Fault] = {
    "a header whose fields are believed": Fault("header", "raw exception", _raw_key_error),
    "memory for what a header claims": Fault("header", "memory", _trusts_sizes),
    "a pipe that is waited for": Fault("checkpoint", "hang", _opens_anything),
    "a file written outside": Fault("checkpoint", "wrote outside", _follows_names),
    "a pickle that is run": Fault("checkpoint", "ran code", _runs_pickles),
    "names that steer the terminal": Fault("header", "control characters", _prints_names),
    "rows that a quote swallows": Fault("cells", "wrong result", _swallows_rows),
    "a run whose fields are believed": Fault("run", "raw exception", _believes_runs),
    "an answer whose fields are believed": Fault("hub", "raw exception", _trusts_the_hub),
    "an output that is no file replaced": Fault("output", "wrote outside", _replaces_devices),
}
