"""`mlxbert report`: the page's numbers are the files', whatever the files hold; a bad run costs one line."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from heads.command_line import install_fix
from mlxbert.cli import main
from tests.support.report_samples import HOSTILE, METRICS, TARGETS, TASKS, write_csv, write_run

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import mlxbert.report.page as page_module
from heads import metrics as scoring
from mlxbert.errors import MLXBertError
from mlxbert.files.output_file import WriteError
from mlxbert.report import ReportError, write_report
from mlxbert.report.classification_plots import class_plots, confusion_matrix
from mlxbert.report.figures import LIGHT, _draw_metrics, evenly, render, short, smoothed
from mlxbert.report.page import decisions
from mlxbert.report.regression_plots import forecast_plots, number_plots
from mlxbert.report.reported_run import (
    ClassPredictions,
    History,
    LabelPredictions,
    NumberPredictions,
    read_predictions,
    read_reported_run,
    reliability,
)
from mlxbert.report.tables import column, prediction_table
from mlxbert.runs.files import RunError
from mlxbert.training.callbacks import EvaluationEvent, MemberEvent

ROOT = Path(__file__).parents[2]
CURVES = {"loss", "metric", "other-metrics"}
NUMBERS = {"predicted-against-true", "residuals", "residual-distribution"}
RANKED = {"roc", "precision-recall", "calibration"}
PLOTS = {
    "binary": CURVES | RANKED | {"confusion"},
    "multiclass": CURVES | RANKED | {"confusion"},
    "multilabel": CURVES | RANKED,
    "ordinal": CURVES | RANKED | {"confusion", "distance"},
    "regression": CURVES | NUMBERS,
    "time_series": CURVES | NUMBERS | {"forecasts", "error-by-step"},
}


class Parsed(HTMLParser):
    """What a browser would see: tables by id, elements, attributes, and the text outside of style."""

    def __init__(self, html: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._rows: list[list[str]] | None = None
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "table":
            self._rows = self.tables.setdefault(attributes.get("id") or attributes.get("class") or "", [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows is not None:
            self._rows[-1].append("")
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass
        if tag == "table":
            self._rows = None

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if self._rows is not None and self._open and self._open[-1] in ("td", "th"):
            self._rows[-1][-1] += data


@dataclass(frozen=True)
class Words:
    """The words of a plot as they are drawn: text, and the box around it in pixels of the picture."""

    size: tuple[float, float]
    boxes: list[tuple[str, Any]]


@pytest.fixture(scope="module")
def drawn() -> list[Words]:
    """What `runs` has drawn."""
    return []


def words_of(canvas: Any) -> Words:
    """The words of a figure that has just been drawn; labels of ticks outside the view are not."""
    from matplotlib.text import Text

    figure, hidden = canvas.figure, set()
    for axes in figure.axes:
        if not axes.axison:
            hidden |= set(axes.findobj(Text))
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            beyond = [tick for tick in axis.get_major_ticks() if not low - 1e-9 <= tick.get_loc() <= high + 1e-9]
            hidden |= {label for tick in beyond for label in (tick.label1, tick.label2)}
    # The box around a slanted label is larger than the label.
    seen = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]
    boxes = [(t.get_text(), t.get_window_extent()) for t in seen if t.get_rotation() % 90 == 0]
    return Words((figure.bbox.width, figure.bbox.height), boxes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, drawn: list[Words]) -> Path:
    """A finished run of every task, and its report."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    root = tmp_path_factory.mktemp("runs")
    draw = FigureCanvasAgg.print_png

    def noted(canvas: Any, *arguments: Any, **options: Any) -> None:
        draw(canvas, *arguments, **options)
        drawn.append(words_of(canvas))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "print_png", noted)
        for task in TASKS:
            write_report(write_run(root / task, task))
        # Names that are longer than the room beside an axis.
        names = [f"a target with quite a long name {i}" for i in range(3)]
        write_report(write_run(root / "long names", "regression", target=names, rows=30, steps=8))
        names = [f"a class with a long name, number {i}" for i in range(12)]
        write_report(write_run(root / "many classes", "multiclass", classes=names, rows=240, steps=8))
    return root


def test_words_of_a_plot_neither_overlap_nor_leave_the_picture(runs: Path, drawn: list[Words]) -> None:
    assert len(drawn) > 2 * sum(map(len, PLOTS.values()))
    for words in drawn:
        width, height = words.size
        for text, box in words.boxes:
            assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -1, text
        for (one, a), (other, b) in combinations(words.boxes, 2):
            apart = max(a.x0, b.x0) > min(a.x1, b.x1) - 1 or max(a.y0, b.y0) > min(a.y1, b.y1) - 1
            assert apart, f"{one!r} and {other!r}"


