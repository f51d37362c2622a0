"""`--layout full`: the head in `model.safetensors`, for packages that look for it there; and all that is ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

import mlxbert
from converter.convert import convert
from converter.export.checkpoint import export
from converter.output import OutputError
from converter.publish.push import push
from converter.verify import verify
from mlxbert.checkpoint import CheckpointError
from mlxbert.factory import create_model
from mlxbert.models.architecture import HeadKind, architecture, supported
from mlxbert.with_head import BertWithHead
from tests.support.swift_rules import swift_problems
from tests.support.tiny import declared_of, save_tiny, save_tokenizer

torch = pytest.importorskip("torch", reason="the sources are built by transformers")

CLASSES_WITH_HEAD = [name for model_type in supported() for name in architecture(model_type).heads]
TEXTS = ["a b c d e", "f g"]


class Models(dict[str, Path]):
    """Class with a head -> folder with its `source`, and that converted as `encoder` and `full`; made when asked."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, name: str) -> Path:
        folder = self[name] = self.root / name
        labels = {"num_labels": 1} if kind_of(name) is HeadKind.SEQUENCE else {}
        save_tiny(folder / "source", name, **labels)
        for layout in ("encoder", "full"):
            convert(folder / "source", folder / layout, layout=layout, verify=False)
        return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("layouts"))


def kind_of(name: str) -> HeadKind:
    return declared_of(name).heads[name].kind


def torch_logits(model: Any, directory: Path) -> dict[str, np.ndarray]:
    _, tokenizer = mlxbert.load(directory)
    inputs = {name: torch.tensor(np.array(value)).long() for name, value in tokenizer(TEXTS).items()}
    if kind_of(type(model).__name__) is HeadKind.CHOICE:
        inputs = {name: value[None] for name, value in inputs.items()}
    with torch.inference_mode():
        output = model.eval()(**inputs)
    return {name: output[name].numpy() for name in output if name.endswith("logits")}


def our_logits(directory: Path) -> dict[str, np.ndarray]:
    model, tokenizer = mlxbert.load_with_head(directory)
    inputs = tokenizer(TEXTS)
    if model.kind is HeadKind.CHOICE:
        inputs = {name: value[None] for name, value in inputs.items()}
    output = model(**inputs)
    found = {name: getattr(output, name) for name in vars(output) if name.endswith("logits")}
    return {name: np.array(value) for name, value in found.items() if value is not None}


@pytest.mark.parametrize("name", CLASSES_WITH_HEAD)
class TestEveryClass:
    def test_transformers_loads_encoder_and_head(self, models: dict[str, Path], name: str) -> None:
        import transformers

        kind = getattr(transformers, name)
        loaded, info = kind.from_pretrained(models[name] / "full", output_loading_info=True)
        assert (set(info["missing_keys"]), set(info["unexpected_keys"])) == (set(), set())
        expected = torch_logits(kind.from_pretrained(models[name] / "source"), models[name] / "full")
        found = torch_logits(loaded, models[name] / "full")
        assert expected.keys() == found.keys()
        for key, logits in expected.items():
            np.testing.assert_allclose(found[key], logits, atol=1e-6)
        _, info = transformers.AutoModel.from_pretrained(models[name] / "full", output_loading_info=True)
        assert {key for key in info["missing_keys"] if not key.startswith("pooler.")} == set()

    def test_ours_gives_what_it_gives_of_the_other_layout(self, models: dict[str, Path], name: str) -> None:
        full, encoder = (models[name] / layout for layout in ("full", "encoder"))
        expected, found = our_logits(encoder), our_logits(full)
        assert expected.keys() == found.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
        model, tokenizer = mlxbert.load(full)
        other, _ = mlxbert.load(encoder)
        inputs = tokenizer(TEXTS)
        assert np.array_equal(np.array(model(**inputs).last_hidden_state), np.array(other(**inputs).last_hidden_state))
        assert not (full / "heads.safetensors").exists()
        config = json.loads((full / "config.json").read_text())
        assert (config["architectures"], config["mlxbert"]["layout"]) == ([name], "full")

    def test_the_way_back_is_bit_for_bit(self, models: dict[str, Path], name: str, tmp_path: Path) -> None:
        export(models[name] / "full", tmp_path / "out")
        theirs, ours = (
            load_file(models[name] / "source/model.safetensors"),
            load_file(tmp_path / "out/model.safetensors"),
        )
        assert theirs.keys() == ours.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)

    def test_the_card_counts_the_encoder_alone_and_says_where_the_head_is(
        self, models: dict[str, Path], name: str
    ) -> None:
        cards = {layout: (models[name] / layout / "README.md").read_text() for layout in ("encoder", "full")}
        counts = {
            layout: card.partition(" parameters in the encoder")[0].rpartition("\n")[2]
            for layout, card in cards.items()
        }
        assert counts["encoder"] == counts["full"]
        assert "head in `model.safetensors`" in cards["full"]
        assert "head in `heads.safetensors`" in cards["encoder"]
        index = json.loads((models[name] / "full/model.safetensors.index.json").read_text())
        stored = load_file(models[name] / "full/model.safetensors").values()
        assert index["metadata"]["total_parameters"] == sum(array.size for array in stored)


