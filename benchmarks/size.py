"""Print the size of the product (converter, mlxbert, heads) beside its limits.

python -m benchmarks.size
python -m benchmarks.size --files      # every file with its lines
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("converter", "mlxbert", "heads")
SMALL = 60


@dataclass(frozen=True)
class File:
    """A product file: its path, its lines and its module-level imports of our own modules."""

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
    """Return the groups of modules that import each other at module level; empty where arrows only go down."""
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


def way(files: list[File], start: str, end: str) -> list[str]:
    """Return the modules that importing `start` reaches on a way to `end`, in alphabetical order."""
    graph = {file.module: file.imports for file in files}
    reached = _reachable(graph, start)
    return sorted(module for module in reached if end in _reachable(graph, module) or module == end)


def main(argv: list[str] | None = None) -> None:
    """Print the table of sizes; with --files also each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="print every file with its lines")
    options = parser.parse_args(argv)
    files = product_files()
    console = Console()
    if options.files:
        for file in sorted(files, key=lambda file: -file.lines):
            console.print(f"{file.lines:6} {file.path}", highlight=False)
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
    console.print(table)


def _file(path: Path, root: Path, modules: set[str]) -> File:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    module = _module(path, root)
    functions = tuple(
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{module}.{node.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    imports = frozenset(name for node in tree.body for name in _imported(node, modules))
    return File(path.relative_to(root), len(text.splitlines()), module, imports, functions)


def _imported(node: ast.stmt, modules: set[str]) -> Iterator[str]:
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
