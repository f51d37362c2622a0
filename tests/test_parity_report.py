"""The report as data, and as a person or a CI system reads it."""

from __future__ import annotations

import getpass
import io
import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from converter.parity.environment import describe
from converter.parity.html import render_html
from converter.parity.junit import render_junit
from converter.parity.report import (
    CUMULATIVE,
    LOCAL,
    MAPPING,
    PADDING,
    PRECISION,
    ParityReport,
    Point,
    Provenance,
    ReportError,
)
from converter.parity.table import parity_table, verdict

NAMES = ("embeddings", *(f"encoder.layer.{i}" for i in range(12)), "pooler")


def point(gate: str, check: str, name: str, max_rel: float | None = 1e-7, problem: str | None = None) -> Point:
    limit = 2e-2 if gate == PRECISION else 5e-6 if check == LOCAL else 2e-5
    missing = max_rel is None
    return Point(
        gate=gate,
        check=check,
        name=name,
        limit=limit,
        cosine_limit=0.9999 if gate == PRECISION else None,
        max_abs=max_rel,
        max_rel=max_rel,
        cosine=None if missing else 0.99999,
        argmax_agreement=None if missing else 1.0,
        probe="random ids, length 7",
        problem=problem,
    )


def report(**changed: Point) -> ParityReport:
    """A report of a twelve-layer model that passes; `changed` replaces points by "gate/check/name"."""
    checks = ((MAPPING, CUMULATIVE), (MAPPING, LOCAL), (MAPPING, PADDING), (PRECISION, CUMULATIVE))
    points = {(gate, check, name): point(gate, check, name) for gate, check in checks for name in NAMES}
    points |= {(new.gate, new.check, new.name): new for new in changed.values()}
    return ParityReport(
        model_type="bert",
        written_dtype="float16",
        compute_dtype="float32",
        reference_class="BertModel",
        unexpected=("cls.predictions.bias",),
        provenance=Provenance("org/bert", "0" * 40, {"model.safetensors": "ab" * 32}, "the source", 0, ("a note",)),
        probes=("random ids, length 7 (2 × 7)",),
        environment={"mlx": "0.32", "torch": "2.13", "transformers": "5", "device": "cpu", "platform": "Linux x86_64"},
        points=tuple(points.values()),
    )


def failing() -> ParityReport:
    return report(
        wrong=point(MAPPING, LOCAL, "encoder.layer.3", 4e-4),
        after=point(MAPPING, CUMULATIVE, "encoder.layer.3", 4e-4),
        nan=point(PRECISION, CUMULATIVE, "pooler", None, "NaN in MLX"),
    )


def test_the_verdict_follows_from_the_points() -> None:
    assert report().passed
    assert report().failures == []
    assert report().first_diverging_layer is None
    assert failing().failures == [
        "mapping gate, cumulative: encoder.layer.3: error 4.0e-04 > 2e-05 (random ids, length 7)",
        "mapping gate, layer-local: encoder.layer.3: error 4.0e-04 > 5e-06 (random ids, length 7)",
        "precision gate, cumulative: pooler: NaN in MLX (random ids, length 7)",
    ]
    assert failing().first_diverging_layer == "encoder.layer.3"
    assert not failing().passed


def test_layers_that_are_right_alone_and_wrong_together_are_named_by_the_whole_model() -> None:
    changed = report(after=point(MAPPING, CUMULATIVE, "encoder.layer.5", 1e-4))
    assert changed.first_diverging_layer == "encoder.layer.5"


def test_a_nan_a_missing_number_and_a_cosine_below_its_limit_fail() -> None:
    assert not point(MAPPING, LOCAL, "pooler", float("nan")).passed
    assert not point(MAPPING, LOCAL, "pooler", None).passed
    turned = replace(point(PRECISION, CUMULATIVE, "pooler"), cosine=0.5)
    assert turned.failure == ("precision gate, cumulative: pooler: cosine 0.500000 < 0.9999 (random ids, length 7)")
    assert not replace(turned, cosine=float("nan")).passed


@pytest.mark.parametrize("gate", [MAPPING, PRECISION])
def test_a_gate_that_compared_nothing_has_not_passed(gate: str) -> None:
    whole = report()
    half = replace(whole, points=tuple(point for point in whole.points if point.gate != gate))
    assert not half.passed
    assert not half.gate_passed(gate)
    assert not replace(whole, points=()).passed


def test_json_comes_back_as_it_was_and_leads_with_the_verdict() -> None:
    for each in (report(), failing()):
        text = each.to_json()
        assert ParityReport.from_json(text) == each
        assert list(json.loads(text))[:2] == ["format_version", "passed"]
        assert json.loads(text)["passed"] is each.passed


def test_an_edited_verdict_is_not_believed() -> None:
    data = json.loads(failing().to_json()) | {"passed": True, "failures": [], "first_diverging_layer": None}
    assert not ParityReport.from_json(json.dumps(data)).passed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "parity.json is not a parity report (JSONDecodeError"),
        ("[]", "parity.json is not a parity report (TypeError"),
        ("{}", "parity.json is not a parity report (KeyError"),
        ('{"format_version": 99}', "parity.json has format version 99, this mlxbert reads 1; fix: run mlxbert-verify"),
        ('{"format_version": 1}', "parity.json is damaged (KeyError"),
        (
            '{"format_version": 1, "passed": true, "not_compared": "no torch", "points": []}',
            "parity.json compares nothing with PyTorch (no torch); fix: run mlxbert-verify",
        ),
    ],
)
def test_a_damaged_report_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ReportError) as error:
        ParityReport.from_json(text)
    assert str(error.value).startswith(message)
    assert "fix: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_report_without_the_newest_field_is_read() -> None:
    data = json.loads(report().to_json())
    del data["provenance"]["origin"]
    assert ParityReport.from_json(json.dumps(data)) == report()


