"""The proof of a source that is a conversion itself: what is made of it inherits the comparison that it passed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from converter.parity.report import NAME, ParityReport, Proof, ReportError
from mlxbert.errors import printable
from mlxbert.files.manifest import read_manifest
from mlxbert.files.reading import sha256_hex

if TYPE_CHECKING:
    from converter.source import Source


def origin_of(source: Source) -> str | None:
    """What a source that mlxbert had converted was made from; of one that it trained, or of any other, None."""
    block = source.config.get("mlxbert")
    if not isinstance(block, dict) or "head" in block or not isinstance(block.get("source"), str):
        return None
    revision = block.get("revision")
    return printable(f"{block['source']} at {revision}" if revision else block["source"])


def inherited_proof(source: Source) -> Proof | None:
    """The comparison that the source's own files passed; None where it is no conversion, or there is none of them.

    It has to be whole (nothing that is shipped was left out), in a `parity.json` that the manifest lists, and of the
    very weights that lie there now, by their SHA-256.
    """
    if origin_of(source) is None:
        return None
    try:
        report = ParityReport.read(source.directory)
        digest = sha256_hex(source.directory / NAME, ReportError)
    except ReportError:  # damaged, or of another version: no proof, and the report of this conversion says so
        return None
    records = read_manifest(source.directory) or {}
    if report is None or digest is None or not report.verified or report.provenance.reservation is not None:
        return None
    if NAME not in records or records[NAME].sha256 != digest:
        return None
    compared = report.provenance.weights
    if {file.name for file in source.weight_files} != set(compared):
        return None
    if any(_sha256(file) != compared[file.name] for file in source.weight_files):
        return None
    name, revision = report.provenance.compared_with
    return Proof(name, revision, report.written_dtype, digest)


def _sha256(file: Path) -> str | None:
    return sha256_hex(file, ReportError)
