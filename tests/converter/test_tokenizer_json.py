"""A source with a SentencePiece model alone gets its `tokenizer.json` from transformers when it is converted."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter import tokenizer_json
from converter.convert import convert
from converter.export.checkpoint import export
from converter.readers.source_files import SourceError
from mlxbert.errors import MLXBertError
from mlxbert.models.architecture import architecture, supported
from mlxbert.tokenization.tokenizer import Tokenizer, TokenizerError
from tests.models.test_tokenizer_kinds import PAIRS, TEXTS, agree, write_json
from tests.support.tiny import save_tiny
from tests.support.tokenizer_files import SENTENCEPIECE_KINDS, sentencepiece_model

transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

MODELS = [name for name in supported() if architecture(name).tokenizer_class in SENTENCEPIECE_KINDS]
# transformers itself gives other ids for this token with the SentencePiece model than with tokenizer.json.
SAME = [i for i, (a, b) in enumerate(zip(TEXTS, PAIRS, strict=True)) if "NOTUSED" not in a + b]


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny model of an architecture with its SentencePiece model, without `tokenizer.json`."""
    directory = tmp_path / "source"
    save_tiny(directory, architecture(request.param).encoder_class)
    (directory / "tokenizer.json").unlink()
    return directory


def model_of(directory: Path) -> Path:
    (path,) = directory.glob("*.model")
    return path


@pytest.mark.parametrize("source", MODELS, indirect=True)
def test_the_ids_are_those_of_the_source(source: Path, tmp_path: Path) -> None:
    before = transformers.AutoTokenizer.from_pretrained(source)
    (source / "vocab.txt").write_text("[PAD]\n")  # which its class does not read
    result = convert(source, tmp_path / "out", verify=False)
    name = model_of(source).name
    assert f"tokenizer.json is made of {name} by transformers" in result.notes
    assert (result.path / name).read_bytes() == model_of(source).read_bytes()
    assert not (source / "tokenizer.json").exists()
    agree(result.path, limits=(None, 9))
    rows = Tokenizer.from_directory(result.path).encode(TEXTS, PAIRS)
    expected = before(TEXTS, PAIRS, return_offsets_mapping=True)
    for i in SAME:
        assert list(rows[i].ids) == expected["input_ids"][i], TEXTS[i]
        assert list(rows[i].offsets) == expected["offset_mapping"][i], TEXTS[i]
    export(result.path, tmp_path / "back")
    after = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")(TEXTS, PAIRS)["input_ids"]
    assert after == [list(row.ids) for row in rows]


@pytest.mark.parametrize("source", MODELS, indirect=True)
def test_settings_and_added_tokens_of_the_source(source: Path, tmp_path: Path) -> None:
    settings = {"do_lower_case": True, "add_prefix_space": False, "extra_special_tokens": ["e"]}
    write_json(source / "tokenizer_config.json", settings)
    ids = transformers.AutoTokenizer.from_pretrained(source)(TEXTS, PAIRS)["input_ids"]
    result = convert(source, tmp_path / "out", verify=False)
    ours = agree(result.path, limits=(None,))
    for i, row in enumerate(ours.encode(TEXTS, PAIRS)):
        assert list(row.ids) == ids[i] or i not in SAME, TEXTS[i]


def test_calibration_reads_its_text_with_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_tiny(source, "XLMRobertaModel", hidden_size=64, num_attention_heads=4, intermediate_size=64)
    (source / "tokenizer.json").unlink()
    result = convert(source, tmp_path / "out", verify=False, quantize="mixed")
    assert (result.path / "tokenizer.json").is_file()
    assert "calibration" in json.loads((result.path / "config.json").read_text())["mlxbert"]["quantization"]


