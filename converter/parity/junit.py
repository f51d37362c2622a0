"""The parity report as JUnit XML, which every CI system reads: a suite for each gate, a test case for each point.

Of a quantized model the second suite has a case for each packed matrix and for each list of texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree

from converter.parity.report import MAPPING, PRECISION, ParityReport, Point
from converter.quantize.cost import QuantizationReport

QUANTIZATION = "quantization"

# What XML 1.0 cannot hold even escaped; a file name may.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: ParityReport) -> str:
    """The XML document, each case with the seconds that it took; a part that was not compared is a skipped case."""
    root = ElementTree.Element("testsuites", name="mlxbert parity")
    suites = {
        gate: [_of_point(point) for point in report.points if point.gate == gate] for gate in (MAPPING, PRECISION)
    }
    if report.quantization is not None:
        suites = {MAPPING: suites[MAPPING], QUANTIZATION: _of_quantization(report.quantization)}
    suites["scope"] = [Case("scope", part.name, skipped=f"not compared: {part.detail}") for part in report.uncompared]
    total = 0.0
    for name, cases in suites.items():
        if not cases and name == "scope":
            continue
        seconds = sum(case.seconds or 0.0 for case in cases)
        total += seconds
        counts = {
            "tests": len(cases),
            "failures": sum(case.failure is not None for case in cases),
            "errors": 0,
            "skipped": sum(case.skipped is not None for case in cases),
        }
        attributes = {key: str(count) for key, count in counts.items()} | {"time": f"{seconds:.6f}"}
        suite = ElementTree.SubElement(root, "testsuite", {"name": f"parity.{name}", **attributes})
        _properties(suite, report)
        for case in cases:
            _add(suite, case)
    root.set("time", f"{total:.6f}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


@dataclass(frozen=True)
class Case:
    """One test case; `check` is the last part of its class name."""

    check: str
    name: str
    seconds: float | None = None
    failure: str | None = None
    skipped: str | None = None
    numbers: str = ""


def _of_point(point: Point) -> Case:
    numbers = (
        f"max_abs={point.max_abs} max_rel={point.max_rel} limit={point.limit} cosine={point.cosine} "
        f"cosine_limit={point.cosine_limit} argmax_agreement={point.argmax_agreement} worst_probe={point.probe}"
    )
    return Case(f"{point.gate}.{point.check}", point.name, point.seconds, point.failure, numbers=numbers)


def _of_quantization(cost: QuantizationReport) -> list[Case]:
    """A case for each packed matrix, and one for each list of texts."""
    cases = []
    for layer in cost.layers:
        numbers = f"error={layer.error} limit={layer.limit}"
        cases.append(Case(f"{QUANTIZATION}.packing", layer.path, layer.seconds, layer.failure, numbers=numbers))
    for item in cost.quality:
        numbers = (
            f"cosine_mean={item.cosine_mean} cosine_min={item.cosine_min} rank_correlation={item.rank_correlation} "
            f"limits={cost.limits}"
        )
        failure = "; ".join(item.failures(cost.limits)) or None
        cases.append(Case(f"{QUANTIZATION}.cost", item.text, item.seconds, failure, numbers=numbers))
    return cases


def _properties(suite: ElementTree.Element, report: ParityReport) -> None:
    facts = {
        "source": report.provenance.source,
        "revision": report.provenance.revision or "",
        "source_converted_from": report.provenance.origin or "",
        "verified": str(report.verified).lower(),
        "compared": ", ".join(report.compared),
        "not_compared": report.left_out,
        "written_dtype": report.written_dtype,
        "seed": str(report.provenance.seed),
        **report.environment,
    }
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in facts.items():
        ElementTree.SubElement(properties, "property", name=name, value=_NOT_XML.sub("?", value))


def _add(suite: ElementTree.Element, case: Case) -> None:
    attributes = {"classname": f"parity.{case.check}", "name": _NOT_XML.sub("?", case.name)}
    if case.seconds is not None or case.skipped is not None:
        attributes["time"] = f"{case.seconds or 0.0:.6f}"
    element = ElementTree.SubElement(suite, "testcase", attributes)
    if case.failure is not None:
        message = _NOT_XML.sub("?", case.failure)
        ElementTree.SubElement(element, "failure", message=message, type="ParityFailure").text = message
    if case.skipped is not None:
        ElementTree.SubElement(element, "skipped", message=_NOT_XML.sub("?", case.skipped))
    if case.numbers:
        ElementTree.SubElement(element, "system-out").text = _NOT_XML.sub("?", case.numbers)