def test_a_reference_that_is_a_conversion_itself_is_said_to_be_everywhere() -> None:
    each = replace(report(), provenance=replace(report().provenance, origin="team/bert"))
    words = "org/bert alone, itself a conversion of team/bert, which was not compared"
    assert each.provenance.reservation == words
    assert verdict(each).plain.startswith(f"PASS  the same model as {words} (")
    assert "itself a conversion of team/bert, which was not compared" in render_html(each)
    assert 'name="source_converted_from" value="team/bert"' in render_junit(each)
    assert report().provenance.reservation is None
    assert "itself a conversion" not in render_html(report())


def test_the_table_fits_80_columns_and_says_what_failed() -> None:
    for each, last in (
        (report(), "PASS  the same model as org/bert"),
        (failing(), "FAIL  against org/bert: first"),
    ):
        console = Console(file=(shown := io.StringIO()), width=80)
        console.print(parity_table(each))
        lines = shown.getvalue().splitlines()
        assert max(map(len, lines)) <= 80
        assert any(line.startswith(last) for line in lines)
        for name in NAMES:
            rows = [line for line in lines if line.strip().startswith(f"{name} ")]
            assert len(rows) == 2
            bad = each is not report() and any(f": {name}:" in line for line in each.failures)
            assert any(row.rstrip().endswith("FAIL") for row in rows) == bad
    assert "first wrong at encoder.layer.3" in " ".join(" ".join(lines).split())


def test_a_name_with_markup_is_shown_as_it_is() -> None:
    each = report()
    each = replace(each, provenance=replace(each.provenance, source="[red]odd[/red]"))
    console = Console(file=(shown := io.StringIO()), width=80)
    console.print(parity_table(each))
    assert "[red]odd[/red]" in shown.getvalue()


def test_junit_has_a_case_for_each_point_and_says_which_failed() -> None:
    root = ElementTree.fromstring(render_junit(failing()))
    assert root.tag == "testsuites"
    suites = {suite.get("name"): suite for suite in root}
    assert set(suites) == {"parity.mapping", "parity.precision"}
    for name, failures in (("parity.mapping", 2), ("parity.precision", 1)):
        suite = suites[name]
        cases = suite.findall("testcase")
        assert suite.get("tests") == str(len(cases))
        assert suite.get("failures") == str(failures) == str(len(suite.findall("testcase/failure")))
        assert (suite.get("errors"), suite.get("skipped")) == ("0", "0")
        assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases)
    (case,) = [
        case
        for case in suites["parity.mapping"].findall("testcase")
        if (case.get("classname"), case.get("name")) == ("parity.mapping.layer-local", "encoder.layer.3")
    ]
    failure = case.find("failure")
    assert failure is not None
    assert failure.get("message") == failing().failures[1]


def test_junit_and_html_survive_any_name() -> None:
    each = report()
    source = "<script>alert('&')</script>\x00\x1b\ud800 ü"
    each = replace(each, provenance=replace(each.provenance, source=source))
    values = [item.get("value") or "" for item in ElementTree.fromstring(render_junit(each)).iter("property")]
    assert "<script>alert('&')</script>??? ü" in values
    assert "<script" not in render_html(each)
    assert "&lt;script&gt;" in render_html(each)


def test_the_page_is_self_contained_and_says_what_is_wrong() -> None:
    for each in (report(), failing()):
        page = render_html(each)
        assert not re.search(r"https?://|<link|<script|<img|src=|url\(|@import", page)
        assert page.count("<svg") == 4
        assert f"<title>Parity {'PASS' if each.passed else 'FAIL'}: org/bert</title>" in page
        assert "limit 2.0e-05" in page
        assert "limit 5.0e-06" in page
        for name in NAMES:
            assert f"<code>{name}</code>" in page
    assert "the first module that is wrong is\n<code>encoder.layer.3</code>" in page
    assert "encoder.layer.3: error 4.0e-04 &gt; 5e-06" in page
    assert 'class="cross"' in page  # the pooler's NaN
    assert page == render_html(failing())


def test_the_plots_are_well_formed_and_inside_their_frame() -> None:
    for text in re.findall(r"<svg.*?</svg>", render_html(failing()), flags=re.DOTALL):
        svg = ElementTree.fromstring(text)
        _, _, width, height = map(float, (svg.get("viewBox") or "").split())
        circles = svg.findall("circle")
        assert len(circles) + len(svg.findall("path")) >= len(NAMES)
        for circle in circles:
            assert 0 < float(circle.get("cx") or -1) < width
            assert 0 < float(circle.get("cy") or -1) < height


def test_a_report_without_points_still_renders_as_a_failure() -> None:
    empty = replace(report(), points=())
    assert ">FAIL</span>" in render_html(empty)
    ElementTree.fromstring(render_junit(empty))
    Console(file=io.StringIO()).print(parity_table(empty))


def test_the_environment_names_no_host_user_or_path() -> None:
    facts = describe("off")
    assert facts["tf32"] == "off"
    assert facts["device"] == "cpu" or facts["device"].startswith("gpu")
    text = json.dumps(facts)
    for private in (socket.gethostname(), str(Path.cwd()), str(Path.home())):
        assert private not in text
    assert getpass.getuser() not in facts.values()