RERANKER, TAGGER = "BertForSequenceClassification", "BertForTokenClassification"


@pytest.fixture(scope="module", params=["float32", "4bit", "mixed"])
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reranker")
    save_tiny(root / "source", RERANKER, num_labels=1, hidden_size=64, intermediate_size=96)
    save_tokenizer(root / "source")
    options = {} if request.param == "float32" else {"quantize": request.param, "calibration": "none"}
    convert(root / "source", root / "full", layout="full", verify=False, **options)
    return root / "full"


class TestRerankers:
    def test_mlx_vlm_loads_it_as_a_reranker(self, reranker: Path) -> None:
        from mlx_vlm.reranker_loader import load_sequence_classification_model

        theirs = load_sequence_classification_model(reranker)
        _, tokenizer = mlxbert.load(reranker)
        logits = theirs(**tokenizer(TEXTS)).logits.astype(mx.float32)
        np.testing.assert_allclose(np.array(logits), our_logits(reranker)["logits"], atol=2e-2)

    def test_swift_s_rules_hold(self, reranker: Path) -> None:
        assert swift_problems(reranker) == []

    def test_its_head_is_not_packed_and_its_encoder_is(self, reranker: Path) -> None:
        tensors = load_file(reranker / "model.safetensors")
        assert tensors["classifier.weight"].dtype in (np.float16, np.float32)
        packed = [name for name in tensors if name.endswith(".scales")]
        assert all(name.startswith("bert.") for name in packed)
        assert bool(packed) == ("quantization" in json.loads((reranker / "config.json").read_text()))

    def test_verified_and_measured_as_the_other_layout(self, reranker: Path) -> None:
        report = verify(reranker, reranker.parent / "source")
        assert report.passed
        assert any(point.name.startswith("logits") for point in report.points)

    def test_unpacked_again(self, reranker: Path, tmp_path: Path) -> None:
        if "quantization" not in json.loads((reranker / "config.json").read_text()):
            pytest.skip("nothing is packed")
        convert(reranker, tmp_path / "full", dequantize=True, layout="full")
        convert(reranker, tmp_path / "encoder", dequantize=True)
        expected = our_logits(reranker)["logits"]
        for name in ("full", "encoder"):
            assert np.array_equal(our_logits(tmp_path / name)["logits"], expected)


def test_sentence_transformers_cross_encoder_gives_the_same_scores(models: dict[str, Path]) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = models[RERANKER]
    scores = sentence_transformers.CrossEncoder(str(folder / "full"), device="cpu").predict([TEXTS])
    model, tokenizer = mlxbert.load_with_head(folder / "full")
    logits = np.array(model(**tokenizer([TEXTS[0]], [TEXTS[1]])).logits)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits[:, 0])), atol=1e-6)