def test_names_that_begin_alike_are_told_apart(runs: Path, drawn: list[Words]) -> None:
    labels = {text for words in drawn for text, _ in words.boxes if text.startswith("a clas")}
    assert {f"a clas…umber {i}" for i in range(10)} <= labels


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words and numbers alone: drawing takes seconds."""
    monkeypatch.setattr(page_module, "render", lambda plot, theme: b"a picture")


def page_of(run: Path) -> Parsed:
    return Parsed((run / "report.html").read_text(encoding="utf-8"))


def files_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [run / "report.html", *sorted((run / "plots").iterdir())]}


@pytest.mark.parametrize("task", TASKS)
def test_the_scores_are_those_of_the_file(runs: Path, task: str) -> None:
    scores = json.loads((runs / task / "scores.json").read_text())
    header, *rows = page_of(runs / task).tables["scores"]
    assert [name.split(" ")[0] for name in header[3:]] == METRICS[task]
    by_name = {row[0]: row[3:] for row in rows}
    expected = {one["member"]: one["metrics"] for one in scores["members"]}
    keys = {"mean": "mean", "standard deviation": "std", "lowest": "low", "highest": "high"}
    for name, key in keys.items():
        expected[name] = {metric: spread[key] for metric, spread in scores["spread"].items()}
    expected |= {"pooled": scores["pooled"], "hold-out": scores["hold_out"]["metrics"]}
    assert list(by_name) == list(expected)
    for name, cells in by_name.items():
        assert [float(cell) for cell in cells] == pytest.approx([expected[name][m] for m in METRICS[task]], abs=5.1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_every_plot_is_in_the_page_and_in_the_folder(runs: Path, task: str) -> None:
    page = page_of(runs / task)
    ids = {attributes.get("id") for tag, attributes in page.tags if tag == "figure"}
    assert ids == {f"plot-{name}" for name in PLOTS[task]}
    files = sorted((runs / task / "plots").iterdir())
    assert {file.name for file in files} == {f"{name}.png" for name in PLOTS[task]}
    from PIL import Image

    for file in files:
        with Image.open(file) as image:
            assert image.size[0] >= 800
            colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
        assert colors is not None
        assert len(colors) > 50, f"{file} is empty"
        # No time, no version: nothing but the picture.
        data, chunks, offset = file.read_bytes(), [], 8
        while offset < len(data):
            length = struct.unpack(">I", data[offset : offset + 4])[0]
            chunks.append(data[offset + 4 : offset + 8])
            offset += length + 12
        assert set(chunks) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


@pytest.mark.parametrize("task", TASKS)
def test_the_page_needs_nothing_outside_it(runs: Path, task: str) -> None:
    html = (runs / task / "report.html").read_text(encoding="utf-8")
    page = Parsed(html)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"} == set()
    addresses = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "srcset", "href")
    ]
    assert addresses
    assert all(address is not None and address.startswith("data:image/png;base64,") for address in addresses)
    assert "url(" not in html.split("</style>")[0]
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_same_run_gives_the_same_bytes_whatever_matplotlib_is_set_to(runs: Path) -> None:
    import matplotlib

    before = files_of(runs / "ordinal")
    settings = {"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 20, "text.usetex": True}
    with matplotlib.rc_context(settings):
        write_report(runs / "ordinal")
        assert all(matplotlib.rcParams[name] == value for name, value in settings.items())
    assert files_of(runs / "ordinal") == before


def test_settings_and_origin_are_on_the_page(runs: Path) -> None:
    facts = dict(row for row in page_of(runs / "binary").tables["facts"] if len(row) == 2)
    info = json.loads((runs / "binary" / "run.json").read_text())
    assert facts["manifest_sha256"] == info["model"]["manifest_sha256"]
    assert facts["examples_sha256"] == info["data"]["examples_sha256"]
    assert facts["seeds"] == "0"
    assert facts["packages"] == "mlx: 0.32.4, numpy: 2.3.5"
    assert facts["rate"] == "5e-05"
    assert facts["created"] == info["created"]
    page = (runs / "binary" / "report.html").read_text()
    command = page.partition('<pre class="command"><code>')[2].partition("</code>")[0]
    words = shlex.split(html.unescape(command).replace("\\\n", " "))
    assert words[:5] == ["mlxbert", "train", "train.csv", "--model", "mlx_models/minilm"]
    assert words[-2:] == ["-o", f"{runs / 'binary'}-again"]


def test_cells_of_a_confusion_matrix_have_lines(runs: Path) -> None:
    made = read_predictions(read_reported_run(runs / "binary"))
    assert isinstance(made, ClassPredictions)
    from PIL import Image

    (plot,) = [plot for plot in class_plots(made, "binary") if plot.name == "confusion"]
    with Image.open(BytesIO(render(plot, LIGHT))) as image:
        pixels = np.asarray(image.convert("RGB"), int)
    line = np.array([int(LIGHT.muted[i : i + 2], 16) for i in (1, 3, 5)])
    like_line = np.abs(pixels - line).max(axis=2) < 60
    # One line between the two rows, one between the two columns, over more than a third of the picture.
    assert (like_line.sum(axis=1) > pixels.shape[1] / 3).any()
    assert (like_line.sum(axis=0) > pixels.shape[0] / 3).any()


class TestDecisions:
    """What the page says of thresholds, labels and the submission."""

    @staticmethod
    def said(run: Path, **fitted: Any) -> str:
        for member in json.loads((run / "run.json").read_text())["members"]:
            (run / "members" / member).mkdir(parents=True)
            config = {"mlxbert": {"head": {"name": "binary", "fitted": fitted}}}
            (run / "members" / member / "config.json").write_text(json.dumps(config))
            (run / "logits").mkdir(exist_ok=True)
            (run / "logits" / f"{member}.npz").touch()
        return " ".join(decisions(read_reported_run(run)))

    def test_thresholds_that_were_fitted(self, tmp_path: Path) -> None:
        text = self.said(write_run(tmp_path / "run", "binary", rows=12, steps=4), threshold=0.3412, temperature=1.25)
        assert (
            "Thresholds are fitted for f1 on held-out rows: a row is positive from a probability of 0.341 on." in text
        )
        assert "Probabilities are calibrated by a temperature, fitted on held-out rows: 1.25." in text
        assert "A submission of this run holds labels, decided as above: id, target." in text

    def test_a_threshold_that_was_not(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", rows=12, steps=4)
        info = json.loads((run / "run.json").read_text())
        info["submission"]["values"] = "probabilities"
        (run / "run.json").write_text(json.dumps({**info, "metric": "roc_auc"}))
        (run / "submission.csv").touch()
        text = self.said(run, threshold=0.5, temperature=1.0)
        assert "No threshold is fitted: a row is positive from a probability of 0.5 on." in text
        assert "submission.csv holds probabilities, not labels (mlxbert predict --values labels writes" in text
        assert "temperature" not in text

    def test_a_damaged_member_costs_one_line(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", rows=12, steps=4)
        with pytest.raises(RunError, match=r"config\.json: mlxbert\.head\.fitted\.threshold must be a number or null"):
            self.said(run, threshold="half")


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_one_epoch_and_one_member_has_a_table_and_no_plot_of_a_point(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "binary", rows=24, folds=1, steps=4)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["event"] != "evaluation" or line["step"] == 3]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    write_report(run)
    page = page_of(run)
    assert {path.stem for path in (run / "plots").iterdir()} & CURVES == {"loss"}
    (judged,) = page.tables["once"][1:]
    (event,) = [line for line in kept if line["event"] == "evaluation"]
    assert judged[:3] == ["seed0-fold0", "1.50", f"{event['loss']:.4f}"]
    assert judged[3] == f"{event['metrics']['f1']:.4f}"
    assert [row[0] for row in page.tables["scores"]] == ["member", "seed0-fold0", "pooled", "hold-out"]
    assert "standard deviation" not in page.text


class TestPredictions:
    def test_confusion_and_table_agree_with_scikit_learn(self, runs: Path) -> None:
        from sklearn import metrics

        for task in ("binary", "multiclass", "ordinal"):
            made = read_predictions(read_reported_run(runs / task))
            assert isinstance(made, ClassPredictions)
            assert (confusion_matrix(made) == metrics.confusion_matrix(made.truth, made.label)).all()
            precision, recall, f1, support = metrics.precision_recall_fscore_support(made.truth, made.label)
            _, *rows = page_of(runs / task).tables["outcomes"]
            assert [row[0] for row in rows] == list(made.names)
            for i, row in enumerate(rows):
                auc = metrics.roc_auc_score(made.truth == i, made.probability[:, i])
                assert int(row[1]) == support[i]
                shown = [float(cell) for cell in row[4:8]]
                assert shown == pytest.approx([precision[i], recall[i], f1[i], auc], abs=5.1e-5)

    def test_unknown_entries_of_labels_count_nowhere(self, runs: Path) -> None:
        from sklearn import metrics

        made = read_predictions(read_reported_run(runs / "multilabel"))
        assert isinstance(made, LabelPredictions)
        assert (made.truth == -1).any()
        header, *rows = page_of(runs / "multilabel").tables["outcomes"]
        for i, cells in enumerate(rows):
            row = dict(zip(header, cells, strict=True))
            known = made.truth[:, i] >= 0
            truth, probability = made.truth[known, i], made.probability[known, i]
            assert row["label"] == TARGETS["multilabel"][i]
            assert int(row["known"]) == known.sum()
            assert int(row["true"]) == truth.sum()
            assert float(row["F1"]) == pytest.approx(metrics.f1_score(truth, made.label[known, i]), abs=5.1e-5)
            assert float(row["ROC AUC"]) == pytest.approx(metrics.roc_auc_score(truth, probability), abs=5.1e-5)
            assert float(row["ECE"]) == pytest.approx(scoring.ece(truth, probability), abs=5.1e-5)

    def test_the_reliability_diagram_is_the_expected_calibration_error(self, runs: Path) -> None:
        for task in ("binary", "multiclass", "multilabel", "ordinal"):
            made = read_predictions(read_reported_run(runs / task))
            assert isinstance(made, ClassPredictions | LabelPredictions)
            found = reliability(made)
            filled = found.rows > 0
            gaps = np.abs(found.probability - found.happened)[filled]
            assert (gaps * found.rows[filled]).sum() / found.rows.sum() == pytest.approx(found.ece, abs=1e-12)
            assert f"Calibration: ECE {found.ece:.4f}" in page_of(runs / task).text
        made = read_predictions(read_reported_run(runs / "multiclass"))
        assert isinstance(made, ClassPredictions)
        expected = scoring.ece(made.truth, made.probability / made.probability.sum(axis=1, keepdims=True))
        assert reliability(made).ece == pytest.approx(expected, abs=1e-5)

    def test_numbers(self, runs: Path) -> None:
        from sklearn import metrics

        pandas = pytest.importorskip("pandas")
        frame = pandas.read_csv(runs / "regression" / "oof.csv")
        header, cells = page_of(runs / "regression").tables["outcomes"]
        row = dict(zip(header, cells, strict=True))
        both = frame["target:SalePrice"], frame["prediction:SalePrice"]
        assert float(row["MAE"].replace(",", "")) == pytest.approx(metrics.mean_absolute_error(*both), abs=1)
        assert float(row["R²"]) == pytest.approx(metrics.r2_score(*both), abs=5.1e-5)
        bias = float((both[1] - both[0]).mean())
        assert float(row["mean error"].replace(",", "")) == pytest.approx(bias, abs=1)

    def test_a_forecast_has_its_origins_and_its_steps(self, runs: Path) -> None:
        pandas = pytest.importorskip("pandas")
        frame = pandas.read_csv(runs / "time_series" / "oof.csv")
        page = page_of(runs / "time_series")
        assert [row[0] for row in page.tables["outcomes"][1:]] == [f"+{step}" for step in range(1, 13)]
        _, *origins = page.tables["origins"]
        assert [row[0] for row in origins] == frame["made_at"].tolist()[-24:]
        errors = frame.filter(like="prediction:").to_numpy() - frame.filter(like="target:").to_numpy()
        shown = [float(row[2]) for row in origins]
        assert shown == pytest.approx(np.abs(errors[-24:]).mean(axis=1).tolist(), abs=6e-4)

    @pytest.mark.usefixtures("undrawn")
    def test_a_missing_truth_among_several_targets_is_left_out(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "regression", target=["height", "width"], rows=30)
        header, *rows = [line.split(",") for line in (run / "oof.csv").read_text().splitlines()]
        for row in rows[:5]:
            row[header.index("target:width")] = ""
        write_csv(run / "oof.csv", header, rows)
        table = page_of(write_report(run).parent).tables["outcomes"]
        assert [row[1] for row in table] == ["rows", "30", "25"]

    def test_one_class_alone_one_row_or_one_step_can_be_drawn(self, tmp_path: Path) -> None:
        binary = write_run(tmp_path / "binary", "binary", rows=6)
        rows = [[i, i % 2, 0, 0.25, 0] for i in range(6)]
        write_csv(binary / "oof.csv", ["row", "fold", "target:target", "probability", "label"], rows)
        write_report(binary)
        assert not (binary / "plots" / "roc.png").exists()
        assert page_of(binary).tables["point"][1] == ["6 rows", "0.2500", "0.0000"]
        assert not (binary / "plots" / "calibration.png").exists()
        series = write_run(tmp_path / "series", "time_series")
        write_csv(series / "oof.csv", ["row", "made_at", "fold", "target:+1", "prediction:+1"], [[0, "1950", 0, 5, 4]])
        write_report(series)
        assert {path.stem for path in (series / "plots").iterdir()} == CURVES
        assert page_of(series).tables["point"][1] == ["+1", "5.0000", "4.0000", "1.0000"]

    @pytest.mark.parametrize("residual", [0.0, 1e6, "an ulp", "unknown"])
    def test_residuals_that_hardly_differ_and_truths_not_known_yet(self, tmp_path: Path, residual: Any) -> None:
        run = write_run(tmp_path / "run", "time_series")
        truths: list[Any] = [5.0] * 20
        if residual == "an ulp":
            truths[3] = float(np.nextafter(5.0, 6.0))
        elif residual == "unknown":
            truths[:10] = [""] * 10
        else:
            truths = [residual] * 20
        rows = [[i, f"19{50 + i}", 0, truth, truth, 3, 3] for i, truth in enumerate(truths)]
        header = ["row", "made_at", "fold", "target:+1", "target:+2", "prediction:+1", "prediction:+2"]
        write_csv(run / "oof.csv", header, rows)
        made = read_predictions(read_reported_run(run))
        assert isinstance(made, NumberPredictions)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert all(render(plot, LIGHT) for plot in (*number_plots(made), *forecast_plots(made)))
            known = prediction_table(made, "time_series")[1].rows[0][1]
        assert known == ("10" if residual == "unknown" else "20")

    def test_a_class_is_the_same_however_its_number_is_written(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "ordinal", rows=40)
        before = read_predictions(read_reported_run(run))
        header, *rows = [line.split(",") for line in (run / "oof.csv").read_text().splitlines()]
        for row in rows:
            row[3] = f"{row[3]}.0"
        write_csv(run / "oof.csv", header, rows)
        after = read_predictions(read_reported_run(run))
        assert isinstance(before, ClassPredictions)
        assert isinstance(after, ClassPredictions)
        assert (before.truth == after.truth).all()


class TestHostile:
    def test_texts_labels_and_column_names_stay_text(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "<b>run", "multiclass", target=[HOSTILE], classes=[HOSTILE, "ok", "$_{"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of signs that the font lacks
            page = page_of(write_report(run).parent)
        assert not {tag for tag, _ in page.tags} & {"script", "i"}
        assert page.text.count("<script>alert(1)</script>") >= 3
        assert "<b>run" in page.text
        worst = page.tables["worst"]
        assert worst[1][-1] == HOSTILE
        assert [row[0] for row in page.tables["outcomes"][1:]] == [HOSTILE, "ok", "$_{"]

    @pytest.mark.usefixtures("undrawn")
    def test_a_nul_does_no_harm_and_a_lone_surrogate_is_no_text(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", finished=1)
        info = json.loads((run / "run.json").read_text())
        info["competition"] = "\u0000\u001b[31m\u202e <i>"
        (run / "run.json").write_text(json.dumps(info))
        page = write_report(run)
        assert r"\x00\x1b[31m\u202e <i>" in page_of(page.parent).text
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page.read_text(encoding="utf-8"))
        info["competition"] = "\ud800 <i>"
        (run / "run.json").write_text(json.dumps(info))
        with pytest.raises(RunError, match=r'competition must be a text or null, found "\\ud800 <i>"; fix: restore'):
            write_report(run)

    @pytest.mark.usefixtures("undrawn")
    def test_a_text_longer_than_csv_allows_is_cut_and_says_so(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", rows=30)
        text = "x" * 300_000
        header = ["rank", "row", "loss", "truth", "prediction", "text", "second"]
        write_csv(run / "worst_rows.csv", header, [[1, 0, 3.5, 1, 0.03, text, "B"]])
        write_report(run)
        row = page_of(run).tables["worst"][1]
        assert row[5] == f"{'x' * 1200} … (298,800 more characters)"
        assert row[6] == "B"

    def test_many_classes_members_and_targets(self, tmp_path: Path) -> None:
        names = [f"a class with a long name, number {i}" for i in range(60)]
        run = write_run(tmp_path / "run", "multiclass", classes=names, rows=300, folds=5, seeds=(0, 1), hold_out=False)
        write_report(run)
        page = page_of(run)
        assert len(page.tables["outcomes"]) == 61
        assert "The 40 most frequent of 60 classes." in page.text
        assert "10 of 10" in page.text
        assert "hold-out" not in page.text


class TestUnfinished:
    @pytest.mark.usefixtures("undrawn")
    def test_it_says_so_and_shows_what_there_is(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", folds=4, finished=2)
        write_report(run)
        page = page_of(run)
        assert "unfinished" in page.text
        assert "2 of 4 members are trained; this page shows what there is so far." in page.text
        assert f"mlxbert train --resume {run}" in page.text
        assert [row[0] for row in page.tables["scores"]] == ["member", "seed0-fold0", "seed0-fold1"]
        assert {path.stem for path in (run / "plots").iterdir()} == CURVES
        assert "outcomes" not in page.tables

    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.parametrize("keep", ["run.json", "nothing logged"])
    def test_before_the_first_step(self, tmp_path: Path, keep: str) -> None:
        run = write_run(tmp_path / "run", "regression", finished=0)
        if keep == "run.json":
            (run / "metrics.jsonl").unlink()
        else:
            (run / "metrics.jsonl").write_text("")
        write_report(run)
        page = page_of(run)
        assert "No member is finished yet." in page.text
        assert "Nothing is logged yet." in page.text
        assert "0 of 3" in page.text

    @pytest.mark.usefixtures("undrawn")
    def test_a_line_that_a_kill_cut_off_is_left_out_and_told(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", finished=1)
        whole = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(whole + '{"event": "step", "mem')
        write_report(run)
        page = page_of(run)
        assert "The last line of metrics.jsonl is cut off, and left out." in page.text
        assert [row[0] for row in page.tables["scores"]] == ["member", "seed0-fold0"]

    def test_a_step_that_a_resumed_run_logs_again_counts_once(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", finished=1)
        log = run / "metrics.jsonl"
        lines = log.read_text().splitlines(keepends=True)
        before = read_reported_run(run).histories
        log.write_text("".join(lines[:30] + lines[10:]))
        assert read_reported_run(run).histories == before

    def test_a_loss_that_is_not_finite_is_drawn_around(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", finished=1)
        log = run / "metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        lines[3]["loss"], lines[4]["loss"] = None, float("nan")
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_report(run)
        assert (run / "plots" / "loss.png").exists()


def edit(name: str, line: int, text: str) -> Callable[[Path], None]:
    """Replace a line (from 1) of a file of a run."""

    def change(run: Path) -> None:
        lines = (run / name).read_text(encoding="utf-8").splitlines()
        lines[line - 1] = text
        (run / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    return change


def remove(name: str, *keys: str) -> Callable[[Path], None]:
    """Remove a field of a JSON file of a run."""

    def change(run: Path) -> None:
        values = json.loads((run / name).read_text())
        part = values
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]
        (run / name).write_text(json.dumps(values))

    return change


BAD = {
    "json": (edit("run.json", 2, "oops"), r"run\.json: not valid JSON \(.* line 2 .*\); fix: get the file again"),
    "another json": (
        edit("run.json", 2, '"format": "other",'),
        r"run is not a run \(no run\.json of mlxbert in it\); fix: give",
    ),
    "version": (edit("run.json", 3, '"version": 2,'), r"version 2, and this mlxbert reads 1; fix: update mlxbert"),
    "no task": (remove("run.json", "task"), r"run\.json: task is missing; fix: restore"),
    "no target": (remove("run.json", "task", "target"), r"run\.json: task\.target is missing; fix: restore"),
    "no members": (remove("run.json", "members"), r"run\.json: members is missing"),
    "log": (
        edit("metrics.jsonl", 5, "{oops"),
        r"metrics\.jsonl: line 5 is not JSON \(.*\); fix: restore the file, or rem",
    ),
    "log list": (edit("metrics.jsonl", 5, "[1]"), r"metrics\.jsonl: line 5 is a list, not an object; fix:"),
    "log field": (
        edit(
            "metrics.jsonl",
            2,
            '{"event": "step", "member": "m", "seed": 0, "fold": 0, "step": 1, "epoch": 0.1, "steps": 2}',
        ),
        r"metrics\.jsonl: line 2: loss is missing; fix:",
    ),
    "log kind": (
        edit("metrics.jsonl", 2, '{"event": "member", "member": "m", "seed": "0"}'),
        r'metrics\.jsonl: line 2: seed must be a whole number, found "0"; fix:',
    ),
    "log nested": (edit("metrics.jsonl", 5, "[" * 100_000), r"metrics\.jsonl: line 5 is not JSON"),
    "scores": (remove("scores.json", "pooled"), r"scores\.json: pooled is missing; fix: restore"),
    "scores member": (
        remove("scores.json", "members", 1, "metrics"),  # type: ignore[arg-type]
        r"scores\.json: members\[1\]\.metrics is missing",
    ),
    "cells": (
        edit("oof.csv", 4, "2,id2,2"),
        r"oof\.csv: line 4: 3 cells under 6 column names; fix: restore the file, or",
    ),
    "probability": (
        edit("oof.csv", 4, "2,id2,2,1,1.5,1"),
        r"oof\.csv: line 4: probability is '1\.5', not a probability, 0 to 1; fix:",
    ),
    "nan": (edit("oof.csv", 4, "2,id2,2,1,nan,1"), r"line 4: probability is 'nan', not a probability"),
    "fold": (edit("oof.csv", 4, "2,id2,x,1,0.5,1"), r"line 4: fold is 'x', not a number; fix:"),
    "label": (edit("oof.csv", 4, "2,id2,2,1,0.5,7"), r"line 4: label is '7', not one of the classes 0, 1; fix:"),
    "truth": (edit("oof.csv", 4, "2,id2,2,,0.5,1"), r"line 4: target:target is '', not one of the classes"),
    "column": (edit("oof.csv", 1, "row,id,fold,target:target,p,label"), r"oof\.csv: no column 'probability'; fix:"),
    "twice": (edit("oof.csv", 1, "row,row,fold,target:target,p,label"), r"line 1: column 'row' comes twice; fix:"),
    "quote": (edit("oof.csv", 4, '2,"id2"x,2,1,0.5,1'), r"oof\.csv: line 4: .*expected.*; fix:"),
    "rank": (
        edit("worst_rows.csv", 5, "3,2,id2,x,1,0.1,text"),
        r"worst_rows\.csv: line 5: loss is 'x', not a number",
    ),
    "worst": (
        edit("worst_rows.csv", 1, "rank,row,id,loss,truth,prediction,words"),
        r"worst_rows\.csv: no column 'text'; fix:",
    ),
}


class TestBadInput:
    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.parametrize("name", BAD)
    def test_a_damaged_file_costs_one_line_that_names_the_place(self, name: str, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", rows=24, steps=8)
        change, message = BAD[name]
        change(run)
        with pytest.raises(MLXBertError, match=message) as caught:
            write_report(run)
        assert "\n" not in str(caught.value)
        assert "; fix: " in str(caught.value)
        assert not (run / "report.html").exists()

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", rows=24)
        (run / "oof.csv").write_bytes(b"row,fold\n1,\xff\n")
        with pytest.raises(ReportError, match=r"oof\.csv: not UTF-8 at line 2; fix"):
            write_report(run)

    def test_what_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"absent: no such directory; fix: give a run that `mlxbert train -o` made"):
            write_report(tmp_path / "absent")
        (tmp_path / "file").touch()
        with pytest.raises(RunError, match=r"file: a file, not a directory; fix"):
            write_report(tmp_path / "file")
        with pytest.raises(RunError, match=r"is not a run \(no run\.json of mlxbert in it\); fix"):
            write_report(tmp_path)

    @pytest.mark.usefixtures("undrawn")
    def test_files_that_are_gone_are_left_out_and_told(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", rows=24)
        for name in ("metrics.jsonl", "oof.csv", "worst_rows.csv"):
            (run / name).unlink()
        text = page_of(write_report(run).parent).text
        for note in (
            "metrics.jsonl is not there: no curves.",
            "oof.csv is not there.",
            "worst_rows.csv is not there.",
        ):
            assert note in text

    @pytest.mark.usefixtures("undrawn")
    def test_what_must_not_be_overwritten(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", rows=24, finished=1)
        data = tmp_path / "train.csv"
        data.write_text("a,b\n1,2\n")
        with pytest.raises(ReportError, match=r"train\.csv: exists, and is no report; it is left alone; fix: .* -o"):
            write_report(run, out=data)
        assert data.read_text() == "a,b\n1,2\n"
        with pytest.raises(ReportError, match=r"a directory; fix: name a file, -o .*report\.html"):
            write_report(run, out=tmp_path)
        with pytest.raises(ReportError, match=r"train\.csv: a file, not a directory; fix: .* --plots"):
            write_report(run, plots=data)
        with pytest.raises(WriteError, match=r"cannot be written: Not a directory; give another output with -o"):
            write_report(run, out=data / "x.html")
        page = tmp_path / "page.html"
        assert write_report(run, out=page, plots=tmp_path / "a" / "b") == page
        assert write_report(run, out=page, plots=tmp_path / "a" / "b") == page
        assert {path.stem for path in (tmp_path / "a" / "b").iterdir()} == CURVES
        assert not (run / "report.html").exists()

    @pytest.mark.parametrize(("module", "fix"), [("matplotlib", "plots need"), ("sklearn", "ROC curves need")])
    def test_a_library_that_is_missing(
        self, module: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = write_run(tmp_path / "run", "binary", rows=24)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ReportError, match=f"{fix} .*; fix: {re.escape(install_fix('kaggle'))}"):
            write_report(run)


class TestCommand:
    @pytest.mark.usefixtures("undrawn")
    def test_it_says_where_the_page_is_and_what_to_do_next(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "a run", "regression", rows=24)
        result = CliRunner().invoke(main, ["report", str(run)])
        assert result.exit_code == 0, result.output
        pooled = json.loads((run / "scores.json").read_text())["pooled"]["rmsle"]
        assert result.output.splitlines() == [
            f"Run       {run}: 3 members, rmsle {pooled:.4f} pooled",
            f"Plots     {run / 'plots'}: 6 PNG files",
            f"Written   {run / 'report.html'}",
            f"Next      open {(run / 'report.html').as_uri()} in a browser",
            f"          mlxbert predict '{run}' test.csv -o submission.csv",
        ]

    @pytest.mark.usefixtures("undrawn")
    def test_an_unfinished_run(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", "binary", finished=1)
        out = tmp_path / "page.html"
        result = CliRunner().invoke(main, ["report", str(run), "-o", str(out), "--plots", str(tmp_path / "p")])
        assert result.exit_code == 0, result.output
        assert f"Run       {run}: unfinished: 1 of 3 members trained\n" in result.output
        assert result.output.endswith(f"          mlxbert train --resume {run}\n")
        assert out.exists()

    def test_a_mistake_is_one_line_and_2(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(main, ["report", str(tmp_path / "absent")])
        assert result.exit_code == 2
        assert re.fullmatch(r"mlxbert: error: .*absent: no such directory; fix: .*\n", result.output)

    def test_neither_pyplot_nor_a_display_is_touched_and_help_imports_nothing_heavy(self, runs: Path) -> None:
        code = """
