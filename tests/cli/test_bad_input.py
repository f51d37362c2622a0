"""Bad input to the commands: one clear line with the fix, exit code 2, nothing written, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from converter.cli import convert, export, verify
from mlxbert.cli import main
from mlxbert.files.output_file import manifest_problems
from mlxbert.models.architecture import HeadKind, architecture, supported
from tests.support.tiny import save_tiny


def run(*arguments: object) -> Result:
    """`mlxbert-convert … --no-verify` in this process; an exception that the command does not answer is raised."""
    return CliRunner().invoke(convert, [*map(str, arguments), "--no-verify"], catch_exceptions=False)


def change_config(source: Path, **fields: object) -> None:
    file = source / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def change_tensor(source: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, source / "model.safetensors")


def poison(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[7] = value
        return array

    return change


class Dangerous:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        import os

        return os.system, (f"touch {self.canary}",)


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (
        lambda d: change_tensor(d, "encoder.layer.1.output.dense.weight", poison(np.nan)),
        "encoder.layer.1.output.dense.weight holds nan at (0, 7): this checkpoint is broken; fix: get",
    ),
    "inf": (
        lambda d: change_tensor(d, "pooler.dense.bias", poison(-np.inf)),
        "pooler.dense.bias holds -inf at (7,)",
    ),
    "unsupported model_type": (
        lambda d: change_config(d, model_type="gpt2"),
        "config.json: model_type 'gpt2' is not supported; supported: ",
    ),
    "model_type of a variant": (
        lambda d: change_config(d, model_type="nomic_bert"),
        "config.json: model_type 'nomic_bert' is not supported (NomicBERT, with rotary positions and a gated "
        "feed-forward layer); supported: ",
    ),
    "code of its own": (
        lambda d: change_config(d, auto_map={"AutoModel": "modeling_own.OwnModel"}),
        "config.json: auto_map={'AutoModel': 'modeling_own.OwnModel'} asks for code of its own, which is never run; "
        "not computed here; fix: convert a checkpoint without it, or take auto_map out of config.json",
    ),
    "code of its own for a model_type of its own": (
        lambda d: change_config(d, model_type="new", auto_map={"AutoModel": "modeling_new.NewModel"}),
        "; its auto_map names code of its own, which is never run; fix: convert a checkpoint of a supported one, or",
    ),
    "a tokenizer of its own code": (
        lambda d: (d / "tokenizer_config.json").write_text(
            '{"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", null]}}'
        ),
        "tokenizer_config.json: auto_map asks for a tokenizer of the checkpoint's own code, ['own.OwnTokenizer', "
        "None], which is never run; fix: if its other files alone give the model's ids, take auto_map out; nothing",
    ),
    "decoder class": (
        lambda d: change_config(d, architectures=["BertLMHeadModel"]),
        "config.json: BertLMHeadModel is a decoder, which predicts the next word; not computed here; "
        "fix: --encoder-only converts the encoder alone, without that head",
    ),
    "cross-attention": (
        lambda d: change_config(d, add_cross_attention=True),
        "asks for cross-attention; not computed",
    ),
    "encoder-decoder": (
        lambda d: change_config(d, is_encoder_decoder=True),
        "asks for an encoder-decoder; not computed",
    ),
    "decoder": (lambda d: change_config(d, is_decoder=True), "is_decoder=True asks for a decoder (causal attention)"),
    "relative positions": (
        lambda d: change_config(d, position_embedding_type="relative_key_query"),
        "asks for relative positions; not computed here",
    ),
    "shape against config": (
        lambda d: change_config(d, intermediate_size=81),
        "encoder.layer.0.intermediate.dense.weight is (80, 48); config.json says intermediate_size=81, hidden_size=48",
    ),
    "integers for weights": (
        lambda d: change_tensor(d, "pooler.dense.bias", lambda a: a.astype(np.int32)),
        "pooler.dense.bias has dtype int32: a weight must be float64, float32, float16 or bfloat16",
    ),
    "no rule": (
        lambda d: save_file(
            {**load_file(d / "model.safetensors"), "adapter.up": np.zeros((2, 3), np.float32)}, d / "model.safetensors"
        ),
        "bert: 1 checkpoint tensor has no rule\n  adapter.up (2, 3)\n  fix: --encoder-only converts",
    ),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "config.json"),
    "truncated": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]),
        "truncated",
    ),
    "garbage": (lambda d: (d / "model.safetensors").write_bytes(b"\x93" * 4096), "model.safetensors"),
    "Git-LFS pointer": (
        lambda d: (d / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 438000000\n"
        ),
        "git lfs pull",
    ),
    "HTML page": (
        lambda d: (
            (d / "model.safetensors").unlink(),
            (d / "pytorch_model.bin").write_text("<!DOCTYPE html><html><body>404</body></html>"),
        ),
        "HTML",
    ),
    "TensorFlow only": (
        lambda d: (d / "model.safetensors").rename(d / "tf_model.h5"),
        "TensorFlow",
    ),
    "whole pickled model": (
        lambda d: ((d / "model.safetensors").unlink(), torch.save(torch.nn.Linear(2, 2), d / "pytorch_model.bin")),
        "state_dict()",
    ),
    "already quantized": (
        lambda d: change_config(d, quantization={"group_size": 64, "bits": 4}),
        "quantized",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_source(case: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "models" / "out"
    save_tiny(source)
    breaks, message = CASES[case]
    breaks(source)
    before = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    result = run(source, "-o", out)
    assert result.exit_code == 2, result.output
    assert message.lower() in result.stderr.lower()
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not out.parent.exists()  # nothing written, and no folder made for it
    assert before == {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}


def test_custom_code_is_not_even_imported(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    change_config(tmp_path / "source", auto_map={"AutoModel": "modeling_own.OwnModel"})
    canary = tmp_path / "canary"
    (tmp_path / "source/modeling_own.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    result = CliRunner().invoke(convert, [str(tmp_path / "source"), "-o", str(tmp_path / "out")])  # verifies, too
    assert result.exit_code == 2
    assert "auto_map" in result.stderr
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", supported())
def test_of_a_decoder_the_encoder_alone_is_converted_when_told(model_type: str, tmp_path: Path) -> None:
    """As the fix says. transformers' decoders of these names attend to both sides if `is_decoder` is false."""
    declared = architecture(model_type)
    name = declared.head_of(HeadKind.MASKED_LM)
    if name is None:
        pytest.skip("no language model")
    save_tiny(tmp_path / "source", name)
    change_config(tmp_path / "source", architectures=[name.replace("ForMaskedLM", "ForCausalLM")])
    result = run(tmp_path / "source", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert (
        "ForCausalLM is a decoder, which predicts the next word; not computed here; fix: --encoder-only"
        in result.stderr
    )
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "source", "-o", tmp_path / "out", "--encoder-only").exit_code == 0
    assert not (tmp_path / "out/heads.safetensors").exists()


