"""The report as data, and as a person or a CI system reads it."""

from __future__ import annotations

import getpass
import io
import itertools
import json
import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from converter.parity.gates import describe
from converter.parity.render import Line, Mark, log_plot, parity_table, render_html, render_junit, verdict
from converter.parity.report import (
    CUMULATIVE,
    LOCAL,
    MAPPING,
    PADDING,
    PRECISION,
    ParityReport,
    ParityReportError,
    Part,
    Point,
    Proof,
    Provenance,
)
from converter.quantize.cost import TEXT_LIMITS, KeptTensor, LayerReport, Quality, QuantizationReport

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
        seconds=0.25,
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
        scope=(Part("encoder", True, "with PyTorch's BertModel"), Part("pooler", True, "with PyTorch's pooler")),
    )


def partial() -> ParityReport:
    """One that passes, of a directory that ships a head which was not compared."""
    left_out = Part("own head", False, "transformers finds no tensor for 2 parameters")
    return replace(report(), scope=(*report().scope, left_out))


def packed(cosine: float = 0.96, error: float = 0.1) -> ParityReport:
    """A quantized model's."""
    cost = QuantizationReport(
        recipe="4bit",
        calibrated=False,
        bytes=1000,
        parameters=500,
        bits_per_weight=4.5,
        layers=(LayerReport("encoder.layer.0.output.dense", "affine", 4, 64, 900, error, 0.16, seconds=0.5),),
        skipped=(),
        kept=KeptTensor("pooler.dense.bias", 1e-4, 1e-3),
        quality=(Quality("everyday", 64, cosine, 0.93, 0.95, seconds=1.5),),
        limits=TEXT_LIMITS["4bit"],
    )
    points = tuple(point for point in report().points if point.gate == MAPPING)
    return replace(report(), written_dtype="4bit", points=points, quantization=cost)


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
    for each in (report(), failing(), partial(), packed()):
        text = each.to_json()
        assert ParityReport.from_value(json.loads(text)) == each
        assert list(json.loads(text))[:3] == ["format_version", "verified", "passed"]
        assert "seconds" not in text
        assert json.loads(text)["passed"] is each.passed


def test_an_edited_verdict_is_not_believed() -> None:
    data = json.loads(failing().to_json()) | {"passed": True, "failures": [], "first_diverging_layer": None}
    assert not ParityReport.from_value(data).passed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "parity.json is not a parity report; fix: run mlxbert-verify again"),
        ("{}", "parity.json is not a parity report; fix: run mlxbert-verify again"),
        ('{"format_version": [2]}', "parity.json is not a parity report; fix: run mlxbert-verify again"),
        ('{"format_version": 1, "passed": true}', "parity.json has format version 1, this mlxbert reads 2; fix: run"),
        ('{"format_version": 2}', "parity.json: model_type is missing; fix: run mlxbert-verify again"),
        (
            '{"format_version": 2, "passed": true, "not_compared": "no torch", "points": []}',
            "parity.json compares nothing with PyTorch (no torch); fix: run mlxbert-verify",
        ),
    ],
)
def test_a_damaged_report_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ParityReportError) as error:
        ParityReport.from_value(json.loads(text))
    assert str(error.value).startswith(message)
    assert "fix: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("points", 0, "max_rel"), "0", 'points[0].max_rel must be a number or null, found "0"'),
        (("points",), {}, "points must be a list of values, found an object"),
        (("provenance", "weights"), ["x"], "provenance.weights must be an object, found a list of 1"),
        (("provenance", "weights", "model.safetensors"), 1, "provenance.weights.model.safetensors must be a text"),
        (("scope", 0, "compared"), 1, "scope[0].compared must be true or false, found 1"),
        (("environment",), None, "environment must be an object, found null"),
        (("probes", 0), ["\x1b]0;x\x07"], "probes[0] must be a text, found a list of 1"),
        (("quantization", "layers", 0, "error"), True, "quantization.layers[0].error must be a number, found true"),
        (("quantization", "limits"), None, "quantization.limits must be an object, found null"),
    ],
)
def test_a_field_of_another_type_is_named(field: tuple[str | int, ...], value: object, message: str) -> None:
    data = json.loads(packed().to_json())
    place = data
    for name in field[:-1]:
        place = place[name]
    place[field[-1]] = value
    with pytest.raises(ParityReportError) as error:
        ParityReport.from_value(data)
    assert str(error.value).startswith(f"parity.json: {message}")
    assert str(error.value).endswith("; fix: run mlxbert-verify again")


