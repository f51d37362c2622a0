"""The commands that install mlxbert; only this file changes with the first release.

Every message, model card and README line takes its command from here. The file is in `heads`, the lowest package, so
that all of them can import it.
"""

from __future__ import annotations

# PyPI has no release of mlxbert yet: `pip install mlxbert` fails or installs another package of that name.
# With the first release set this to True, and run `python -m tests.support.card_samples` for the reviewed cards.
RELEASED = False

CHECKOUT = "a checkout of mlxbert"


def requirement(*extras: str) -> str:
    """Return the requirement for pip: ``mlxbert[cpu]``, before the first release ``.[cpu]``, the checkout."""
    return ("mlxbert" if RELEASED else ".") + (f"[{','.join(extras)}]" if extras else "")


def install_command(*extras: str, reinstall: bool = False) -> str:
    """Return the shell command that installs mlxbert with `extras`: ``pip install ".[cpu,torch]"``."""
    return f'pip install {"--force-reinstall " if reinstall else ""}"{requirement(*extras)}"'


def install_fix(*extras: str, reinstall: bool = False) -> str:
    """Return `install_command` for a message, with the directory to run it in: ``… in a checkout of mlxbert``."""
    return install_command(*extras, reinstall=reinstall) + ("" if RELEASED else f" in {CHECKOUT}")
