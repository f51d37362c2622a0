"""The commands at their edges: odd paths, closed pipes, Ctrl-C, no backend; each with its exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from rich.table import Table
from rich.text import Text

import converter.convert
import converter.verify
import mlxbert
from converter.cli import convert, export, push, verify
from heads.command_line import install_fix
from heads.errors import MetricUndefinedWarning
from heads.head_registry import HeadDiscoveryWarning
from heads.multilabel import ThresholdWarning
from mlxbert.cli import main
from mlxbert.data.folds import FoldWarning
from mlxbert.data.frames import DataWarning
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.errors import Interrupted, MLXBertWarning
from mlxbert.files.reading import PathError, expand_home
from mlxbert.terminal import show
from tests.support.tiny import save_tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in the current directory, as a newcomer has it."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "source")
    return Path("source")


def write_json(file: Path, value: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))


def run(command: click.Command, *arguments: object) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def start(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    # A test run in the background (`make test &`) ignores SIGINT, and so would its children.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=listening, **options
    )


CONVERT = "from converter.cli import convert; convert()"


@pytest.mark.parametrize("name", ["with space", "ünï 模型", "[red]x[/red]", "y[/y]", "it's", "$(x)"])
def test_the_next_step_can_be_copied_whatever_the_path(name: str, source: Path) -> None:
    result = run(convert, source, "-o", name, "--no-verify")
    assert result.exit_code == 0, result.output
    assert f"Written   {name}\n" in result.stdout
    python = re.search(r"mlxbert\.load\((.*)\)", result.stdout)
    assert python is not None
    assert json.loads(python[1]) == name
    command = re.search(r"mlxbert encode (.*) \"A sentence", result.stdout)
    assert command is not None
    shell = subprocess.run(f"printf %s {command[1]}", shell=True, capture_output=True, text=True, check=True)
    assert shell.stdout == name


def test_no_line_is_folded_and_no_extra_is_taken_for_markup(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(converter.convert.importlib.util, "find_spec", lambda name: None)
    result = run(convert, source, "-o", "out")
    assert result.exit_code == 0, result.output
    line = f"Parity    NOT VERIFIED: torch and transformers are not installed; {install_fix('torch')}"
    assert line in result.stdout.splitlines()


def test_numbers_and_verdicts_stand_on_a_narrow_terminal(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("COLUMNS", "30")
    result = run(convert, source, "-o", "out", "--verify")
    assert result.exit_code == 0, result.output
    assert "…" not in result.stdout
    assert re.search(r"encoder\.layer\.2 .* ok", result.stdout)


def test_a_tilde_is_the_home_directory(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert run(convert, source, "-o", "~/out", "--no-verify").exit_code == 0
    assert run(export, "~/out", "-o", "~/back").exit_code == 0
    assert run(main, "encode", "~/out", "w1", "-o", "~/x.npy").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["back", "out", "x.npy"]
    assert not Path("~").exists()
    assert run(convert, "~no-such-user/model").exit_code == 2


def test_a_name_that_is_no_text_is_written_all_the_same(source: Path) -> None:
    result = run(convert, source, "-o", "bad\udcff", "--no-verify")
    assert result.exit_code == 0, result.output
    assert r"# bad\udcff" in (Path("bad\udcff") / "README.md").read_text(encoding="utf-8")


def test_a_head_and_a_module_load_from_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    """MLX opens no such path, and every file of weights is read the same way."""
    torch = pytest.importorskip("torch")
    source = tmp_path / "source"
    save_tiny(source, "BertForSequenceClassification", num_labels=3)
    width = {"in_features": 48, "out_features": 5, "activation_function": "torch.nn.modules.linear.Identity"}
    write_json(
        source / "1_Pooling" / "config.json", {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}
    )
    write_json(source / "2_Dense" / "config.json", {**width, "bias": False})
    torch.save({"linear.weight": torch.ones(5, 48)}, source / "2_Dense" / "pytorch_model.bin")
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    write_json(source / "modules.json", modules)
    plain, odd = tmp_path / "plain", tmp_path / "bad\udcff"
    for out in (plain, odd):
        result = run(convert, source, "-o", out, "--verify")
        assert result.exit_code == 0, result.output
        assert "VERIFIED: encoder, pooler, own head, sentence pipeline" in result.output
    texts = ["word1 word2", "word3"]
    scores = []
    for out in (plain, odd):
        model, tokenizer = mlxbert.load_with_head(out)
        scores.append(np.array(model(**tokenizer(texts)).logits))
    np.testing.assert_array_equal(*scores)
    assert scores[0].shape == (2, 3)
    vectors = [SentenceEncoder.from_pretrained(out).encode(texts) for out in (plain, odd)]
    np.testing.assert_array_equal(*vectors)
    assert vectors[0].shape == (2, 5)


def test_a_run_says_that_it_cannot_name_a_file_whose_name_is_no_text(source: Path) -> None:
    assert run(convert, source, "-o", "model", "--no-verify").exit_code == 0
    rows = [f"word{i} word{i + 1},{i % 2}" for i in range(20)]
    Path("bad\udcff.csv").write_text("\n".join(["text,y", *rows]))
    result = run(main, "train", "bad\udcff.csv", "--target", "y", "--model", "model", "--folds", "2", "-o", "out")
    assert result.exit_code == 2
    assert r"bad\udcff.csv: the data's path is no text in UTF-8, so run.json cannot name it; fix: " in result.output
    assert not Path("out").exists()


def test_the_help_that_a_mistake_points_to_is_there() -> None:
    group = CliRunner().invoke(main, ["convert"], prog_name="mlxbert")
    assert "mlxbert convert: error: Missing argument 'SRC'" in group.output
    assert group.output.endswith("fix: see mlxbert convert --help\n")
    alone = CliRunner().invoke(convert, ["x", "--dtype", "int8"], prog_name="mlxbert-convert")
    assert alone.output.startswith("mlxbert-convert: error: Invalid value for '--dtype'")
    assert alone.output.endswith("fix: see mlxbert-convert --help\n")


def test_what_importing_mlxbert_refuses_costs_one_line(source: Path) -> None:
    process = start(CONVERT, source, env={"MLXBERT_BLAS": "banana"})
    assert process.stderr is not None
    lines = process.stderr.read().splitlines()
    assert process.wait() == 2
    assert len(lines) == 1
    assert "error: MLXBERT_BLAS='banana' is not known; fix: " in lines[0]


def test_without_a_backend_one_line_says_which_extra(source: Path) -> None:
    hide = "import sys; sys.modules['mlx.core'] = None; "
    process = start(hide + CONVERT, source)
    assert process.stderr is not None
    lines = process.stderr.read().splitlines()
    assert process.wait() == 2
    assert len(lines) == 1
    assert "pip install" in lines[0]


def test_ctrl_c_is_one_line_and_130_also_while_importing(source: Path) -> None:
    slow_import = """
