"""`mlxbert-push` and `mlxbert-convert --push-to` as somebody types them, the Hub found by HF_ENDPOINT alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from converter.cli import convert, push
from converter.publish.sending import Sending
from tests.support.hub.plugin import Hub
from tests.support.hub.publishing import REPO, TOKEN, assert_published
from tests.support.tiny import save_tiny


def command(
    hub: Hub, name: str, *arguments: object, answer: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run one of our commands in a process of its own; its output never has the token in it."""
    code = f"import sys; sys.argv[0] = 'mlxbert-{name}'; from converter.cli import {name}; {name}()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=hub.environment(**environment),
        input=answer,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def invoke(*arguments: object, answer: str = "") -> Any:
    """`mlxbert-push` in this process."""
    result = CliRunner().invoke(push, [str(argument) for argument in arguments], input=answer)
    assert TOKEN not in result.output
    return result


@pytest.mark.parametrize("xet", ["0", "1"])
def test_push_and_push_again(hub: Hub, writer: str, verified: Path, xet: str) -> None:
    hub.xet = xet == "1"
    settings = {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "0" if hub.xet else "1"}
    first = command(hub, "push", verified, "--to", REPO, "--yes", **settings)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert f"To        {REPO}, to be made public\n" in first.stdout
    assert "Parity    VERIFIED: encoder, own head\n" in first.stdout
    assert f"Published, and compared with what was sent: {hub.endpoint}/{REPO}\n" in first.stdout
    assert f'Next      mlxbert.load("{REPO}")\n' in first.stdout
    assert_published(hub.repositories[REPO], verified)
    assert bool(hub.cas.xorbs) == hub.xet
    again = invoke(verified, "--to", REPO)
    assert again.exit_code == 0, again.output
    assert again.stdout.startswith(
        f"Nothing to do: the same bytes are there already ({hub.endpoint}/{REPO}).\nCommit    "
    )
    assert len(hub.repositories[REPO].commits) == 2


def test_it_asks_and_takes_no_for_an_answer(hub: Hub, writer: str, verified: Path) -> None:
    result = invoke(verified, answer="n\n")
    assert result.exit_code == 0
    assert "Publish? [y/N]: " in result.stderr
    assert result.stdout.endswith("Nothing was sent.\n")
    assert hub.repositories == {}
    assert "Published" in invoke(verified, answer="y\n").stdout


def test_nobody_to_ask_is_not_done(hub: Hub, writer: str, verified: Path) -> None:
    result = invoke(verified, answer="")
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "push: error: nothing was sent, because there is no terminal to ask on; fix: add --yes\n"
    )
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("before", "interrupted; nothing half-written was left"),
        ("after", "interrupted; the repository, or the commit, may be there already: push again, what has arrived is"),
    ],
)
def test_ctrl_c(where: str, text: str, hub: Hub, writer: str, verified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sending, "run" if where == "before" else "_upload", interrupt)
    result = invoke(verified, "--yes")
    assert result.exit_code == 130
    assert text in result.stderr


def test_a_branch_is_named_in_what_to_do_next(hub: Hub, writer: str, verified: Path) -> None:
    result = invoke(verified, "--yes", "--revision", "v2")
    assert f'Next      mlxbert.load("{REPO}", revision="v2")\n' in result.stdout
    held = hub.repositories[REPO]
    card = held.commits[held.branches["v2"]]["README.md"].data.decode()
    assert f'mlxbert.load("{REPO}", revision="v2")' in card
    assert f'load_with_head("{REPO}", revision="v2")' in card


def test_a_dry_run_needs_neither_token_nor_network(hub: Hub, verified: Path) -> None:
    hub.stop()
    done = command(hub, "push", verified, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Send      model\.safetensors  \d", done.stdout, re.MULTILINE)
    assert "\n# tiny-fp32\n" in done.stdout
    assert done.stdout.endswith("Dry run: nothing was sent, nobody was asked.\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--to", "a/b--c"], "error: 'a/b--c' breaks the Hub's rules for names"),
        (["--pr", "--revision", "x"], "error: --pr and --revision: "),
        ([f"--token={TOKEN}"], "No such option"),
        ([], "error: not logged in to the Hub: run `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_a_mistake_costs_one_line(hub: Hub, verified: Path, arguments: list[str], text: str) -> None:
    result = invoke(verified, *arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert text in result.stderr


def test_a_directory_that_is_not_there_is_said_before_a_login_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    result = invoke(tmp_path / "none")
    assert result.exit_code == 2
    assert result.stderr.endswith(f"none: no such directory; fix: mlxbert-convert SRC -o {tmp_path}/none\n")


@pytest.mark.slow
def test_convert_and_push_in_one_go(hub: Hub, writer: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    save_tiny(tmp_path / "source")
    files = {p.name: p.read_bytes() for p in (tmp_path / "source").iterdir()}
    hub.add("team/tiny", {**files, "README.md": b"---\nlicense: mit\nlanguage: en\n---\n# Theirs\n"})
    done = command(
        hub, "convert", "team/tiny", "-o", tmp_path / "out", "--push-to", "alice/tiny", "--yes", HF_TOKEN=TOKEN
    )
    assert done.returncode == 0, done.stderr
    card = hub.repositories["alice/tiny"].files["README.md"].decode()
    assert "license: mit\nlanguage:\n- en\nbase_model: team/tiny\n" in card
    assert f"at revision `{hub.repositories['team/tiny'].branches['main']}`" in card


def test_what_push_to_would_refuse_is_refused_before_the_work(hub: Hub, tmp_path: Path) -> None:
    for arguments, text in (
        (["--push-to", "x"], "does not say whose it is"),
        (["--push-to", "a/b", "--no-verify"], "--push-to publishes "),
        (["--push-to", "a/b"], "not logged in to the Hub"),
    ):
        result = CliRunner().invoke(convert, ["team/none", "-o", str(tmp_path / "out"), *arguments])
        assert result.exit_code == 2
        assert text in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert hub.requests == []
