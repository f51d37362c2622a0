"""The registry of heads: look-up, choice, mistakes, and heads of other packages."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import heads
from heads.base import Head
from heads.errors import HeadError
from heads.head_registry import (
    COMPETITION_TYPES,
    HeadDiscoveryWarning,
    best_head,
    get_head,
    head_from_settings,
    heads_for,
    register_head,
    registered_heads,
    unregister_head,
)
from tests.support.head_checks import CHECKS
from tests.support.packages import install

SEVENTH = """
    import numpy as np
    from heads.head_registry import register_head
    from heads.binary import BinaryClassificationHead

    @register_head("{name}", competition_types="binary", priority={priority})
    class {cls}(BinaryClassificationHead):
        \"\"\"A binary head that somebody else wrote.\"\"\"
"""


def seventh(name: str, priority: int = 0, cls: str = "Seventh") -> str:
    return SEVENTH.format(name=name, priority=priority, cls=cls)


def define(**members: Any) -> type[Head]:
    body = {"loss": lambda *a: None, "predict": lambda *a: None, "encode_targets": lambda *a: None}
    body |= {"metrics": ("rmse",), "default_metric": "rmse"}
    body.update(members)
    return type("Mine", (Head,), {key: value for key, value in body.items() if value is not None})


def test_every_competition_type_has_a_head_and_it_is_this_packages() -> None:
    for kind in COMPETITION_TYPES:
        assert best_head(kind) is get_head(kind)
        assert best_head(kind).competition_types == (kind,)
    assert set(COMPETITION_TYPES) <= set(registered_heads())


def test_names_that_are_unknown_get_the_nearest() -> None:
    with pytest.raises(HeadError) as caught:
        get_head("multi_label")
    assert "there is no head named 'multi_label': did you mean 'multilabel'" in str(caught.value)
    with pytest.raises(HeadError, match="did you mean 'time_series'"):
        heads_for("timeseries")
    with pytest.raises(HeadError, match="fix: one of binary, multiclass"):
        get_head("xyz")
    with pytest.raises(HeadError, match="there is no head named 'xyz'"):
        unregister_head("xyz")


@pytest.mark.usefixtures("fresh")
def test_priority_decides_and_of_equals_this_packages_own() -> None:
    register_head("a_equal", competition_types=("binary", "multiclass"))(define())
    assert best_head("binary") is get_head("binary")
    register_head("higher", competition_types="binary", priority=5)(define())
    register_head("lower", competition_types="binary", priority=-5)(define())
    assert [entry.name for entry in heads_for("binary")] == ["higher", "binary", "a_equal", "lower"]
    assert best_head("multiclass") is get_head("multiclass")
    unregister_head("higher")
    assert best_head("binary") is get_head("binary")


@pytest.mark.usefixtures("fresh")
def test_a_name_is_given_once() -> None:
    with pytest.raises(HeadError) as caught:
        register_head("binary", competition_types="binary")(define())
    message = str(caught.value)
    assert "head 'binary' is registered twice, by heads.binary.BinaryClassificationHead and by" in message
    assert "Mine; fix: give one another name, or unregister_head('binary') first" in message
    assert get_head("binary").__name__ == "BinaryClassificationHead"


@pytest.mark.parametrize(
    ("name", "types", "members", "message"),
    [
        ("my head", "binary", {}, "head name 'my head': give letters, digits and underscores"),
        ("mine", "binery", {}, "there is no competition type named 'binery': did you mean 'binary'"),
        ("mine", (), {}, "serves no competition type; give some of binary, multiclass"),
        ("mine", "binary", {"predict": None, "metrics": None}, "Mine lacks predict, metrics"),
        ("mine", "binary", {"default_metric": "f1"}, "default_metric 'f1' is not among its metrics"),
    ],
)
@pytest.mark.usefixtures("fresh")
def test_a_class_that_is_no_head(name: str, types: Any, members: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadError, match=message.replace("(", r"\(")):
        register_head(name, competition_types=types)(define(**members))
    with pytest.raises(HeadError, match=r"is not a subclass of heads\.base\.Head"):
        register_head("mine", competition_types="binary")(dict)
    with pytest.raises(HeadError, match="priority must be a whole number, not 'high'"):
        register_head("mine", competition_types="binary", priority="high")(define())  # type: ignore[arg-type]


@pytest.mark.usefixtures("fresh")
def test_a_seventh_head_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the package alone: the head is found, chosen by its priority, and passes every check."""
    (tmp_path / "seventh.py").write_text(textwrap.dedent(seventh("seventh", priority=1)))
    monkeypatch.setattr(heads, "__path__", [*heads.__path__, str(tmp_path)])
    assert registered_heads()["seventh"].provider is None
    assert best_head("binary") is get_head("seventh")
    for check in CHECKS:
        check("seventh")


