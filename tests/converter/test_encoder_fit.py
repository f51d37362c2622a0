"""An encoder is found whatever wrappers put before its names; what is beside it is kept, dropped or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from converter.cli import convert as command
from converter.convert import convert
from converter.mapping import MappingError
from converter.readers.encoder_fit import SeveralEncodersError, grouped
from converter.source import SourceError, open_source
from converter.verify import VerifyError, verify
from mlxbert.models.config_fields import ConfigError
from tests.support.tiny import tiny_model, write_vocab

State = dict[str, torch.Tensor]
OTHER_SIZES = {"hidden_size": 24, "intermediate_size": 40}


def state_of(architecture: str = "BertModel", seed: int = 0, **sizes: Any) -> State:
    return dict(tiny_model(architecture, seed=seed, **sizes).state_dict())


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def write(directory: Path, state: State, drop: tuple[str, ...] = (), **config: Any) -> Path:
    """A directory with a pickle, a config.json and a vocabulary."""
    directory.mkdir(exist_ok=True)
    values = {**tiny_model().config.to_dict(), "architectures": ["BertModel"], **config}
    (directory / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k not in drop}))
    write_vocab(directory / "vocab.txt", values["vocab_size"])
    torch.save(state, directory / "pytorch_model.bin")
    return directory


def assert_encoder(directory: Path, state: State) -> None:
    """The written encoder is `state`, bit for bit."""
    written = load_file(directory / "model.safetensors")
    assert set(written) == set(state)
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())


PREFIXES = [
    "encoder.", "bert_model.", "backbone.", "0.auto_model.", "question_encoder.bert_model.", "ctx_model.",
    "text_encoder.bert.", "base_model.model.bert.", "net.0.module.lm.", "model.model.encoder.", "embeddings.",
    "pooler.",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_encoder_under_any_prefix(prefix: str, tmp_path: Path) -> None:
    state = state_of()
    source = open_source(str(write(tmp_path / "src", prefixed(prefix, state))))
    assert set(source.entries) == set(state) or set(source.entries) == set(prefixed("bert.", state))
    convert(tmp_path / "src", tmp_path / "out", verify=False)
    assert_encoder(tmp_path / "out", state)


@pytest.mark.parametrize("prefix", ["roberta.", "model.roberta."])
def test_the_prefix_of_another_architecture_is_said(prefix: str, tmp_path: Path) -> None:
    result = convert(write(tmp_path / "src", prefixed(prefix, state_of())), tmp_path / "out", verify=False)
    assert (
        "roberta. is the usual prefix of model_type 'camembert' or 'roberta' or 'xlm-roberta', but config.json says "
        "'bert', and the model computes as that; if it is wrong, fix config.json"
    ) in "\n".join(result.notes)


@pytest.mark.parametrize("prefix", ["", "bert.", "text_encoder.bert."])
def test_its_own_prefix_is_no_news(prefix: str, tmp_path: Path) -> None:
    result = convert(write(tmp_path / "src", prefixed(prefix, state_of())), tmp_path / "out", verify=False)
    assert not any("usual prefix" in note for note in result.notes)


def test_a_wrapped_encoder_is_proven_against_pytorch(tmp_path: Path) -> None:
    write(tmp_path / "src", prefixed("backbone.", state_of()))
    result = convert(tmp_path / "src", tmp_path / "out", verify=True)
    assert result.report is not None
    assert result.report.passed
    assert "wrapper prefixes taken off tensor names: backbone." in result.notes
    assert verify(tmp_path / "out", tmp_path / "src").passed


def test_a_head_under_the_same_prefix_is_kept_and_one_beside_it_is_said(tmp_path: Path) -> None:
    state = state_of("BertForSequenceClassification")
    inside = write(tmp_path / "inside", prefixed("net.", state), architectures=["BertForSequenceClassification"])
    result = convert(inside, tmp_path / "a", verify=True)
    assert set(result.heads) == {"classifier.bias", "classifier.weight"}
    encoder = {f"net.{name}": tensor for name, tensor in state.items() if name.startswith("bert.")}
    head = {name: tensor for name, tensor in state.items() if not name.startswith("bert.")}
    result = convert(write(tmp_path / "beside", {**encoder, **head}), tmp_path / "b", verify=False)
    assert set(result.heads) == {"classifier.bias", "classifier.weight"}
    assert (
        "classifier.weight and 1 more beside net.bert.: taken for transformers' own head; --encoder-only leaves it out"
        in result.notes
    )


HEADS = {
    "a ColBERT projection": {"linear.weight": torch.ones(8, 48)},
    "a CRF": {f"crf.{name}": torch.ones(3) for name in ("transitions", "start", "end", "mask")},
}
# Beside bert., this would be a part of the encoder.
BESIDE = {"a head with an encoder's name": {"pooler.attention.weight": torch.ones(48)}}


@pytest.mark.parametrize(
    ("prefix", "case"), [("bert.", case) for case in HEADS] + [("backbone.", case) for case in HEADS | BESIDE]
)
def test_a_head_that_is_not_known_is_left_out_where_asked(prefix: str, case: str, tmp_path: Path) -> None:
    state, head = state_of(), (HEADS | BESIDE)[case]
    source = write(tmp_path / "src", {**prefixed(prefix, state), **head})
    with pytest.raises(MappingError) as caught:
        convert(source, tmp_path / "out", verify=False)
    assert str(caught.value).splitlines()[-1] == (
        "  fix: --encoder-only converts the encoder alone and leaves them out (a head that is not known here)"
    )
    result = CliRunner().invoke(command, [str(source), "-o", str(tmp_path / "out"), "--encoder-only", "--verify"])
    assert result.exit_code == 0, result.output
    assert_encoder(tmp_path / "out", state)
    names = ["crf.* (4 tensors)"] if case == "a CRF" else list(head)
    for name in names:
        assert f"Dropped   {name}: not of the encoder (--encoder-only)" in result.output
    block = json.loads((tmp_path / "out" / "config.json").read_text())["mlxbert"]
    assert block["dropped"] == dict.fromkeys(names, "not of the encoder (--encoder-only)")
    assert verify(tmp_path / "out", source).passed  # the same is left out of the reference


def test_encoder_only_leaves_out_a_head_that_is_known(tmp_path: Path) -> None:
    state = state_of("BertForSequenceClassification")
    result = convert(write(tmp_path / "src", state), tmp_path / "out", verify=True, encoder_only=True)
    assert result.heads == ()
    assert not (tmp_path / "out" / "heads.safetensors").exists()
    assert set(result.dropped) == {"classifier.weight", "classifier.bias"}


def test_encoder_only_leaves_out_no_part_of_the_encoder(tmp_path: Path) -> None:
    state = {**state_of(), "encoder.layer.0.attention.self.rel.weight": torch.ones(48, 8)}
    with pytest.raises(MappingError, match="inside the encoder, they make it another model than bert"):
        convert(write(tmp_path / "src", state), tmp_path / "out", verify=False, encoder_only=True)


def bi_encoder() -> tuple[State, State, State]:
    question, context = state_of(seed=1), state_of(seed=2)
    both = {**prefixed("question_encoder.bert_model.", question), **prefixed("ctx_encoder.bert_model.", context)}
    return question, context, {**both, "scale": torch.ones(1)}


def test_of_several_encoders_the_user_chooses_one(tmp_path: Path) -> None:
    question, context, both = bi_encoder()
    source = write(tmp_path / "src", both)
    result = CliRunner().invoke(command, [str(source), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.stderr.strip() == (
        f"convert: error: {source}/pytorch_model.bin: has 2 encoders, under the prefixes "
        "'question_encoder.bert_model.' and 'ctx_encoder.bert_model.'; fix: choose one, as in "
        "--prefix question_encoder.bert_model."
    )
    for prefix, state in (("question_encoder.bert_model", question), ("ctx_encoder.bert_model.", context)):
        done = convert(source, tmp_path / prefix, verify=True, prefix=prefix)
        assert_encoder(tmp_path / prefix, state)
        other = "ctx_encoder" if prefix.startswith("question") else "question_encoder"
        assert set(done.dropped) == {f"{other}.* ({len(state)} tensors)", "scale"}
        assert verify(tmp_path / prefix, source).passed  # the one that was converted
    assert not verify(tmp_path / "ctx_encoder.bert_model.", source, prefix="question_encoder.bert_model.").passed
    with pytest.raises(SourceError, match=r"no encoder under the prefix 'x'; fix: one of those that there are"):
        convert(source, tmp_path / "x", prefix="x", verify=False)


def test_an_encoder_beside_a_bare_one(tmp_path: Path) -> None:
    student, teacher = state_of(seed=1), state_of(seed=2)
    source = write(tmp_path / "src", {**student, **prefixed("teacher.", teacher)})
    with pytest.raises(SeveralEncodersError, match=r"under the prefixes '' and 'teacher\.'"):
        convert(source, tmp_path / "out", verify=False)
    for prefix, state in (("", student), ("teacher.", teacher)):
        convert(source, tmp_path / f"out{prefix}", verify=True, prefix=prefix)
        assert_encoder(tmp_path / f"out{prefix}", state)


def test_two_models_under_wrappers_that_are_taken_off_elsewhere(tmp_path: Path) -> None:
    """An average of the weights beside them: without `model.` and `module.` both would have one name."""
    state, average = state_of(seed=1), state_of(seed=2)
    source = write(tmp_path / "src", {**prefixed("model.", state), **prefixed("module.", average)})
    with pytest.raises(SeveralEncodersError, match=r"'model\.' and 'module\.'"):
        convert(source, tmp_path / "out", verify=False)
    convert(source, tmp_path / "out", verify=False, prefix="module.")
    assert_encoder(tmp_path / "out", average)


def test_of_two_encoders_the_one_of_config_jsons_sizes(tmp_path: Path) -> None:
    state, small = state_of(), state_of(**OTHER_SIZES)
    source = write(tmp_path / "src", {**prefixed("teacher.", state), **prefixed("student.", small)}, **OTHER_SIZES)
    done = convert(source, tmp_path / "out", verify=False)
    assert_encoder(tmp_path / "out", small)
    assert done.dropped == {f"teacher.* ({len(state)} tensors)": "not of the encoder under student."}


def test_an_incomplete_encoder_under_a_prefix_says_what_is_missing(tmp_path: Path) -> None:
    state = prefixed("backbone.", state_of())
    del state["backbone.encoder.layer.1.output.dense.bias"]
    with pytest.raises(MappingError, match=r"1 tensor is missing .*\n  encoder\.layer\.1\.output\.dense\.bias\n"):
        convert(write(tmp_path / "src", state), tmp_path / "out", verify=False)


LORA = "base_model.model.encoder.layer.0.attention.self.query."
ADAPTERS = {
    "LoRA": [f"{LORA}base_layer.weight", f"{LORA}lora_A.default.weight", f"{LORA}lora_B.default.weight"],
    "loralib": ["encoder.layer.0.attention.self.query.lora_A"],
    "IA3": [f"{LORA}ia3_l.default"],
    "DoRA": [f"{LORA}lora_magnitude_vector.default.weight"],
    "a trained copy": ["base_model.model.classifier.modules_to_save.default.weight"],
}


@pytest.mark.parametrize("case", ADAPTERS)
@pytest.mark.parametrize("encoder_only", [True, False])
def test_a_peft_checkpoint_is_never_converted_without_its_adapter(
    case: str, encoder_only: bool, tmp_path: Path
) -> None:
    state = {**prefixed("base_model.model.", state_of()), **dict.fromkeys(ADAPTERS[case], torch.ones(2, 2))}
    with pytest.raises(SourceError, match=r"of a PEFT adapter .* fix: in PEFT, model\.merge_and_unload\(\)"):
        convert(write(tmp_path / "src", state), tmp_path / "out", verify=False, encoder_only=encoder_only)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_weights_beside_an_adapter_are_refused_and_the_fix_works(name: str, tmp_path: Path) -> None:
    state = state_of()
    source = write(tmp_path / "src", state)
    (source / name).write_text("{}")
    with pytest.raises(
        SourceError, match=rf"has a PEFT adapter \({name}\) beside pytorch_model\.bin, .* itself as SRC"
    ):
        convert(source, tmp_path / "out", verify=False)
    convert(source / "pytorch_model.bin", tmp_path / "out", verify=False)
    assert_encoder(tmp_path / "out", state)


# config.json without a model_type


@pytest.mark.parametrize("name", ["bert_config.json", "config.json"])
@pytest.mark.parametrize("prefix", ["", "bert.", "backbone."])
def test_a_config_without_a_model_type(name: str, prefix: str, tmp_path: Path) -> None:
    source = write(tmp_path / "src", prefixed(prefix, state_of()), drop=("model_type", "architectures"))
    (source / "config.json").rename(source / name)
    result = convert(source, tmp_path / "out", verify=True)
    assert f"{name} has no model_type: taken for 'bert', whose tensors these are" in result.notes
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "bert"
    again = convert(source / "pytorch_model.bin", tmp_path / "again", config=source / name, verify=False)
    assert again.notes == result.notes


@pytest.mark.parametrize(
    "change", [{"architectures": ["RobertaModel"]}, {"pad_token_id": 1}, {"type_vocab_size": 1}], ids=str
)
def test_what_may_be_another_architecture_is_not_assumed(change: dict[str, Any], tmp_path: Path) -> None:
    source = write(tmp_path / "src", state_of(**{k: v for k, v in change.items() if k == "type_vocab_size"}),
                   drop=("model_type",), **change)  # fmt: skip
    guess = "roberta" if "architectures" in change else "bert"
    with pytest.raises(ConfigError, match=f'fix: add "model_type": "{guess}", or the one of'):
        convert(source, tmp_path / "out", verify=False)


# what stopped a comparison


@pytest.mark.parametrize(
    "change",
    [
        {"id2label": {"0": "a", "1": "b", "3": "c"}, "label2id": {"a": 0, "b": 1, "c": 3}},
        {"problem_type": "ranking"},
        {"problem_type": ["regression"]},
        {"num_labels": "three"},
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["BertModel", "BertForSequenceClassification"])
def test_odd_labels_do_not_stop_the_encoders_proof(architecture: str, change: dict[str, Any], tmp_path: Path) -> None:
    source = write(tmp_path / "src", state_of(architecture), architectures=[architecture], **change)
    result = convert(source, tmp_path / "out", verify=True)
    assert result.report is not None
    assert result.report.passed
    assert np.isfinite([point.max_rel or 0 for point in result.report.points]).all()


def test_a_reference_of_another_width_is_one_line(tmp_path: Path) -> None:
    convert(write(tmp_path / "src", state_of()), tmp_path / "out", verify=False)
    other = write(tmp_path / "other", state_of(num_hidden_layers=2, **OTHER_SIZES), num_hidden_layers=2, **OTHER_SIZES)
    with pytest.raises(VerifyError) as caught:
        verify(tmp_path / "out", other)
    assert str(caught.value) == (
        f"{other}: is another model than {tmp_path / 'out'}: its hidden_size 24, not 48; "
        "its num_hidden_layers 2, not 3; its intermediate_size 40, not 80; "
        "fix: give --reference what it was converted from, src"
    )


def test_many_dropped_tensors_are_told_by_their_beginning() -> None:
    names = [f"model.crf.{i}" for i in range(5)] + ["model.loss"]
    assert list(grouped(names, ["model.bert.x"], "why")) == ["model.crf.* (5 tensors)", "model.loss"]