def test_mlx_vlm_loads_a_tagger_whose_labels_its_source_left_out(models: dict[str, Path]) -> None:
    from mlx_vlm.token_classification import load_token_classification_model

    assert "id2label" not in json.loads((models[TAGGER] / "source/config.json").read_text())
    theirs = load_token_classification_model(models[TAGGER] / "full")
    _, tokenizer = mlxbert.load(models[TAGGER] / "full")
    inputs = tokenizer(TEXTS)
    mask = np.array(inputs["attention_mask"]).astype(bool)
    found, expected = np.array(theirs(**inputs).logits), our_logits(models[TAGGER] / "full")["logits"]
    np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5)


class TestWhatIsSavedIsOfTheEncoderLayout:
    def test_with_its_own_head(self, models: dict[str, Path], tmp_path: Path) -> None:
        model, _ = mlxbert.load_with_head(models[RERANKER] / "full")
        model.save(tmp_path / "saved")
        config = json.loads((tmp_path / "saved/config.json").read_text())
        assert config["architectures"] == ["BertModel"]
        assert "layout" not in config["mlxbert"]
        assert np.array_equal(
            our_logits(tmp_path / "saved")["logits"], our_logits(models[RERANKER] / "full")["logits"]
        )

    def test_packed_as_it_was(self, reranker: Path, tmp_path: Path) -> None:
        model, _ = mlxbert.load_with_head(reranker)
        model.save(tmp_path / "saved")
        assert np.array_equal(our_logits(tmp_path / "saved")["logits"], our_logits(reranker)["logits"])
        saved, full = (load_file(place / "model.safetensors") for place in (tmp_path / "saved", reranker))
        assert {f"bert.{name}" for name in saved} == {name for name in full if not name.startswith("classifier.")}
        assert all(np.array_equal(full[f"bert.{name}"], saved[name]) for name in saved)

    def test_with_a_head_to_train(self, models: dict[str, Path], tmp_path: Path) -> None:
        model, tokenizer = create_model("binary", models[RERANKER] / "full")
        model.save(tmp_path / "saved")
        again = BertWithHead.load(tmp_path / "saved")
        inputs = tokenizer(TEXTS)
        model.eval()
        assert np.array_equal(np.array(again(**inputs)), np.array(model(**inputs)))


def test_a_full_directory_is_published_with_its_evidence(models: dict[str, Path], tmp_path: Path) -> None:
    convert(models[RERANKER] / "source", tmp_path / "full", layout="full")
    plan = push(tmp_path / "full", "alice/reranker", dry_run=True).plan
    assert plan.unverified is None
    assert "heads.safetensors" not in plan.send
    assert "pipeline_tag: text-classification" in plan.card


class TestRefusals:
    def test_no_head(self, tmp_path: Path) -> None:
        save_tiny(tmp_path / "source")
        with pytest.raises(OutputError, match="source: no head is read from it, so it has no full layout; fix: leave"):
            convert(tmp_path / "source", tmp_path / "out", layout="full", verify=False)
        assert not (tmp_path / "out").exists()

    def test_a_head_that_mlxbert_trained(self, models: dict[str, Path], tmp_path: Path) -> None:
        create_model("binary", models[RERANKER] / "encoder")[0].save(tmp_path / "trained")
        with pytest.raises(OutputError, match=r"its head was trained by mlxbert.*; fix: mlxbert-export"):
            convert(tmp_path / "trained", tmp_path / "out", layout="full", verify=False)

    def test_an_unknown_layout(self, models: dict[str, Path], tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="layout 'both' is unknown; fix: one of encoder, full"):
            convert(models[RERANKER] / "source", tmp_path / "out", layout="both", verify=False)

    def test_a_layout_of_a_later_version(self, models: dict[str, Path], tmp_path: Path) -> None:
        convert(models[RERANKER] / "full", tmp_path / "out", layout="full", verify=False)
        config = json.loads((tmp_path / "out/config.json").read_text())
        config["mlxbert"]["layout"] = "sharded"
        (tmp_path / "out/config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="layout 'sharded' is unknown to this version; fix: "):
            mlxbert.load(tmp_path / "out")