@pytest.mark.usefixtures("fresh")
def test_another_packages_heads_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "fine-heads", module="fine_heads", entry="fine", source=seventh("fine", priority=3))
    monkeypatch.syspath_prepend(tmp_path)
    entry = registered_heads()["fine"]
    assert (entry.provider, entry.priority, entry.competition_types) == ("fine-heads", 3, ("binary",))
    assert best_head("binary") is entry.head
    head = entry.head.from_targets(8, np.array([0, 1, 1]))
    assert type(head_from_settings(head.settings())) is entry.head


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("x = 1", "HeadError: broken_heads was imported and registered no head"),
        (seventh("binary"), "HeadError: head 'binary' is registered twice"),
        (seventh("half") + "\n    raise ValueError('late')", "ValueError: late"),
    ],
)
@pytest.mark.usefixtures("fresh")
def test_a_broken_package_is_named_and_stops_nobody_else(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "a-broken-one", module="broken_heads", entry="broken", source=source)
    install(tmp_path, "fine-heads", module="fine_heads", entry="fine", source=seventh("fine"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(HeadDiscoveryWarning) as caught:
        assert "fine" in registered_heads()
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith("package a-broken-one: its head 'broken' (broken_heads) cannot be used: " + reason)
    assert message.endswith("fix: update or uninstall a-broken-one")
    assert "half" not in registered_heads()  # nothing of a half-imported package stays
    with pytest.raises(HeadError, match="head 'broken': package a-broken-one: its head 'broken'"):
        get_head("broken")


@pytest.mark.usefixtures("fresh")
def test_a_broken_file_of_this_package_is_an_error_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seventh.py").write_text("1 / 0\n")
    monkeypatch.setattr(heads, "__path__", [*heads.__path__, str(tmp_path)])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            registered_heads()


def test_settings_that_are_not_a_heads() -> None:
    settings = get_head("binary")(8).settings()
    with pytest.raises(HeadError, match="the settings of a head have no name"):
        head_from_settings({})
    with pytest.raises(HeadError, match="there is no head named 'binari': did you mean 'binary'"):
        head_from_settings({**settings, "name": "binari"})
    with pytest.raises(HeadError, match="the settings have 'magic', which this version does not know; fix: update"):
        head_from_settings({**settings, "arguments": {**settings["arguments"], "magic": 1}})
    with pytest.raises(HeadError, match="the settings have 'halo', which"):
        head_from_settings({**settings, "fitted": {"halo": 1}})
    with pytest.raises(HeadError, match="no arguments or no fitted values"):
        head_from_settings({"name": "binary"})
    with pytest.raises(HeadError, match="ordinal: the settings are those of head 'binary'"):
        get_head("ordinal").from_settings(settings)


@pytest.mark.usefixtures("fresh")
def test_an_unregistered_subclass_does_not_save_as_its_parent() -> None:
    mine = type("Mine", (get_head("binary"),), {})
    with pytest.raises(HeadError, match="Mine is not registered; fix: @register_head"):
        mine(8).settings()
