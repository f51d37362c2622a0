"""The parity report as JUnit XML, which every CI system reads: a suite for each gate, a test case for each point."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from converter.parity.report import MAPPING, PRECISION, ParityReport, Point

# What XML 1.0 cannot hold even escaped; a file name may.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: ParityReport) -> str:
    """The XML document; the same report gives the same text (no times)."""
    root = ElementTree.Element("testsuites", name="mlxbert parity")
    for gate in (MAPPING, PRECISION):
        points = [point for point in report.points if point.gate == gate]
        failed = sum(not point.passed for point in points)
        counts = {"tests": str(len(points)), "failures": str(failed), "errors": "0", "skipped": "0", "time": "0"}
        suite = ElementTree.SubElement(root, "testsuite", {"name": f"parity.{gate}", **counts})
        _properties(suite, report)
        for point in points:
            _case(suite, point)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _properties(suite: ElementTree.Element, report: ParityReport) -> None:
    facts = {
        "source": report.provenance.source,
        "revision": report.provenance.revision or "",
        "source_converted_from": report.provenance.origin or "",
        "written_dtype": report.written_dtype,
        "seed": str(report.provenance.seed),
        **report.environment,
    }
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in facts.items():
        ElementTree.SubElement(properties, "property", name=name, value=_NOT_XML.sub("?", value))


def _case(suite: ElementTree.Element, point: Point) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=f"parity.{point.gate}.{point.check}", name=_NOT_XML.sub("?", point.name), time="0"
    )
    if point.failure is not None:
        message = _NOT_XML.sub("?", point.failure)
        ElementTree.SubElement(case, "failure", message=message, type="ParityFailure").text = message
    numbers = (
        f"max_abs={point.max_abs} max_rel={point.max_rel} limit={point.limit} cosine={point.cosine} "
        f"cosine_limit={point.cosine_limit} argmax_agreement={point.argmax_agreement} worst_probe={point.probe}"
    )
    ElementTree.SubElement(case, "system-out").text = _NOT_XML.sub("?", numbers)
