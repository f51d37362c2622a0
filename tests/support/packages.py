"""A package of heads or losses in a folder, with its entry point, as pip would leave it there."""

from __future__ import annotations

import textwrap
from pathlib import Path


def install(site: Path, package: str, *, module: str, entry: str, source: str, group: str = "mlxbert.heads") -> None:
    """Write a distribution with one module and one entry point of `group` into `site`."""
    site.mkdir(exist_ok=True)
    (site / f"{module}.py").write_text(textwrap.dedent(source))
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry} = {module}\n")