def test_a_pickle_that_runs_code_is_never_run(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    canary = tmp_path / "canary"
    for legacy in (False, True):
        torch.save(
            {"x": torch.zeros(2), "bad": Dangerous(canary)},
            tmp_path / "source" / "pytorch_model.bin",
            _use_new_zipfile_serialization=not legacy,
        )
        result = run(tmp_path / "source", "-o", tmp_path / "out")
        assert result.exit_code == 2
        assert "system" in result.stderr
        assert not canary.exists()
        assert not (tmp_path / "out").exists()


def test_a_float16_cast_that_overflows_is_refused_and_the_tensor_named(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    change_tensor(tmp_path / "source", "embeddings.LayerNorm.bias", poison(70000.0))
    result = run(tmp_path / "source", "-o", tmp_path / "out", "--dtype", "float16")
    assert result.exit_code == 2
    assert (
        "embeddings.LayerNorm.bias overflows float16: its largest magnitude is 70000, float16 holds up to 65504; "
        "fix: --dtype bfloat16 or float32"
    ) in result.stderr
    assert run(tmp_path / "source", "-o", tmp_path / "out", "--dtype", "bfloat16").exit_code == 0


def test_an_output_that_exists_is_kept_unless_told_and_something_else_is_never_replaced(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    out = tmp_path / "out"
    assert run(tmp_path / "source", "-o", out).exit_code == 0
    first = (out / "manifest.json").read_bytes()
    result = run(tmp_path / "source", "-o", out)
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert (out / "manifest.json").read_bytes() == first
    assert run(tmp_path / "source", "-o", out, "--overwrite", "--dtype", "float16").exit_code == 0
    assert (out / "manifest.json").read_bytes() != first
    assert manifest_problems(out) == []
    thesis = tmp_path / "home"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("years of work")
    result = run(tmp_path / "source", "-o", thesis, "--overwrite")
    assert result.exit_code == 2
    assert (thesis / "thesis.tex").read_text() == "years of work"


def test_an_overwrite_that_fails_leaves_the_model_that_was_there(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    out = tmp_path / "out"
    assert run(tmp_path / "source", "-o", out).exit_code == 0
    first = {file.name: file.read_bytes() for file in out.iterdir()}
    change_tensor(tmp_path / "source", "encoder.layer.2.output.dense.weight", poison(np.nan))
    assert run(tmp_path / "source", "-o", out, "--overwrite").exit_code == 2
    assert first == {file.name: file.read_bytes() for file in out.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("inside", ["source", "source/out", "source/a/b"])
def test_an_output_inside_the_source(inside: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    before = sorted(tmp_path.rglob("*"))
    result = run(tmp_path / "source", "-o", tmp_path / inside, "--overwrite")
    assert result.exit_code == 2
    assert "source" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_no_such_file_or_id(tmp_path: Path) -> None:
    result = run(tmp_path / "nothing", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "no such file or directory" in result.stderr


def test_wrong_options_cost_one_line(tmp_path: Path) -> None:
    runner = CliRunner()
    for command, arguments in (
        (convert, []),
        (convert, ["x", "--dtype", "float8"]),
        (verify, []),
        (export, ["x"]),
        (main, ["encode", "x"]),
    ):
        result = runner.invoke(command, arguments)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert "--help" in result.stderr


def test_loading_what_was_never_converted_answers_with_the_command_to_run(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    result = CliRunner().invoke(main, ["encode", str(tmp_path / "source"), "text"])
    assert result.exit_code == 2
    source = tmp_path / "source"
    assert f"{source} was never converted; run: mlxbert-convert {source} -o mlx_models/source" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", [convert, verify, export, main])
def test_help_has_an_example(command: object) -> None:
    result = CliRunner().invoke(command, ["--help"])  # type: ignore[arg-type]
    assert result.exit_code == 0
    assert "mlxbert" in result.output