@pytest.mark.parametrize("source", MODELS, indirect=True)
def test_sentence_transformers_reads_the_output(source: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    result = convert(source, tmp_path / "out", verify=False)
    model = sentence_transformers.SentenceTransformer(str(result.path), device="cpu")
    rows = Tokenizer.from_directory(result.path, max_length=32).encode(TEXTS)
    found = model.tokenizer(TEXTS, truncation=True, max_length=32)["input_ids"]
    assert found == [list(row.ids) for row in rows]


def message(source: Path, out: Path) -> str:
    with pytest.raises(MLXBertError) as caught:
        convert(source, out, verify=False)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("source", MODELS[:1], indirect=True)
def test_without_the_packages_the_message_says_what_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    name = model_of(source).name

    def find(package: str, *args: Any) -> Any:
        return None if package in ("sentencepiece", "google.protobuf") else found(package, *args)

    monkeypatch.setattr(tokenizer_json.importlib.util, "find_spec", find)
    text = message(source, tmp_path / "out")
    assert text.startswith(
        f"{source}: its tokenizer is the SentencePiece model {name}, which becomes tokenizer.json by transformers, "
        'and sentencepiece and protobuf are not installed; fix: pip install ".[torch]"'
    )
    assert text.endswith(f"without {name}, source converts to an encoder alone")
    model_of(source).unlink()
    notes = convert(source, tmp_path / "out", verify=False).notes
    assert (
        f"the source has no tokenizer (tokenizer.json or {name}): put one there, and convert again, to encode text"
        in notes
    )


@pytest.mark.parametrize("source", MODELS[:1], indirect=True)
def test_a_model_under_another_name(source: Path, tmp_path: Path) -> None:
    path = model_of(source)
    path.rename(source / "spm.model" if path.name != "spm.model" else source / "spiece.model")
    assert f"reads {path.name}, and there is {model_of(source).name}; fix: rename it" in message(
        source, tmp_path / "o"
    )


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "not a whole SentencePiece model"),
    "cut": (cut, "SentencePiece model"),
    "text": (lambda data: b"not found", "not a SentencePiece model ("),
    "LFS": (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git-LFS pointer"),
    "zeros": (lambda data: bytes(1000), "not a SentencePiece model ("),
    "pieces alone": (lambda data: data[: data.index(b"\x12", len(data) // 4)], "SentencePiece model"),
    "nested": (lambda data: b"\x0b" * 100_000, "not a SentencePiece model ("),
    "of another type": (lambda data: sentencepiece_model("XLMRobertaTokenizer", 300, "bpe"), "of type BPE"),
}


@pytest.mark.parametrize("source", MODELS[:1], indirect=True)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_models(source: Path, tmp_path: Path, damage: str) -> None:
    change, expected = DAMAGE[damage]
    path = model_of(source)
    path.write_bytes(change(path.read_bytes()))
    text = message(source, tmp_path / "out")
    assert text.startswith(str(path)), text
    assert expected in text
    assert "fix: " in text


@pytest.mark.parametrize("name", SENTENCEPIECE_KINDS)
def test_any_damage_is_one_line(name: str, tmp_path: Path) -> None:
    """Bytes changed, dropped and repeated: the model is converted as transformers reads it, or refused in one line."""
    from converter.source import Source

    kind, generator = SENTENCEPIECE_KINDS[name], random.Random(name)
    whole = sentencepiece_model(name, 300)
    config = {"model_type": kind.model_type, "tokenizer_class": name}
    write_json(tmp_path / "config.json", config)
    path = tmp_path / kind.file
    outcomes = set()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(generator.choice([1, 1, 3, 30])):
            place = generator.randrange(len(data))
            match generator.randrange(4):
                case 0:
                    data[place] = generator.randrange(256)
                case 1:
                    del data[place : place + generator.choice([1, 4, 500])]
                case 2:
                    data[place:place] = data[place : place + generator.choice([1, 4, 500])]
                case 3:
                    data[place] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        given = Source(
            location="here",
            root=tmp_path,
            directory=tmp_path,
            revision=None,
            config=config,
            entries={},
            format="safetensors",
            weight_files=(),
            side_files={kind.file: path},
            modules=(),
            notes=(),
            own_head={},
        )
        try:
            with tokenizer_json.with_tokenizer_json(given) as made:
                folder = made.side_files["tokenizer.json"].parent
                Tokenizer.from_directory(folder).encode(TEXTS[:20])
            outcomes.add("converted")
        except (SourceError, TokenizerError) as error:
            outcomes.add("refused")
            lines = str(error).splitlines()
        else:
            lines = [""]
        assert len(lines) == 1
        assert not path.with_name("tokenizer.json").exists()
    assert outcomes == {"converted", "refused"}


@pytest.mark.parametrize("source", MODELS, indirect=True)
def test_a_directory_without_its_tokenizer_names_the_file_that_would_do(source: Path, tmp_path: Path) -> None:
    name = model_of(source).name
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_directory(source)
    assert str(caught.value) == (
        f"{source}: no tokenizer.json, and the tokenizers package does not read {name}; "
        "fix: convert the model with mlxbert-convert, which makes tokenizer.json"
    )
    shutil.move(model_of(source), tmp_path / name)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_directory(source)
    assert str(caught.value) == (
        f"{source}: no tokenizer: neither tokenizer.json nor {name} is there; fix: copy tokenizer.json from the "
        f"model's source, or put {name} beside the source and convert it again"
    )
