"""Write a parity report: `parity.json` into the converted directory, and the JUnit and HTML files on request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from converter.card.card import render_card
from converter.card.facts import card_facts
from converter.parity.gates import describe
from converter.parity.render import render_html, render_junit
from converter.parity.report import FORMAT_VERSION, NOT_COMPARED, ParityReport, ParityReportError
from converter.parity.report import NAME as PARITY
from converter.quantize.cost import QuantizationReport
from mlxbert.checkpoint import read_config
from mlxbert.files.output_file import NAME as MANIFEST
from mlxbert.files.output_file import (
    FileRecord,
    WriteError,
    json_text,
    read_manifest,
    replace_file,
    replace_listed_files,
)
from mlxbert.files.reading import expand_home

CARD = "README.md"

_PYTORCH = ("torch", "transformers")


def write_reports(
    report: ParityReport, converted: str | Path, *, junit: Path | None = None, html: Path | None = None
) -> list[str]:
    """Write the report, whether it passed or failed; return a line for each file, for the user.

    If the converted directory cannot be written (a read-only mount), its line says so: the verdict is known already.

    Raises:
        WriteError: `junit` or `html` cannot be written, or is a file of the model; nothing was written.
    """
    directory = expand_home(converted)
    _refuse_files_of_the_model(directory, junit, html)
    lines = []
    for path, render in ((junit, render_junit), (html, render_html)):
        if path is not None:
            path = expand_home(path)
            replace_file(path, render(report).encode(), fix="give a path that can be written")
            lines.append(f"Written: {path}")
    if (reference := _passed_reference(directory, report)) is not None:
        failed = f"this failure is against {report.provenance.source}"
        return [*lines, f"Not written: {directory / PARITY}: it passes against {reference}, and {failed}; it stays"]
    try:
        files = {PARITY: report.to_json().encode(), **_card(directory, report)}
        replace_listed_files(directory, files, fix="keep the report with --html or --junit")
        lines.append(f"Written: {directory / PARITY}")
    except WriteError as error:
        lines.append(f"Not written: {error}")
    return lines


def _refuse_files_of_the_model(directory: Path, *reports: Path | None) -> None:
    names = {MANIFEST, PARITY, *(read_manifest(directory) or {})}
    files = {(directory / name).resolve(): name for name in names}
    for path in reports:
        if path is not None and (name := files.get(expand_home(path).resolve())) is not None:
            raise WriteError(f"{path}: is {name} of the model, not a report; fix: give another name")


def _passed_reference(directory: Path, report: ParityReport) -> str | None:
    """Return the reference of the report that is there, if it passes and the new one fails against another.

    A wrong --reference must not replace a report that passes.
    """
    if report.passed:
        return None
    try:
        earlier = ParityReport.read(directory)
    except ParityReportError:  # damaged: it is worth nothing
        return None
    if earlier is None or not earlier.passed or earlier.provenance.source == report.provenance.source:
        return None
    return earlier.provenance.source


def _card(directory: Path, report: ParityReport) -> dict[str, bytes]:
    """Return the model card with this report's numbers; nothing if somebody edited the card of the conversion."""
    card = directory / CARD
    records = read_manifest(directory) or {}
    listed = records.get(CARD)
    if listed is None or not card.is_file() or FileRecord.of(card.read_bytes()) != listed:
        return {}
    # The name is the first heading: the directory may have another name since, or be in the Hub's cache.
    titles = [line[2:] for line in card.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    config, cost = read_config(directory), report.quantization
    facts = card_facts(directory, config, report, name=titles[0], records=records, quantization=cost)
    return {CARD: render_card(facts).encode()}


def cost_json(quantization: QuantizationReport, *, why: str, weights: Mapping[str, str]) -> str:
    """Return a `parity.json` with the cost of a quantization alone; `ParityReport` refuses to read a verdict from it.

    Args:
        quantization: the packing, and its cost on held-out text.
        why: why nothing was compared.
        weights: name -> sha256 of the weight files.
    """
    environment = {name: value for name, value in describe("not checked").items() if name not in _PYTORCH}
    content = {
        "format_version": FORMAT_VERSION,
        "passed": None,  # neither passed nor failed, and false to a reader that looks at nothing else
        NOT_COMPARED: why,
        "weights": dict(weights),
        "environment": environment,
        "quantization": quantization.to_dict(),
    }
    return json_text(content, ensure_ascii=False, allow_nan=False)
