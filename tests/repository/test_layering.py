"""Who imports whom: converter -> mlxbert -> heads, never back; torch and transformers in converter/ only, lazily."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.size import import_circles, product_files
from benchmarks.way import dataframe_way

ROOT = Path(__file__).parents[2]
ALLOWED = {"converter": {"converter", "mlxbert", "heads"}, "mlxbert": {"mlxbert", "heads"}, "heads": {"heads"}}
HEADS_KNOW = {"mlx", "numpy", "sklearn", "scipy", "statsmodels"}
HEAVY = {"google", "sentencepiece", "torch", "transformers"}
# Copied beside exported weights and run there; the converter imports them where it computes a model in PyTorch.
SCRIPT, STANDALONE = ROOT / "converter/export/inference.py", ROOT / "converter/export/inference_modules"


def imports(file: Path) -> Iterator[tuple[str, int, bool]]:
    """(top-level package, line, at module level?) of every import in a file, `TYPE_CHECKING` blocks left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    module_level = {id(node) for node in ast.iter_child_nodes(tree)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative imports hide who is imported"
            names = [node.module or ""]
        for name in names:
            yield name.split(".")[0], node.lineno, id(node) in module_level


def test_no_module_imports_itself_through_others() -> None:
    assert import_circles(product_files()) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    for module, text in {
        "a": "from heads import b",
        "b": "from heads.c import x",
        "c": "import heads.a",
        "d": "",
    }.items():
        (tmp_path / "heads").mkdir(exist_ok=True)
        (tmp_path / "heads" / f"{module}.py").write_text(text)
    assert import_circles(product_files(tmp_path)) == [["heads.a", "heads.b", "heads.c"]]


def test_a_dataframe_goes_through_at_most_20_files_before_the_first_training_step(tiny_checkpoint: Path) -> None:
    files = dataframe_way(tiny_checkpoint, ROOT)
    assert files[-1] == "mlxbert/training/step.py"
    assert len(files) <= 20, "\n".join(files)
    assert reading_order("A DataFrame") == files, "CONTRIBUTING names another reading order"


def reading_order(journey: str) -> list[str]:
    """Return the files of one journey of CONTRIBUTING, in its order."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split(f"**{journey}**")[1].split("\n\n")[0]
    paths = re.findall(r"`([a-z0-9_/]+\.py)`", text)
    return [path if (ROOT / path).exists() else f"mlxbert/{path}" for path in paths]


@pytest.mark.parametrize("journey", ["A checkpoint", "A DataFrame", "A head"])
def test_the_reading_orders_name_files_that_are_there(journey: str) -> None:
    files = reading_order(journey)
    assert len(files) >= 6
    assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("package", ALLOWED)
def test_arrows_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        for name, line, _ in imports(file):
            place = f"{file.relative_to(ROOT)}:{line} imports {name}"
            assert name not in ALLOWED or name in ALLOWED[package], place
            assert name != "tests", place


def test_torch_and_transformers_are_imported_in_converter_only_and_inside_functions() -> None:
    for package in ALLOWED:
        for file in (ROOT / package).rglob("*.py"):
            for name, line, module_level in imports(file):
                if name in HEAVY:
                    place = f"{file.relative_to(ROOT)}:{line} imports {name}"
                    assert package == "converter", place
                    assert not module_level or STANDALONE in file.parents, place


def test_what_is_shipped_alone_knows_nothing_but_itself_and_a_few_packages() -> None:
    from converter.export.run import CODE, code_files

    known = {"torch", "transformers", "numpy", "safetensors", "tqdm", CODE} | set(sys.stdlib_module_names)
    files = dict(code_files())
    modules = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files}
    for name, text in files.items():
        tree = ast.parse(text)
        for block in ast.walk(tree):
            if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test):
                block.body = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            else:
                continue
            for module in imported:
                place, top = f"{name}:{node.lineno} imports {module}", module.partition(".")[0]
                assert top in known or (top == "pandas" and node not in tree.body), place
                assert top != CODE or module in modules, f"{place}, which is not exported"
                # The modules of another export may be imported later: none may be looked up then.
                assert top != CODE or node in tree.body, place


def test_what_is_shipped_alone_is_imported_where_it_is_needed_and_no_earlier() -> None:
    for package in ALLOWED:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if STANDALONE not in file.parents and isinstance(node, ast.ImportFrom):
                    assert not (node.module or "").startswith("converter.export.inference"), file


def test_heads_are_pure() -> None:
    for file in (ROOT / "heads").rglob("*.py"):
        for name, line, _ in imports(file):
            assert name in HEADS_KNOW | {"heads"} | set(sys.stdlib_module_names), f"{file}:{line} imports {name}"


def test_the_packages_that_the_wheel_lists_are_all_there_are() -> None:
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for package in ALLOWED
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert listed == found
