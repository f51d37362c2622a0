"""Nothing outside of `mlxbert/models/`, `converter/mappings/` and `heads/pretrained/` knows an architecture.

Looked at is what runs: names, attributes and texts of the code; docstrings and comments may tell of BERT.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxbert.model_arrays import named_parameters
from mlxbert.models.architecture import architecture, supported

ROOT = Path(__file__).parent.parent.parent
MAY_KNOW = ("mlxbert/models/", "converter/mappings/", "heads/pretrained/")
# What a file may say all the same, and why.
EXCEPTIONS = {
    # It hands `BertConfig` and `BertCore` on, which are public names.
    "mlxbert/__init__.py": {"mlxbert.models.bert"},
    # Names of sentence-transformers' own: sentence_bert_config.json, its module LayerNorm.
    "mlxbert/encode/sentence_modules.py": set(supported()) | {"LayerNorm"},
    "mlxbert/encode/modules.py": {"LayerNorm"},
}


def declared() -> Iterator:
    return map(architecture, supported())


def transformers_classes() -> set[str]:
    """Every class of transformers that an architecture declares."""
    return {name for one in declared() for name in (one.encoder_class, *one.heads)}


def module_paths() -> set[str]:
    """The beginnings (two parts) of the encoder's tensor names, and the names of its norms."""
    paths = set()
    for one in declared():
        core = one.encoder(one.config.from_hf({"model_type": one.model_type, **one.tiny}))
        for name in named_parameters(core):
            parts = name.split(".")
            if len(parts) > 2:
                paths.add(".".join(parts[:2]))
            if core.is_norm(name) and parts[-2] != "norm":  # an English word
                paths.add(parts[-2])
    return paths


def config_fields() -> set[str]:
    """The fields of configurations that the contract does not have, but some architecture."""
    contract = {
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        *("pad_token_id", "initializer_range", "tie_word_embeddings", "classifier_dropout", "hidden_dropout_prob"),
        *("activation", "dropout", "legacy"),  # ordinary words, which other code uses too
    }
    return {name for one in declared() for name in one.config.CHECKS} - contract


def product_files() -> list[Path]:
    files = [file for package in ("converter", "mlxbert", "heads") for file in (ROOT / package).rglob("*.py")]
    return sorted(file for file in files if not file.relative_to(ROOT).as_posix().startswith(MAY_KNOW))


def code_words(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every name, attribute with its parent, import and string of a module; no docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # a text below a constant
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
            if isinstance(node.value, ast.Attribute):
                yield node.lineno, f"{node.value.attr}.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | bare:
            yield node.lineno, node.value


def said(text: str, forbidden: set[str], model_types: set[str], prefixes: set[str]) -> str | None:
    """What of an architecture a text of the code says; None: nothing."""
    if text in model_types or text in prefixes:
        return text
    if text.startswith("mlxbert.models.") and text.rpartition(".")[2] in {one.table for one in declared()}:
        return text
    words = "".join(letter if letter.isalnum() or letter in "._" else " " for letter in text).split()
    return next((word for word in forbidden for found in words if found == word or found.startswith(f"{word}.")), None)


@pytest.mark.parametrize("file", product_files(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_other_file_of_the_product_knows_an_architecture(file: Path) -> None:
    forbidden = transformers_classes() | module_paths() | config_fields()
    model_types, prefixes = set(supported()), {one.prefix for one in declared()}
    allowed = EXCEPTIONS.get(file.relative_to(ROOT).as_posix(), set())
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [
        f"line {line}: {word}"
        for line, text in code_words(tree)
        if (word := said(text, forbidden, model_types, prefixes)) is not None and word not in allowed
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        'x = "BertModel"',
        "transformers.RobertaForMaskedLM",
        "core.encoder.layer[0]",
        'name = f"encoder.layer.{i}.output"',
        'names = ("a", "LayerNorm")',
        "core.config.max_position_embeddings",
        'config.get("type_vocab_size")',
        "from mlxbert.models.roberta import RobertaCore",
        'prefix = "bert."',
        'model_type == "roberta"',
        'raise ValueError("fix: give a BertForSequenceClassification")',
    ],
)
def test_the_test_sees_it(code: str) -> None:
    forbidden = transformers_classes() | module_paths() | config_fields()
    prefixes = {one.prefix for one in declared()}
    assert any(said(text, forbidden, set(supported()), prefixes) for _, text in code_words(ast.parse(code)))


def test_what_is_said_to_people_is_not_code() -> None:
    forbidden = transformers_classes() | module_paths() | config_fields()
    prose = '"""Of BERT: encoder.layer, BertModel."""\nA = 1\n"""As in BertModel."""\n# LayerNorm\n'
    code = f"{prose}BertWithHead\nBertOutput\n"  # names of ours
    assert not any(said(text, forbidden, set(supported()), set()) for _, text in code_words(ast.parse(code)))
