"""Print the size of the product (converter, mlxbert, heads) beside its limits.

python -m benchmarks.size
python -m benchmarks.size --files      # every file with its lines
python -m benchmarks.size --way        # the files between a DataFrame and the first training step, in reading order
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.way import PACKAGES, dataframe_way

ROOT = Path(__file__).resolve().parent.parent
SMALL = 60


@dataclass(frozen=True)
class File:
    """A product file: path, lines, and the modules of ours that it imports, inside functions too."""

    path: Path
    lines: int
    module: str
    imports: frozenset[str]
    functions: tuple[tuple[int, str], ...]


def product_files(root: Path = ROOT) -> list[File]:
    """Return every Python file of the product."""
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    modules = {_module(path, root) for path in paths}
    return [_file(path, root, modules) for path in paths]


def import_circles(files: list[File]) -> list[list[str]]:
    """Return the groups of modules that import each other; empty if all imports go down."""
    graph = {file.module: sorted(file.imports - {file.module}) for file in files}
    # Remove modules without imports until none is left or only circles and what leads to them are.
    while True:
        leaves = {module for module, targets in graph.items() if not targets}
        if not leaves:
            break
        graph = {
            module: [target for target in targets if target not in leaves]
            for module, targets in graph.items()
            if module not in leaves
        }
    # What no module of the rest imports leads to a circle and is not part of one.
    while True:
        imported = {target for targets in graph.values() for target in targets}
        if graph.keys() <= imported:
            break
        graph = {module: targets for module, targets in graph.items() if module in imported}
    return _connected(graph)


def main(argv: list[str] | None = None) -> None:
    """Print the table of sizes; with --files also each file, with --way the way of a DataFrame."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="print every file with its lines")
    parser.add_argument("--way", action="store_true", help="print the files that a DataFrame's rows go through")
    options = parser.parse_args(argv)
    files = product_files()
    console = Console()
    if options.files:
        for file in sorted(files, key=lambda file: -file.lines):
            console.print(f"{file.lines:6} {file.path}", highlight=False)
    way_files = measured_way()
    if options.way:
        for number, name in enumerate(way_files, 1):
            console.print(f"{number:6} {name}", highlight=False)
    small = [file for file in files if file.lines <= SMALL and file.path.name != "__init__.py"]
    longest = max(files, key=lambda file: file.lines)
    length, function = max((found for file in files for found in file.functions), default=(0, ""))
    circles = import_circles(files)
    table = Table("Product code", "Now", "Limit")
    table.add_row("lines", f"{sum(file.lines for file in files):,}", "27,500 + 9,126 of the faults issue")
    table.add_row("files", str(len(files)), "170")
    table.add_row(f"files of at most {SMALL} lines, without __init__.py", str(len(small)), "25")
    table.add_row("longest file", f"{longest.lines} ({longest.path})", "500")
    table.add_row("longest function", f"{length} ({function})", "176")
    table.add_row("import circles", "; ".join(" ↔ ".join(circle) for circle in circles) or "none", "none")
    row = "files between a DataFrame and the first training step"
    table.add_row(row, str(len(way_files)) if way_files else "not measured: no packaged MiniLM", "20")
    console.print(table)


def measured_way() -> list[str]:
    """Return the way of a DataFrame with the packaged MiniLM; an empty list if that is not installed."""
    from converter.convert import convert
    from examples.packaged_minilm import model_directory

    with tempfile.TemporaryDirectory() as place:
        try:
            source = model_directory()
        except FileNotFoundError:
            return []
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            convert(source, Path(place) / "model", verify=False)
        return dataframe_way(Path(place) / "model", ROOT)


def _file(path: Path, root: Path, modules: set[str]) -> File:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    module = _module(path, root)
    functions = tuple(
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{module}.{node.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    imports = frozenset(name for node in ast.walk(tree) for name in _imported(node, modules))
    return File(path.relative_to(root), len(text.splitlines()), module, imports, functions)


def _imported(node: ast.AST, modules: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            name = submodule if submodule in modules else node.module
            if name in modules:
                yield name


def _module(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _reachable(graph: dict[str, frozenset[str]], start: str) -> set[str]:
    reached = {start}
    waiting = [start]
    while waiting:
        for target in graph.get(waiting.pop(), frozenset()):
            if target not in reached:
                reached.add(target)
                waiting.append(target)
    return reached


def _connected(graph: dict[str, list[str]]) -> list[list[str]]:
    sets = {module: frozenset(targets) for module, targets in graph.items()}
    reached = {module: _reachable(sets, module) for module in sets}
    circles: list[list[str]] = []
    for module in sets:
        circle = sorted(other for other in reached[module] if module in reached[other])
        if len(circle) > 1 and circle not in circles:
            circles.append(circle)
    return circles


if __name__ == "__main__":
    main()