import builtins, time
real = builtins.__import__
def slow(name, *arguments, **options):
    if name == "mlxbert" or name.startswith("mlxbert."):
        print("here", flush=True)
        time.sleep(60)
    return real(name, *arguments, **options)
builtins.__import__ = slow
"""
    process = start(slow_import + CONVERT, source, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.stderr.read().splitlines()[1:] == ["-c: interrupted; nothing half-written was left"]


def test_encode_interrupted_is_130(monkeypatch: pytest.MonkeyPatch) -> None:

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SentenceEncoder, "from_pretrained", interrupted)
    result = run(main, "encode", "x", "y")
    assert result.exit_code == 130
    assert result.stderr == "\nmlxbert: interrupted; nothing half-written was left\n"


def test_a_reader_that_goes_changes_neither_the_files_nor_the_exit_code(source: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(CONVERT, source, "-o", "out", "--no-verify", stdout=write)
    os.close(write)
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 0
    assert Path("out/config.json").is_file()


def test_a_bug_of_ours_is_not_taken_for_a_failed_parity(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(converter.verify, "verify", broken)
    result = run(verify, "x", "--reference", "y")
    assert result.exit_code == 2
    assert re.fullmatch(UNFORESEEN.format(command="verify", error="ZeroDivisionError: a bug"), result.stderr)


UNFORESEEN = (
    r"{command}: could not run: {error} \(test_commands\.py:\d+\); "
    r"fix: this is a bug, report it with what MLXBERT_TRACEBACK=1 shows\n"
)


def deep(n: int = 0) -> int:
    return deep(n + 1) + 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("\x1b]0;x\x07"), UNFORESEEN.format(command="mlxbert", error=r"KeyError: '\\x1b\]0;x\\x07'")),
        (OSError("a\x1b[2Jb"), UNFORESEEN.format(command="mlxbert", error=r"OSError: a\\x1b\[2Jb")),
        (ValueError("x" * 5000), UNFORESEEN.format(command="mlxbert", error="ValueError: x+…x+")),
        (None, UNFORESEEN.format(command="mlxbert", error="RecursionError: maximum recursion depth exceeded.*")),
        (MemoryError(), r"mlxbert: error: out of memory; fix: shorter texts, a smaller batch, .*\n"),
        (RuntimeError("[malloc] Unable to allocate 9 bytes."), r"mlxbert: error: out of memory; fix: .*\n"),
        (
            OSError(5, "Input/output error", "x\x1b.npy"),
            r"mlxbert: error: x\\x1b\.npy: Input/output error; fix: check .*\n",
        ),
        (BrokenPipeError(), r"mlxbert: error: nobody reads the output any more; fix: write it to a file\n"),
        (Interrupted("stopped at step 3"), r"mlxbert: stopped at step 3\n"),
    ],
)
def test_an_error_that_nobody_foresaw_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, line: str
) -> None:

    def broken(*_: object, **__: object) -> None:
        warnings.warn("column \x1b]0;x\x07 is odd", UserWarning, stacklevel=1)
        if error is None:
            deep()
        else:
            raise error

    monkeypatch.setattr(SentenceEncoder, "from_pretrained", broken)
    result = run(main, "encode", "x", "y")
    assert result.exit_code == (130 if isinstance(error, Interrupted) else 2)
    assert result.stdout == ""
    warning, rest = result.stderr.split("\n", 1)
    assert warning == r"mlxbert: warning: column \x1b]0;x\x07 is odd"
    assert re.fullmatch(line, rest), rest
    monkeypatch.setenv("MLXBERT_TRACEBACK", "1")
    shown = run(main, "encode", "x", "y").stderr
    assert "Traceback (most recent call last):\n" in shown
    assert "\x1b" not in shown


def test_a_negative_seed_could_not_run(source: Path) -> None:
    result = run(verify, "x", "--reference", "y", "--seed", "-1")
    assert result.exit_code == 2
    assert "--seed" in result.stderr


def truncate(out: Path) -> None:
    with (out / "model.safetensors").open("r+b") as file:
        file.truncate(20_000)


def empty_block(out: Path) -> None:
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"mlxbert": {}}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model.safetensors is damaged ("),
        (empty_block, 'the "mlxbert" block of config.json: source is missing; fix: convert again'),
    ],
)
def test_verify_of_a_damaged_directory_could_not_run(
    damage: Callable[[Path], None], message: str, source: Path
) -> None:
    pytest.importorskip("torch")
    run(convert, source, "-o", "out", "--no-verify")
    damage(Path("out"))
    result = run(verify, "out", "--reference", source)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_verify_writes_the_reports_before_it_shows_the_table(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    import converter.terminal

    def unshown(report: object) -> None:
        assert Path("parity.xml").is_file()
        assert Path("out/parity.json").is_file()

    run(convert, source, "-o", "out", "--no-verify")
    monkeypatch.setattr(converter.terminal, "show_parity", unshown)
    result = run(verify, "out", "--reference", source, "--junit", "parity.xml")
    assert result.exit_code == 0, result.output


def test_verify_of_a_file_asks_for_the_directory(source: Path) -> None:
    result = run(verify, source / "config.json", "--reference", source)
    assert result.exit_code == 2
    assert "is a file; fix: give the directory that mlxbert-convert wrote" in result.stderr


def test_the_card_names_what_the_model_was_compared_with(source: Path) -> None:
    pytest.importorskip("torch")
    run(convert, source, "-o", "out", "--no-verify")
    shutil.copytree(source, "copy")
    assert run(verify, "out", "--reference", "copy").exit_code == 0
    card = Path("out/README.md").read_text()
    assert "converted to [MLX](https://github.com/ml-explore/mlx) from `source`" in card
    assert "element by element with\n`copy` in PyTorch" in card


def test_encode_shows_texts_as_they_are_and_says_what_it_assumed(source: Path) -> None:
    run(convert, source, "-o", "out", "--no-verify")
    result = run(main, "encode", "out", "[/x] w1", "w2 :smile:", "-o", "x.npy")
    assert result.exit_code == 0, result.output
    assert "1  [/x] w1" in result.stdout
    assert ":smile:" in result.stdout
    assert result.stderr.startswith("mlxbert: warning: out has no modules.json")
    assert len(result.stderr.splitlines()) == 1
    assert np.load("x.npy").shape == (2, 48)


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("out/config.json/x.npy", "cannot be written: Not a directory"),
        ("source", "fix: -o FILE.npy for TEXTS, or --text COLUMN for a table"),
    ],
)
def test_encode_into_what_cannot_be_written(out: str, reason: str, source: Path) -> None:
    run(convert, source, "-o", "out", "--no-verify")
    result = run(main, "encode", "out", "w1", "-o", out)
    assert result.exit_code == 2
    assert f"error: {out}" in result.stderr
    assert reason in result.stderr


TITLE = "\x1b]0;owned\x07\u202e\x9b2J"
ESCAPED = r"\x1b]0;owned\x07\u202e\x9b2J"


def test_a_name_in_a_line_a_title_or_a_cell_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=f"T{TITLE}", caption=f"C{TITLE}")
    table.add_column(f"H{TITLE}")
    table.add_row(f"c{TITLE}")
    table.add_row(Text(f"t{TITLE}", style="red"))
    table.add_row("n" * 5000)
    show(f"line {TITLE} [red]", table, Text(f"text {TITLE}"))
    shown = capsys.readouterr().out
    assert set("\x1b\x07\x9b\u202e").isdisjoint(shown)
    for what in ("line ", "T", "C", "H", "c"):
        assert f"{what}{ESCAPED}" in shown
    for what in ("t", "text "):  # rich itself takes the bell out of a Text
        assert what + ESCAPED.replace(r"\x07", "") in shown
    assert "[red]" in shown
    assert 70 < shown.count("n") <= 230


def test_a_path_in_a_line_is_whole_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a" * 500
    show(f"Written   {path}")
    assert capsys.readouterr().out == f"Written   {path}\n"


def test_a_warning_in_python_does_not_steer_the_terminal() -> None:
    for kind in (DataWarning, FoldWarning, HeadDiscoveryWarning, MetricUndefinedWarning, ThresholdWarning):
        assert issubclass(kind, MLXBertWarning)
    with pytest.warns(MLXBertWarning) as caught:
        warnings.warn(f"column {TITLE} is odd", DataWarning, stacklevel=1)
    (one,) = caught
    assert f"column {ESCAPED} is odd" in warnings.formatwarning(one.message, one.category, one.filename, one.lineno)


def test_a_path_that_cannot_be_is_one_line_everywhere(source: Path) -> None:
    Path("circle").symlink_to("circle")
    for path, reason in {
        "n" * 300: "File name too long; fix: give a shorter path",
        "d/" * 2500 + "x": "File name too long; fix: give a shorter path",
        "circle": "Too many levels of symbolic links; fix: remove one of the links",
    }.items():
        for command, arguments in (
            (convert, [source, "-o", path]),
            (verify, [path, "--reference", source]),
            (verify, [source, "--reference", source, "--html", path]),
            (export, [path, "-o", "x"]),
            (push, [path, "--dry-run"]),
            (main, ["encode", path, "a"]),
            (main, ["report", path]),
            (main, ["predict", path, "x.csv", "-o", "y.csv"]),
            (main, ["blend", path, path]),
        ):
            result = run(command, *arguments)
            assert result.exit_code == 2, (arguments, result.output)
            assert "could not run" not in result.stderr, (arguments, result.output)
            assert len(result.stderr.splitlines()) == 1
        with pytest.raises(PathError) as caught:
            expand_home(path)
        assert str(caught.value).endswith(f": {reason}")
    with pytest.raises(PathError, match=r"a\\x00b: no path has a NUL character in it; fix: check the path"):
        expand_home("a\0b")


def test_what_the_parser_refuses_is_one_line_of_the_group_too() -> None:
    for arguments, line in {
        ("--bogus",): "mlxbert: error: No such option '--bogus'.; fix: see mlxbert --help",
        ("bogus",): "mlxbert: error: No such command 'bogus'.; fix: see mlxbert --help",
        ("encode",): "mlxbert encode: error: Missing argument 'MODEL'.; fix: see mlxbert encode --help",
        ("encode", "--\x1b[2J"): r"mlxbert encode: error: No such option '--\x1b[2J'.; fix: see mlxbert encode --help",
    }.items():
        result = CliRunner().invoke(main, arguments, prog_name="mlxbert")
        assert (result.exit_code, result.stdout, result.stderr) == (2, "", line + "\n")