def test_a_report_is_read_from_a_regular_file_of_a_bounded_size(tmp_path: Path) -> None:
    assert ParityReport.read(tmp_path) is None
    (tmp_path / "parity.json").write_text(report().to_json(), encoding="utf-8")
    assert ParityReport.read(tmp_path) == report()
    for text, message in (("{", "Expecting"), ("[" * 100_000, "maximum recursion")):
        (tmp_path / "parity.json").write_text(text)
        with pytest.raises(ParityReportError, match=f"not valid JSON .{message}.*; fix: get the file again") as error:
            ParityReport.read(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / "parity.json").write_bytes(b" " * (17 << 20))
    with pytest.raises(ParityReportError, match="17 MB is too large for this file"):
        ParityReport.read(tmp_path)
    (tmp_path / "parity.json").unlink()
    os.mkfifo(tmp_path / "parity.json")
    with pytest.raises(ParityReportError, match="is a pipe, not a regular file"):
        ParityReport.read(tmp_path)


def test_a_report_without_the_newest_field_is_read() -> None:
    data = json.loads(report().to_json())
    del data["provenance"]["proof"]
    assert ParityReport.from_value(data) == report()


def test_a_part_that_was_not_compared_is_named_everywhere_and_is_not_verified() -> None:
    each = partial()
    assert each.passed
    assert not each.verified
    assert report().verified
    left_out = "own head (transformers finds no tensor for 2 parameters)"
    assert each.verdict == f"NOT VERIFIED as a whole: not compared: {left_out}; proven: encoder, pooler"
    assert verdict(each).plain.startswith(
        f"PART  the same model as org/bert in encoder, pooler; not compared: {left_out} ("
    )
    page = render_html(each)
    assert "<title>Parity PART: org/bert</title>" in page
    assert f"<b>Not compared: {left_out}.</b>" in page
    (suite,) = [suite for suite in ElementTree.fromstring(render_junit(each)) if suite.get("name") == "parity.scope"]
    (case,) = suite.findall("testcase")
    skipped = case.find("skipped")
    assert (case.get("name"), suite.get("skipped")) == ("own head", "1")
    assert skipped is not None
    assert skipped.get("message") == "not compared: transformers finds no tensor for 2 parameters"


def test_a_quantization_says_that_the_mapping_is_proven_and_what_the_bits_cost() -> None:
    lines = verdict(packed()).plain.split("\n")
    assert lines[0].startswith("PASS  mapping proven, float32 before packing: the same as org/bert: encoder, pooler (")
    assert lines[1] == (
        "COST  4bit, 4.50 bits a weight: on everyday cosine 0.9600 (smallest 0.9300), rank correlation 0.9500; within "
        "the limits of 4bit (mean 0.93, smallest 0.88, rank 0.92)"
    )
    assert packed().verdict == "VERIFIED before packing: encoder, pooler; the cost is within the limits of 4bit"
    costly, broken = packed(cosine=0.9), packed(error=1.39)
    assert costly.failures == ["cost on everyday: mean cosine 0.9000 < 0.93, the limit of 4bit"]
    assert broken.failures == [
        "packing: encoder.layer.0.output.dense: error 1.390 > 0.16, the limit of 4-bit affine, groups of 64"
    ]
    for each in (costly, broken, packed(cosine=float("nan")), packed(error=float("nan"))):
        assert not each.passed
        assert verdict(each).plain.split("\n")[1].startswith("FAIL  4bit, 4.50 bits a weight: ")
        assert each.gate_passed(MAPPING)
        assert "FAIL</span>" in render_html(each)
    (suite,) = [s for s in ElementTree.fromstring(render_junit(broken)) if s.get("name") == "parity.quantization"]
    assert [(case.get("name"), case.get("time")) for case in suite.findall("testcase")] == [
        ("encoder.layer.0.output.dense", "0.500000"),
        ("everyday", "1.500000"),
    ]
    assert suite.get("failures") == "1"


