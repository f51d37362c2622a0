"""Write a parity report: `parity.json` into the converted directory, and the JUnit and HTML files asked for."""

from __future__ import annotations

import os
from pathlib import Path

from converter.parity.html import render_html
from converter.parity.junit import render_junit
from converter.parity.report import ParityReport
from mlxbert.writer.manifest import NAME, manifest_bytes, read_manifest
from mlxbert.writer.output_file import FileRecord, WriteError, write_errors

PARITY = "parity.json"


def write_reports(
    report: ParityReport, converted: str | Path, *, junit: Path | None = None, html: Path | None = None
) -> list[str]:
    """Write the report, pass or fail; returns a line for each file, for the user.

    A converted directory that cannot be written (a read-only mount) costs a line, since the answer is known and shown;
    a file that was asked for and cannot be written is an error.

    Raises:
        WriteError: `junit` or `html` cannot be written.
    """
    lines = []
    for path, render in ((junit, render_junit), (html, render_html)):
        if path is not None:
            data = render(report).encode()
            with write_errors(path, len(data)):
                path.parent.mkdir(parents=True, exist_ok=True)
                _replace(path, data)
            lines.append(f"Written: {path}")
    directory = Path(converted)
    try:
        _update(directory, report.to_json().encode())
        lines.append(f"Written: {directory / PARITY}")
    except WriteError as error:
        lines.append(f"Not written: {error}")
    return lines


def _update(directory: Path, data: bytes) -> None:
    """Replace `parity.json` and its line in the manifest, if there is one.

    The line is taken out first and put back last: killed in between, the directory has a file too many for its
    manifest, which is harmless, and never one that the manifest describes wrongly, which looks like damage.
    """
    with write_errors(directory / PARITY, len(data)):
        listed = read_manifest(directory)
        if listed is not None:
            listed.pop(PARITY, None)
            _replace(directory / NAME, manifest_bytes(listed))
        _replace(directory / PARITY, data)
        if listed is not None:
            _replace(directory / NAME, manifest_bytes(listed | {PARITY: FileRecord.of(data)}))


def _replace(path: Path, data: bytes) -> None:
    """Write beside `path`, sync, rename onto it: whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
