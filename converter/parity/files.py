"""Write a parity report: `parity.json` into the converted directory, and the JUnit and HTML files asked for."""

from __future__ import annotations

from pathlib import Path

from converter.card.card import render_card
from converter.card.facts import card_facts
from converter.parity.render import render_html, render_junit
from converter.parity.report import NAME as PARITY
from converter.parity.report import ParityReport, ReportError
from mlxbert.checkpoint import read_config
from mlxbert.files.output_file import NAME, FileRecord, WriteError, manifest_bytes, read_manifest, replace_file
from mlxbert.files.reading import expand_home

CARD = "README.md"


def write_reports(
    report: ParityReport, converted: str | Path, *, junit: Path | None = None, html: Path | None = None
) -> list[str]:
    """Write the report, pass or fail; returns a line for each file, for the user.

    A converted directory that cannot be written (a read-only mount) costs a line, since the answer is known and shown;
    a file that was asked for and cannot be written is an error.

    Raises:
        WriteError: `junit` or `html` cannot be written, or is a file of the model; nothing was written.
    """
    _require_no_file_of_the_model(expand_home(converted), junit, html)
    lines = []
    for path, render in ((junit, render_junit), (html, render_html)):
        if path is not None:
            path = expand_home(path)
            data = render(report).encode()
            replace_file(path, data, fix="give a path that can be written")
            lines.append(f"Written: {path}")
    directory = expand_home(converted)
    if (proven := _proven_by_another(directory, report)) is not None:
        found = f"this failure is against {report.provenance.source}"
        return [*lines, f"Not written: {directory / PARITY}: it passes against {proven}, and {found}; it stays"]
    try:
        _update(directory, {PARITY: report.to_json().encode(), **_card(directory, report)})
        lines.append(f"Written: {directory / PARITY}")
    except WriteError as error:
        lines.append(f"Not written: {error}")
    return lines


def _require_no_file_of_the_model(directory: Path, *reports: Path | None) -> None:
    names = {NAME, PARITY, *(read_manifest(directory) or {})}
    files = {(directory / name).resolve(): name for name in names}
    for path in reports:
        if path is not None and (name := files.get(expand_home(path).resolve())) is not None:
            raise WriteError(f"{path}: is {name} of the model, not a report; fix: give another name")


def _proven_by_another(directory: Path, report: ParityReport) -> str | None:
    """The reference of a report that passes, where this one fails against another: a wrong --reference is no news."""
    if report.passed:
        return None
    try:
        earlier = ParityReport.read(directory)
    except ReportError:  # damaged: nothing that is worth keeping
        return None
    if earlier is None:
        return None
    same = earlier.provenance.source == report.provenance.source
    return earlier.provenance.source if earlier.passed and not same else None


def _card(directory: Path, report: ParityReport) -> dict[str, bytes]:
    """The model card with this report's numbers; none where somebody has edited the one that the conversion wrote."""
    card = directory / CARD
    records = read_manifest(directory) or {}
    listed = records.get(CARD)
    if listed is None or not card.is_file() or FileRecord.of(card.read_bytes()) != listed:
        return {}
    config = read_config(directory)
    # The title is the first heading: a directory may have been renamed since, or lie in the Hub's cache.
    titles = [line[2:] for line in card.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    cost = report.quantization
    facts = card_facts(directory, config, report, name=titles[0], records=records, quantization=cost)
    return {CARD: render_card(facts).encode()}


def _update(directory: Path, files: dict[str, bytes]) -> None:
    """Replace files and their lines in the manifest, if there is one.

    The lines are taken out first and put back last: killed in between, the directory has files too many for its
    manifest, which is harmless, and never one that the manifest describes wrongly, which looks like damage.
    """
    fix = "keep the report with --html or --junit"
    listed = read_manifest(directory)
    if listed is not None:
        listed = {name: record for name, record in listed.items() if name not in files}
        replace_file(directory / NAME, manifest_bytes(listed), fix=fix, follow_links=False)
    for name, data in files.items():
        replace_file(directory / name, data, fix=fix, follow_links=False)
    if listed is not None:
        listed |= {name: FileRecord.of(data) for name, data in files.items()}
        replace_file(directory / NAME, manifest_bytes(listed), fix=fix, follow_links=False)
