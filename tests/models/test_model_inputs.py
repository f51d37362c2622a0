"""Ids outside their table: refused on the host, NaN inside traced functions, never what lies behind the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlxbert
from converter.convert import convert
from heads.binary import BinaryClassificationHead
from heads.errors import HeadError
from heads.multiclass import MulticlassClassificationHead
from heads.ordinal import OrdinalRegressionHead
from mlxbert import BertConfig, BertCore, BertWithHead
from mlxbert.data.tokens import token_rows
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.model_arrays import InputError
from mlxbert.models.architecture import architecture, config_from_hf
from mlxbert.pipelines.texts import classify
from mlxbert.tokenization.tokenizer import TokenizerError
from mlxbert.training.optimizer import Schedule, parameter_rules
from mlxbert.training.step import StepSettings, TrainStep
from tests.support.tiny import SIZES, save_tiny

VOCABULARY, POSITIONS = 300, SIZES["max_position_embeddings"]  # more rows than an 8-bit number counts


@pytest.fixture(scope="module")
def core() -> BertCore:
    mx.random.seed(0)
    core = BertCore(BertConfig(**{**SIZES, "vocab_size": VOCABULARY}))
    core.eval()
    return core


@pytest.fixture(scope="module")
def compiled(core: BertCore) -> Callable[..., mx.array]:
    return mx.compile(lambda given: core(**given).last_hidden_state)


OUTSIDE = [
    ("input_ids", VOCABULARY),
    ("input_ids", VOCABULARY + 3),
    ("input_ids", -1),
    ("input_ids", 2_000_000_000),
    ("input_ids", 2**40),
    ("input_ids", -(2**40)),
    ("input_ids", 2**32 + 1),  # 1, were it cut to 32 bits
    ("token_type_ids", 2),
    ("token_type_ids", -1),
    ("position_ids", POSITIONS),
    ("position_ids", -1),
]


def with_id(name: str, value: int) -> dict[str, np.ndarray]:
    inputs = {"input_ids": np.full((2, 3), 5), "token_type_ids": np.zeros((2, 3), np.int64)}
    inputs["position_ids"] = np.tile(np.arange(3), (2, 1))
    inputs[name][1, 2] = value
    return inputs


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
@pytest.mark.parametrize("kind", ["numpy", "list", "mlx"])
def test_an_id_outside_its_table_is_an_error_and_not_what_lies_behind_it(
    core: BertCore, name: str, value: int, kind: str
) -> None:
    make: Any = {"numpy": np.asarray, "list": np.ndarray.tolist, "mlx": mx.array}[kind]
    size = {"input_ids": VOCABULARY, "token_type_ids": 2, "position_ids": POSITIONS}[name]
    message = rf"^{name}: {value} at \[1, 2\] is outside the model's table, which has the rows 0 to {size - 1}; fix: "
    with pytest.raises(InputError, match=message):
        core(**{key: make(array) for key, array in with_id(name, value).items()})


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_a_compiled_call_gives_nan_for_such_an_id_and_the_other_row_is_untouched(
    core: BertCore, compiled: Callable[..., mx.array], name: str, value: int
) -> None:
    inputs = {key: mx.array(array) for key, array in with_id(name, value).items()}
    good = core(**{key: mx.array(array) for key, array in with_id("input_ids", 5).items()}).last_hidden_state
    mapped = mx.vmap(lambda *given: core(*[array[None] for array in given]).last_hidden_state[0])
    for found in (
        compiled(inputs),
        mapped(inputs["input_ids"], mx.ones((2, 3)), inputs["token_type_ids"], inputs["position_ids"]),
    ):
        assert mx.isnan(found).any(axis=(1, 2)).tolist() == [False, True]
        assert mx.allclose(found[0], good[0], atol=1e-5)


def test_a_compiled_gradient_of_such_an_id_is_nan(core: BertCore) -> None:
    def gradients(given: dict[str, mx.array]) -> Any:
        return nn.value_and_grad(core, lambda: core(**given).last_hidden_state.sum())()

    loss, _ = mx.compile(gradients)({key: mx.array(array) for key, array in with_id("input_ids", -7).items()})
    assert mx.isnan(loss)
    with pytest.raises(InputError, match=r"^input_ids: -7 at \[1, 2\]"):  # not compiled, ids have values
        gradients({key: mx.array(array) for key, array in with_id("input_ids", -7).items()})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [[1, 2], [3]]}, "input_ids cannot be read as an array: are the rows of different lengths?"),
        ({"input_ids": [[1.0, 2.0]]}, "input_ids are float64, not whole numbers"),
        ({"input_ids": [[True, False]]}, "input_ids are bool, not whole numbers"),
        ({"input_ids": [["a", "b"]]}, "input_ids are <U1, not whole numbers"),
        ({"input_ids": [[None, 1]]}, "input_ids must be numbers of at most 64 bits"),
        ({"input_ids": [[2**70, 1]]}, "input_ids must be numbers of at most 64 bits"),
        ({"input_ids": mx.array([[1.0]])}, "input_ids are mlx.core.float32; fix: whole numbers"),
        ({"input_ids": mx.array([[True]])}, "input_ids are mlx.core.bool; fix: whole numbers"),
        ({"input_ids": np.array([[1, 2]]), "token_type_ids": [[0.0, 0.0]]}, "token_type_ids are float64"),
        ({"input_ids": [[1, 2]], "position_ids": [[0], [1]]}, r"position_ids has shape \(2, 1\); expected \(1, 2\)"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0.0, -10000.0]]}, "attention_mask holds -10000.0; fix: 1 for"),
        ({"input_ids": [[1, 2]], "attention_mask": mx.array([[1, 2]])}, "attention_mask holds 2; fix: 1 for real"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1], [1, 1]]}, "attention_mask cannot be read as an array"),
    ],
)
def test_what_is_no_id_is_one_clear_line(core: BertCore, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as caught:
        core(**inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4"])
def test_every_kind_of_whole_number_is_an_id(core: BertCore, dtype: str) -> None:
    ids = np.array([[5, 96, 0]])
    expected = core(ids).last_hidden_state
    assert mx.array_equal(core(ids.astype(dtype)).last_hidden_state, expected)
    if dtype != ">i4":
        array = mx.array(ids.astype(dtype))
        assert mx.array_equal(core(array).last_hidden_state, expected)
        traced = mx.vmap(lambda given: core(given[None]).last_hidden_state[0])(array)  # a comparison, too
        assert mx.allclose(traced, expected, atol=1e-5)


def test_heads_check_their_ids_too(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", "BertForMultipleChoice")
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    model, _ = mlxbert.load_with_head(tmp_path / "out")
    with pytest.raises(InputError, match=r"^input_ids: 97 at \[1, 0\] is outside"):
        model([[[5], [97]]])
    with pytest.raises(InputError, match=r"^token_type_ids has shape \(1, 1\); expected \(1, 2, 1\)"):
        model([[[5], [6]]], token_type_ids=[[0]])
    head = BertWithHead(model.core, BinaryClassificationHead(SIZES["hidden_size"]))
    with pytest.raises(InputError, match=r"^input_ids: -1 at \[0, 1\] is outside"):
        head([[5, -1]])


@pytest.mark.parametrize("compiled", [True, False])
def test_training_refuses_such_an_id_before_the_step(core: BertCore, compiled: bool) -> None:
    model = BertWithHead(BertCore(BertConfig(**SIZES)), BinaryClassificationHead(SIZES["hidden_size"]))
    rules = parameter_rules(model, rate=1e-3)
    step = TrainStep(model, rules, Schedule(5, "constant", 0), StepSettings(compiled=compiled, on_nonfinite="skip"))
    with pytest.raises(InputError, match=r"^token_type_ids: 2 at \[1, 2\] is outside"):
        step([(with_id("token_type_ids", 2), np.array([0.0, 1.0], np.float32), None)])


@pytest.mark.parametrize(
    "head", [MulticlassClassificationHead(4, classes="abc"), OrdinalRegressionHead(4, classes=[1, 2, 3])]
)
@pytest.mark.parametrize("label", [3, -1, 2**32 + 1, 2**40])
def test_an_impossible_label_is_an_error_on_the_host_and_nan_in_an_array(head: Any, label: int) -> None:
    logits = mx.zeros((3, head.num_outputs))
    with pytest.raises(HeadError, match=rf"label {label} is none of the 3 classes, 0 to 2; fix: "):
        head.loss(logits, np.array([0, label, 1]))
    with pytest.raises(HeadError, match=rf"label {label} is none of the 3 classes"):
        head.loss(logits, [0, label, 1])
    assert mx.isnan(head.loss(logits, mx.array(np.array([0, label, 1]))))


def test_the_ignored_label_stays_legal() -> None:
    head = MulticlassClassificationHead(4, classes="abc", class_weights=[1.0, 2.0, 3.0])
    logits = mx.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    for targets in ([-100, 2], np.array([-100, 2]), mx.array([-100, 2])):
        assert head.loss(logits, targets).item() == pytest.approx(head.loss(logits[1:], [2]).item())
        assert head.loss_weight(targets).item() == 3.0
    assert head.loss_weight(mx.array([99, 2])).item() < 10  # not what lies behind the three weights


# --- a model with one token type, and one with three -----------------------------------------------------------------


@pytest.fixture(scope="module")
def one_type(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("one")
    save_tiny(directory / "source", "BertForSequenceClassification", type_vocab_size=1)
    convert(directory / "source", directory / "out", verify=False)
    return directory / "out"


def test_a_model_with_one_token_type_says_that_it_takes_no_pairs(one_type: Path, tmp_path: Path) -> None:
    model, tokenizer = mlxbert.load_with_head(one_type)
    message = r"^this model has one token type, so it cannot take pairs; fix: join both texts"
    for call in (
        lambda: tokenizer(["a"], ["b"]),
        lambda: tokenizer.encode("a", ""),
        lambda: classify(model, tokenizer, {"text": "a", "text_pair": "b"}),
        lambda: token_rows(tokenizer, ["a"], ["b"], max_length=8, directory=one_type, cache=tmp_path),
    ):
        with pytest.raises(TokenizerError, match=message):
            call()
    assert model(**tokenizer(["a"])).logits.shape == (1, 2)
    with pytest.warns(UserWarning, match="mean pooling"):
        assert SentenceEncoder.from_pretrained(one_type).encode("a b").shape == (SIZES["hidden_size"],)


def test_rows_of_a_two_type_model_in_the_cache_are_not_given_to_a_one_type_model(
    one_type: Path, tmp_path: Path
) -> None:
    two = mlxbert.tokenization.Tokenizer.from_directory(one_type, type_limit=2)
    token_rows(two, ["a"], ["b"], max_length=8, directory=one_type, cache=tmp_path)
    one = mlxbert.tokenization.Tokenizer.from_directory(one_type, type_limit=1)
    with pytest.raises(TokenizerError, match="cannot take pairs"):
        token_rows(one, ["a"], ["b"], max_length=8, directory=one_type, cache=tmp_path)


@pytest.mark.parametrize("model_type", ["distilbert", "mpnet", "modernbert"])
def test_types_for_a_model_without_them_are_refused_by_name(model_type: str) -> None:
    declared = architecture(model_type)
    core = declared.encoder(config_from_hf({"model_type": model_type, **declared.tiny}))
    core([[5, 6]], token_type_ids=[[0, 0]])
    with pytest.raises(InputError, match="this model has no token types; fix: leave token_type_ids out"):
        core([[5, 6]], token_type_ids=[[0, 1]])
