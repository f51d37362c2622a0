"""Who imports whom: converter -> mlxbert -> heads, never back; torch and transformers in converter/ only, lazily."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.size import import_circles, product_files
from benchmarks.way import dataframe_way

ROOT = Path(__file__).parents[2]
ALLOWED = {"converter": {"converter", "mlxbert", "heads"}, "mlxbert": {"mlxbert", "heads"}, "heads": {"heads"}}
HEADS_KNOW = {"mlx", "numpy", "sklearn", "scipy", "statsmodels"}
HEAVY = {"torch", "transformers"}
# Copied beside exported weights and run there; nothing here imports it.
STANDALONE = ROOT / "converter/export/inference.py"


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
                    assert not module_level or file == STANDALONE, place


def test_what_is_shipped_alone_knows_no_package_of_ours_and_none_of_ours_knows_it() -> None:
    known = {"torch", "transformers", "numpy", "safetensors", "tqdm"}
    for name, line, _ in imports(STANDALONE):
        assert name in known | set(sys.stdlib_module_names), f"{STANDALONE}:{line} imports {name}"
    for package in ALLOWED:
        for file in (ROOT / package).rglob("*.py"):
            assert "export.inference" not in file.read_text(encoding="utf-8"), file


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