def test_a_reference_that_is_a_conversion_itself_is_said_to_be_everywhere() -> None:
    each = replace(report(), provenance=replace(report().provenance, origin="team/bert"))
    heir = replace(each, provenance=replace(each.provenance, proof=Proof("team/bert", None, "float32", "ab" * 32)))
    assert heir.provenance.reservation is None
    assert verdict(heir).plain.startswith(
        "PASS  the same model as team/bert, through org/bert, whose float32 weights were compared with it (proof "
        "inherited by digest: parity.json abababababab): encoder, pooler ("
    )
    assert "itself a conversion" not in render_html(heir)
    assert "that proof is inherited" in render_html(heir)
    words = "org/bert alone, itself a conversion of team/bert, which was not compared"
    assert each.provenance.reservation == words
    assert verdict(each).plain.startswith(f"PASS  the same model as {words}: encoder, pooler (")
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
        assert {case.get("time") for case in cases} == {"0.250000"}
        assert suite.get("time") == f"{0.25 * len(cases):.6f}"
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
    assert "&lt;/script&gt;\\x00\\x1b\\ud800 ü" in render_html(each)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", render_html(each))


def test_the_page_is_self_contained_and_says_what_is_wrong() -> None:
    for each in (report(), failing()):
        page = render_html(each)
        assert not re.search(r"https?://|<link|<script|<img|src=|url\(|@import", page)
        assert page.count("<svg") == 5
        assert f"<title>Parity {'PASS' if each.passed else 'FAIL'}: org/bert</title>" in page
        assert "limit 2.0e-05" in page
        assert "limit 5.0e-06" in page
        for name in NAMES:
            assert f"<code>{name}</code>" in page
    assert "the first module that is wrong is\n<code>encoder.layer.3</code>" in page
    assert "encoder.layer.3: error 4.0e-04 &gt; 5e-06" in page
    assert 'class="cross"' in page  # the pooler's NaN
    assert page == render_html(failing())


def test_every_output_identical_is_followed_by_no_plot() -> None:
    same = [replace(point, max_abs=0.0, max_rel=0.0, cosine=1.0) for point in report().select(PRECISION, CUMULATIVE)]
    each = replace(
        report(),
        points=(*(point for point in report().points if point.gate == MAPPING), *same),
        written_dtype="float32",
    )
    page = render_html(each)
    _, _, after = page.partition("every output is identical.")
    assert after
    assert "<svg" not in after
    assert page.count("<svg") == 3  # of the mapping gate


def test_one_point_on_an_axis_is_a_table() -> None:
    assert log_plot(["1"], [Line("written", [Mark(0.1, "the only layer")], "written")], y_label="error") == ""
    page = render_html(packed())
    assert "Rounding error of each matrix" not in page
    assert "<td>0.10000</td>" in page.replace(' class=""', "")


@pytest.mark.parametrize("count", [3, 14, 27, 60])
def test_no_label_of_a_plot_overlaps_another(count: int) -> None:
    """By the widths that the page's font has at most: 8 px a character, 16 px a line."""
    names = ["emb", *map(str, range(count)), "pool", "prediction", "seq_relationship"]
    marks = [Mark(1e-7, "", True) for _ in names]
    svg = ElementTree.fromstring(log_plot(names, [Line("whole", marks, "whole", 2e-5)], y_label="max-rel error"))
    ticks = [text for text in svg.findall("text") if text.get("text-anchor") != "end" or text.get("transform")]
    columns = [text for text in ticks if text.get("class") == "tick"]
    places = [float(text.get("x") or 0) for text in columns]
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert columns
    if columns[0].get("transform"):  # at 45°: the lines of text are side by side
        assert min(gaps) * 2**0.5 >= 16
    else:
        assert min(gap - 8 * len(text.text or "") for gap, text in zip(gaps, columns, strict=False)) >= 0
    (limit,) = [text for text in svg.findall("text") if text.get("class") == "limit-label"]
    circles = [float(circle.get("cx") or 0) for circle in svg.findall("circle")]
    assert float(limit.get("x") or 0) > max(circles) + 6  # in the margin


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