import sys
from click.testing import CliRunner
from mlxbert.cli import main
assert CliRunner().invoke(main, ["--help"]).exit_code == 0
heavy = {"matplotlib", "sklearn", "pandas", "jinja2"} & set(sys.modules)
assert not heavy, heavy
from mlxbert.report import write_report
write_report(sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
"""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "tkagg"}
        command = [sys.executable, "-c", code, str(runs / "regression")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


class TestPieces:
    def test_a_running_mean_leaves_nan_out(self) -> None:
        values = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan])
        assert smoothed(values, 2).tolist()[:5] == [1, 2, 3, 5, 5]
        assert np.isnan(smoothed(values, 2)[5])
        assert smoothed(values[:2], 1).tolist() == [1, 3]

    def test_a_column_has_as_many_digits_everywhere(self) -> None:
        assert column([0.5, None, 9.25]) == ["0.5000", "–", "9.2500"]
        assert column([12345.6, 7.0]) == ["12,346", "7"]
        assert column([float("nan"), 0.5]) == ["nan", "0.5000"]
        assert column([0.00001234, 0.0]) == ["1.23e-05", "0.00e+00"]

    def test_names_for_plots(self) -> None:
        assert short("a\nb  c") == "a b c"
        assert short("模型") == "□□"
        assert short("x" * 50, 10) == "x" * 9 + "…"

    def test_evenly(self) -> None:
        assert evenly(3, 5) == [0, 1, 2]
        assert evenly(100, 4) == [0, 33, 66, 99]
        assert len(evenly(10_000, 5000)) == 5000


def test_a_ring_marks_the_weights_that_were_kept() -> None:
    from matplotlib.figure import Figure

    evaluations = {
        5: EvaluationEvent("seed0-fold0", 0, 0, 1.0, 5, 0.5, {"f1": 0.8}, best=True),
        10: EvaluationEvent("seed0-fold0", 0, 0, 2.0, 10, 0.6, {"f1": 0.7}, best=False),
    }
    history = History("seed0-fold0", 0, 0, evaluations=evaluations)
    assert history.kept_step("best") == 5
    assert history.kept_step("last") == 10
    history.finished = MemberEvent("seed0-fold0", 0, 0, 2.0, 10, {}, seconds=1.0)
    figure = Figure()
    _draw_metrics(figure, LIGHT, [history], ["f1"], "best")
    (ring,) = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([2.0], [0.7])
