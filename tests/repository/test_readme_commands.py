"""Every command of the README, in the README's order, in one directory: what one leaves, the next ones find."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from converter.convert import convert
from heads.command_line import install_command
from mlxbert.data.competitions import get_competition
from tests.repository.test_readme import COMMANDS, README, blocks, command_lines
from tests.support.hub.plugin import Hub
from tests.support.run_samples import sample
from tests.support.tiny import save_tiny

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
# Of a training in this test, beside what the README says: less of it.
QUICK = ("--batch-size", "16", "--max-length", "16")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has who ran `make demo` and downloaded the data: small, and of random weights."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "minilm", **SIZES)
    convert(tmp_path / "minilm", tmp_path / "mlx_models" / "minilm", verify=True)
    (tmp_path / "data").mkdir()
    frame = sample("binary", rows=60).rename(columns={"y": "target"}).replace({"target": {"yes": 1, "no": 0}})
    frame[:40].to_csv("data/train.csv", index=False)
    frame[40:].drop(columns="target").to_csv("data/test.csv", index=False)
    frame[40:][["id"]].assign(target=[0, 1] * 10).to_csv("sample_submission.csv", index=False)
    for name in ("titanic", "house-prices", "jigsaw-toxic", "alexa-stars"):
        _competition(tmp_path, name)
    return tmp_path


def _competition(root: Path, name: str, rows: int = 60) -> None:
    """Write a training file of a ready configuration, and a test file."""
    ready, rng = get_competition(name), np.random.default_rng(0)
    frame = pd.DataFrame({} if ready.id is None else {ready.id: np.arange(1, rows + 1)})
    for column in ready.text.columns:
        frame[column] = [f"{rng.choice(list('abcd'))}{row}" for row in range(rows)]
    test = frame.copy()
    for target in ready.target:
        if ready.task == "regression":
            frame[target] = rng.integers(50_000, 500_000, rows)
        else:
            frame[target] = rng.permutation(
                np.arange(rows) % 5 + 1 if ready.task == "ordinal" else np.arange(rows) % 2
            )
    if name == "alexa-stars":
        frame.to_csv(root / "amazon_alexa.tsv", sep="\t", index=False)
        return
    (root / name).mkdir()
    frame.to_csv(root / name / "train.csv", index=False)
    test.to_csv(root / name / "test.csv", index=False)


def _published(hub: Hub, folder: Path) -> None:
    """Put a tiny `bert-base-uncased` on the Hub."""
    save_tiny(folder / "bert", "BertForPreTraining", **SIZES)
    files = {one.name: one.read_bytes() for one in (folder / "bert").iterdir()}
    hub.add("google-bert/bert-base-uncased", files)
    hub.renamed["bert-base-uncased"] = "google-bert/bert-base-uncased"


@pytest.mark.slow
@pytest.mark.usefixtures("writer")
def test_the_commands_run_in_order(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _published(hub, folder)
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")  # for the workers
    mx.disable_compile()  # g++ takes seconds for each length, and these models take none
    try:
        for line in command_lines():
            _run(line)
    finally:
        mx.enable_compile()
    submission = pd.read_csv(folder / "submission.csv")
    assert list(submission.columns) == ["id", "target"]
    assert set(submission["target"]) <= {0, 1}
    for left in (
        "mlx_models/bert-base-uncased/parity.json",
        "mlx_models/bert-base-uncased-4bit/model.safetensors",
        "mlx_models/minilm-14MB/quantization.png",
        "runs/tweets/report.html",
        "runs/two/scores.json",
        "runs/shared/scores.json",
        "runs/blend/blend.json",
        "kaggle/tweets/inference.py",
        "parity.html",
        "parity.xml",
    ):
        assert (folder / left).is_file(), left
    assert any(name.startswith("mlx-community/bert-base-uncased") for name in hub.repositories)


def _run(line: str) -> None:
    name = next(name for name in sorted(COMMANDS, key=len, reverse=True) if line.startswith(f"{name} "))
    words = shlex.split(line.removeprefix(name))
    if name == "mlxbert train" and "--resume" not in words:
        words += QUICK
    if "auto" in words:  # 14 MB are more than this model has
        words[words.index("--target-size") + 1] = "30kB"
    if "--quantize" in words:  # the built-in sentences would calibrate for minutes
        Path("texts.txt").write_text("\n".join(f"a sentence of {number} words" for number in range(20)))
        words += ["--calibration", "texts.txt"] if words[words.index("--quantize") + 1] != "4bit" else []
    result = CliRunner().invoke(COMMANDS[name], words, prog_name=name, input="y\n")
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


def test_how_to_install_is_what_the_product_says() -> None:
    """One place changes with the first release: `heads/command_line.py`; this test then names the README's lines."""
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    installs = [line for line in lines if line.startswith("pip install")]
    assert installs == [install_command("cpu", "torch"), install_command("torch"), install_command("cpu", "kaggle")]
    named = re.findall(r'"(?:\./mlxbert|\.|mlxbert)\[([a-z0-9,]+)\]"', README)
    extras = {extra for one in named for extra in one.split(",")}
    assert extras == {"cpu", "cuda12", "cuda13", "torch", "kaggle", "benchmark"}
