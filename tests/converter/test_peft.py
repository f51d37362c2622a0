"""PEFT's format both ways, with the real peft as the oracle: hidden states and logits within 1e-5."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mlxbert
from converter import cli
from converter.convert import convert
from converter.peft.keep import keep_adapter
from converter.readers.source_files import SourceError
from mlxbert.checkpoint import CheckpointError
from mlxbert.models.architecture import HeadKind, architecture, supported
from mlxbert.pretrained import load_with_head
from tests.support.encoder_pairs import reference
from tests.support.tiny import save_tiny

peft = pytest.importorskip("peft", reason="the reference is PEFT, which is not installed")

LIMIT = 1e-5
RANK, ALPHA = 4, 12


def batch(config: Any) -> dict[str, np.ndarray]:
    """Ragged texts, with token types where the model has them."""
    rng, length = np.random.default_rng(0), 9
    mask = (np.arange(length) < np.array([9, 4, 7])[:, None]).astype(np.int64)
    pad = config.pad_token_id or 0
    ids = np.where(mask, rng.integers(pad + 1, config.vocab_size, mask.shape), pad)
    found = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        found["token_type_ids"] = (np.arange(length) >= 3) * mask
    return found


def randomize(model: Any, seed: int = 5) -> Any:
    """Give every part of an adapter random numbers: PEFT's own B is zero, and its magnitude that of the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def adapted(model: Any, directory: Path, **options: Any) -> Any:
    """PEFT's model with a random adapter, saved in `directory`."""
    options = {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear", **options}
    model = randomize(peft.get_peft_model(model, peft.LoraConfig(**options)))
    model.save_pretrained(directory)
    return model


def error(ours: Any, theirs: Any) -> float:
    """Largest error of an element, relative above 1."""
    a, b = np.array(ours, np.float64), theirs.detach().double().numpy()
    assert a.shape == b.shape
    return float((np.abs(a - b) / np.maximum(1, np.abs(b))).max())


def states_error(core: Any, model: Any, inputs: dict[str, np.ndarray]) -> float:
    """Largest error of every hidden state over unmasked positions, and of the pooler."""
    expected = reference(model.base_model.model, inputs, output_hidden_states=True)  # PEFT's own takes anything
    output = core(**inputs, output_hidden_states=True)
    keep = inputs["attention_mask"] == 1
    errors = [
        error(np.array(a)[keep], b[torch.from_numpy(keep)])
        for a, b in zip(output.hidden_states, expected.hidden_states, strict=True)
    ]
    pooled = getattr(expected, "pooler_output", None)
    if pooled is not None:
        errors.append(error(output.pooler_output, pooled))
    return max(errors)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("model_type", supported())
def test_an_encoders_adapter_is_merged(model_type: str, dora: bool, tmp_path: Path) -> None:
    encoder = architecture(model_type).encoder_class
    base = save_tiny(tmp_path / "base", encoder)
    model = adapted(base, tmp_path / "adapter", use_dora=dora)
    inputs = batch(base.config)
    path = convert(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base", verify=False).path
    assert states_error(mlxbert.load(path)[0], model, inputs) < LIMIT


def classifier(model_type: str, kind: HeadKind, directory: Path) -> tuple[Any, dict[str, Any]]:
    """A class with a new head on the encoder in `directory`, and PEFT's options with which the head is saved whole."""
    declared = architecture(model_type)
    name = declared.head_of(kind)
    assert name is not None
    torch.manual_seed(1)
    model = getattr(transformers, name).from_pretrained(directory, num_labels=2 if kind is HeadKind.SPAN else 3)
    modules = sorted({prefix.partition(".")[0] for prefix in declared.heads[name].all_prefixes})
    tasks = {HeadKind.SEQUENCE: "SEQ_CLS", HeadKind.TOKEN: "TOKEN_CLS", HeadKind.SPAN: "QUESTION_ANS"}
    return model, {"task_type": tasks[kind], "modules_to_save": modules}


def logits_error(path: Path, model: Any, inputs: dict[str, np.ndarray]) -> float:
    """Largest error of every output of the head."""
    expected = reference(model.base_model.model, inputs)
    output = load_with_head(path)[0](**inputs)
    keep = torch.from_numpy(inputs["attention_mask"] == 1)
    found = []
    for name in ("logits", "start_logits", "end_logits"):
        if (logits := expected.get(name)) is not None:
            ours = np.array(getattr(output, name))
            whole = logits.ndim == 2 and logits.shape != keep.shape
            found.append(error(ours, logits) if whole else error(ours[keep.numpy()], logits[keep]))
    return max(found)


@pytest.mark.parametrize("model_type", supported())
def test_a_classifiers_adapter_is_merged_into_a_converted_encoder(model_type: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", architecture(model_type).encoder_class)
    convert(tmp_path / "base", tmp_path / "mlx", verify=False)
    model, options = classifier(model_type, HeadKind.SEQUENCE, tmp_path / "base")
    leaf = next(name for name, _ in model.named_modules() if name.endswith(LEAVES)).rpartition(".")[2]
    model = adapted(model, tmp_path / "adapter", **{**options, "target_modules": [leaf], "use_rslora": True})
    result = convert(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "mlx", verify=False)
    assert logits_error(result.path, model, batch(model.config)) < LIMIT
    assert any(note.startswith("adapter: LoRA of rank 4 on ") for note in result.notes)
    block = json.loads((result.path / "config.json").read_text())["mlxbert"]
    assert (block["source"], block["revision"], block["adapter"]["base"]) == ("adapter", None, "mlx")
    assert block["original_architectures"] == [architecture(model_type).head_of(HeadKind.SEQUENCE)]


LEAVES = ("query", "Wqkv", "q_lin", "query_proj", "attn.q")
"""What the paths of the layers that compute queries end with."""


@pytest.mark.parametrize("kind", [HeadKind.TOKEN, HeadKind.SPAN])
def test_other_heads_come_with_the_adapter(kind: HeadKind, tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "BertForPreTraining")
    model, options = classifier("bert", kind, tmp_path / "base")
    model = adapted(model, tmp_path / "adapter", **{**options, "target_modules": ["query", "value"]})
    result = convert(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base", verify=True)
    assert logits_error(result.path, model, batch(model.config)) < LIMIT
    assert result.report is not None
    assert result.report.passed
    assert "the adapter was put on the base, and merged into it, by PEFT" in result.report.provenance.notes
    assert "which was adapted, does not have it" in result.dropped["cls.seq_relationship.weight"]


def test_ranks_and_scales_by_layer(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "BertModel")
    patterns = {"rank_pattern": {"layer.0.attention.self.query": 2, "^encoder.layer.1.output.dense": 3}}
    patterns["alpha_pattern"] = {"intermediate.dense": 5}
    model = adapted(base, tmp_path / "adapter", **patterns)
    convert(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base", verify=False)
    assert states_error(mlxbert.load(tmp_path / "out")[0], model, batch(base.config)) < LIMIT


def test_a_module_of_the_encoder_that_was_trained_whole(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "BertModel")
    model = adapted(base, tmp_path / "adapter", target_modules=["query"], modules_to_save=["pooler"])
    convert(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base", verify=False)
    assert states_error(mlxbert.load(tmp_path / "out")[0], model, batch(base.config)) < LIMIT


def test_a_half_precision_base_keeps_the_adapter(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "BertModel")
    base.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    model = adapted(base.float(), tmp_path / "adapter", target_modules=["query", "key"])
    result = convert(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base", verify=False)
    assert result.dtype == "float32"
    assert states_error(mlxbert.load(tmp_path / "out")[0], model, batch(base.config)) < LIMIT
    half = convert(tmp_path / "adapter", tmp_path / "half", base=tmp_path / "base", verify=False, dtype="bfloat16")
    assert half.dtype == "bfloat16"


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_an_adapter_is_kept_beside_its_base(model_type: str, dora: bool, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", architecture(model_type).encoder_class)
    convert(tmp_path / "base", tmp_path / "mlx", verify=False)
    (tmp_path / "mlx/1_Pooling").mkdir()
    pipeline = {"modules.json": "[]", "1_Pooling/config.json": "{}", "2_notes.txt": "not read"}
    for name, text in pipeline.items():
        (tmp_path / "mlx" / name).write_text(text)
    model = adapted(base, tmp_path / "adapter", use_dora=dora, use_rslora=True)
    words = [str(tmp_path / "adapter"), "--base", str(tmp_path / "mlx"), "--keep-adapter", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.convert, words)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out/model.safetensors").exists()
    # Without the modules of sentence-transformers the embeddings would be others than those of the merged model.
    assert [name for name in pipeline if (tmp_path / "out" / name).exists()] == [*pipeline][:2]
    assert states_error(mlxbert.load(tmp_path / "out")[0], model, batch(base.config)) < LIMIT
    result = CliRunner().invoke(cli.convert, [*words, "--dtype", "float16"])
    assert "--keep-adapter changes no weights; fix: leave out --dtype, or --keep-adapter" in result.output
    result = CliRunner().invoke(cli.convert, [words[0], "--keep-adapter"])
    assert "--keep-adapter keeps an adapter beside its base; fix: --base with the converted base" in result.output


def test_what_a_kept_adapter_has_no_place_for(saved: Path, tmp_path: Path) -> None:
    mlx = convert(saved / "base", tmp_path / "mlx", verify=False).path
    whole = edited(saved, tmp_path / "whole", {"base_model.model.pooler.dense.bias": torch.ones(48)})
    for source, text in (
        (whole, "has 1 tensors of modules that were trained whole, "),
        (edited(saved, tmp_path / "scales", alpha_pattern={"layer.0.attention.self.query": 3}), "differ by layer"),
    ):
        with pytest.raises(SourceError, match=rf"{text}.*; fix: without --keep-adapter it is merged"):
            keep_adapter(source, mlx, tmp_path / "out")
    with pytest.raises(CheckpointError, match="was never converted"):
        keep_adapter(saved / "adapter", saved / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What is refused


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter of its queries."""
    root = tmp_path_factory.mktemp("saved")
    adapted(save_tiny(root / "base", "BertModel"), root / "adapter", target_modules=["query"])
    return root


def edited(saved: Path, directory: Path, tensors: dict[str, Any] | None = None, **fields: Any) -> Path:
    """A copy of the adapter with other fields, and other tensors (None: without that one)."""
    directory.mkdir()
    config = json.loads((saved / "adapter/adapter_config.json").read_text()) | fields
    (directory / "adapter_config.json").write_text(json.dumps(config))
    state = load_file(saved / "adapter/adapter_model.safetensors") | (tensors or {})
    save_file({name: t for name, t in state.items() if t is not None}, directory / "adapter_model.safetensors")
    return directory


def refusal(src: Path, base: Path, out: Path) -> str:
    """The text of the error, whose first line has a fix; nothing is written."""
    with pytest.raises(SourceError) as caught:
        convert(src, out, base=base, verify=False)
    assert "; fix: " in str(caught.value).splitlines()[0]
    assert not out.exists()
    return str(caught.value)


FEATURES: dict[str, tuple[dict[str, Any], str]] = {
    "bias": ({"bias": "lora_only"}, "bias='lora_only'"),
    "IA3": ({"peft_type": "IA3"}, "peft_type is 'IA3'; LORA alone is read (LoRA and DoRA); fix: in PEFT, model.merge"),
    "AdaLoRA": ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA'"),
    "replicated layers": ({"layer_replication": [[0, 2]]}, "layer_replication=[[0, 2]]"),
    "a bias of B": ({"lora_bias": True}, "lora_bias=True"),
    "trained tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices=[1]"),
    "parameters": ({"target_parameters": ["a.weight"]}, "target_parameters=['a.weight']"),
    "a changed base": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base's weights"),
    "a later version": ({"use_magic": True}, "use_magic=True"),
    "a rank of 0": ({"r": 0}, "r is 0, not a rank or a scale; fix: get the adapter again"),
    "a huge rank": ({"r": 1 << 40}, "r is 1099511627776, not a rank"),
    "alpha NaN": ({"lora_alpha": float("nan")}, "lora_alpha is nan, not a rank or a scale"),
    "an expression": ({"rank_pattern": {"(a+)+$": 2}}, "rank_pattern has patterns that are not names of modules"),
    "another rank": ({"r": 5}, "has shapes (4, 48), (48, 4), and adapter_config.json says rank 5"),
    "no magnitude": (
        {"use_dora": True},
        "has lora_A, lora_B, not lora_A (rank, in), lora_B (out, rank) and lora_magn",
    ),
    "dropout": ({"lora_dropout": 2}, "lora_dropout is 2; fix: a number from 0 to below 1"),
}


@pytest.mark.parametrize("case", FEATURES)
def test_a_feature_that_is_not_read_is_named(saved: Path, case: str, tmp_path: Path) -> None:
    fields, text = FEATURES[case]
    assert text in refusal(edited(saved, tmp_path / "adapter", **fields), saved / "base", tmp_path / "out")


FIRST = "base_model.model.encoder.layer.0.attention.self.query"
TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "no B": ({f"{FIRST}.lora_B.weight": None}, "encoder.layer.0.attention.self.query has lora_A, not lora_A (rank"),
    "an unknown name": ({"x.lora_A.weight": torch.ones(4, 48)}, "1 tensors that are no part of a linear layer's LoRA"),
    "an embedding": (
        {"base_model.model.embeddings.word_embeddings.lora_embedding_A": torch.ones(4, 9)},
        "no part of a linear layer's LoRA, nor of a whole module after 'base_model.model.'; fix: in PEFT, model.merge",
    ),
    "a convolution": ({f"{FIRST}.lora_A.weight": torch.ones(4, 48, 3)}, "has shapes (4, 48, 3), (48, 4)"),
    "another width": (
        {f"{FIRST}.lora_A.weight": torch.ones(4, 47)},
        "the adapter is for (48, 47), the base has (48, 48)",
    ),
    "another layer": (
        {f"{FIRST}x.lora_A.weight": torch.ones(4, 48), f"{FIRST}x.lora_B.weight": torch.ones(48, 4)},
        "adapts 1 layers that the base does not have, ",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_belong_together(saved: Path, case: str, tmp_path: Path) -> None:
    tensors, text = TENSORS[case]
    assert text in refusal(edited(saved, tmp_path / "adapter", tensors), saved / "base", tmp_path / "out")


def test_the_base_is_never_looked_for(saved: Path, tmp_path: Path) -> None:
    source = edited(saved, tmp_path / "adapter", base_model_name_or_path="somebody/model")
    with pytest.raises(SourceError, match="has a PEFT adapter only, not a whole model; fix: --base with the model"):
        convert(source, tmp_path / "out", verify=False)
    convert(source, tmp_path / "out", base=saved / "base", verify=False)
    assert "no adapter_config.json, so no PEFT adapter" in refusal(saved / "base", saved / "base", tmp_path / "no")
    assert "no such directory" in refusal(tmp_path / "a/b/c", saved / "base", tmp_path / "no")


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (Path.touch, (Path("evil"),))  # type: ignore[return-value]


def test_a_pickled_adapter_is_read_and_runs_nothing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_file(saved / "adapter/adapter_model.safetensors")
    source = edited(saved, tmp_path / "adapter")
    (source / "adapter_model.safetensors").unlink()
    torch.save(state, source / "adapter_model.bin")
    convert(source, tmp_path / "out", base=saved / "base", verify=False)
    convert(saved / "adapter", tmp_path / "same", base=saved / "base", verify=False)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "same")]
    assert weights[0] == weights[1]
    torch.save({**state, "x": Evil()}, source / "adapter_model.bin")
    monkeypatch.chdir(tmp_path)
    convert(source, tmp_path / "again", base=saved / "base", verify=False)
    assert not Path("evil").exists()


def test_a_link_out_of_the_adapter_is_refused(saved: Path, tmp_path: Path) -> None:
    source = edited(saved, tmp_path / "adapter")
    (source / "adapter_model.safetensors").unlink()
    (source / "adapter_model.safetensors").symlink_to(saved / "adapter/adapter_model.safetensors")
    with pytest.raises(SourceError, match=r"adapter_model\.safetensors"):
        convert(source, tmp_path / "out", base=saved / "base", verify=False)
