"""Pickles that attack: nothing runs, nothing is imported, nothing explodes."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from converter.readers import pickle_machine
from converter.readers.pickle_machine import Global, MalformedPickle, PickleMachine, Placeholder
from converter.readers.source_files import SourceError
from converter.readers.weight_files import read_weights

Container = Callable[[Path, bytes], Path]


def in_zip(path: Path, payload: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", struct.pack("<3f", 1, 2, 3))
    return path


def in_legacy(path: Path, payload: bytes) -> Path:
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, info)]
    storages = struct.pack("<q3f", 3, 1, 2, 3) if b"Storage" in payload else b""
    path.write_bytes(b"".join(parts) + payload + pickle.dumps(["0"] if storages else [], 2) + storages)
    return path


def as_plain_pickle(path: Path, payload: bytes) -> Path:
    path.write_bytes(payload if payload[:1] == b"\x80" else b"\x80\x02" + payload)
    return path


class Call:
    """Pickles as a call of `function` with `arguments`, which the loader is to make."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def attacks(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Payloads that create `canary` when they are loaded, and the name that is to be blamed."""
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    name = str(canary).encode()
    import os
    import subprocess

    return {
        "os.system": (pickle.dumps(Call(os.system, touch), 2), "posix.system"),
        "nested": (pickle.dumps({"state_dict": {"a": 1, "b": [Call(os.system, touch)]}}, 4), "posix.system"),
        "eval": (pickle.dumps(Call(eval, code), 2), "__builtin__.eval"),
        "exec": (pickle.dumps(Call(exec, code), 5), "builtins.exec"),
        "open": (pickle.dumps(Call(open, str(canary), "w"), 4), f"{open.__module__}.open"),
        "subprocess": (pickle.dumps(Call(subprocess.call, ["touch", str(canary)]), 3), "subprocess.call"),
        "by hand": (b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR.", "os.system"),
        "INST": (b"(S'" + touch.encode() + b"'\nios\nsystem\n.", "os.system"),
        "OBJ": (b"(cposix\nsystem\nS'" + touch.encode() + b"'\no.", "posix.system"),
        "spaced module": (b"cos.path os\nsystem\n(S'" + touch.encode() + b"'\ntR.", "os.path os.system"),
        "dotted name": (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x01x\x85R.", "builtins.eval"),
        "dunder": (b"c__builtin__\n__import__\n(S'os'\ntR.", "__builtin__.__import__"),
        "NEWOBJ_EX": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85}\x92.", "os.system"),
        "importlib": (b"cimportlib\nimport_module\n(S'antigravity'\ntR.", "importlib.import_module"),
        "shutil": (b"cshutil\nrmtree\n(S'" + name + b"'\ntR.", "shutil.rmtree"),
        "torch.load": (b"ctorch.serialization\nload\n(S'" + name + b"'\ntR.", "torch.serialization.load"),
        "runpy": (b"crunpy\nrun_path\n(S'" + name + b"'\ntR.", "runpy.run_path"),
        "types": (b"ctypes\nCodeType\n.", "types.CodeType"),
    }  # fmt: skip


@pytest.mark.parametrize("container", [in_zip, in_legacy, as_plain_pickle])
@pytest.mark.parametrize("case", attacks(Path("unused")))
def test_a_pickle_that_executes_code_is_refused_by_name_and_never_run(
    container: Container, case: str, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    payload, blamed = attacks(canary)[case]
    path = container(tmp_path / "pytorch_model.bin", payload)
    with pytest.raises(SourceError) as error:
        read_weights(path)
    assert str(error.value).startswith(
        f"{path}: its pickle names {blamed}, which executes code when loaded (nothing was run); "
        "fix: do not trust this file"
    )
    assert "\n" not in str(error.value)
    assert not canary.exists()


def test_the_canary_works(tmp_path: Path) -> None:
    """Python's own unpickler would have run them."""
    for case in ("os.system", "eval", "exec", "open", "subprocess", "by hand", "INST", "OBJ"):
        canary = tmp_path / case.replace(" ", "-")
        pickle.loads(attacks(canary)[case][0])
        assert canary.exists(), case


def test_unknown_callables_are_inert_and_never_imported(tmp_path: Path) -> None:
    """A module that would leave a mark when it is imported, its function one when it is called."""
    folder = tmp_path / "path"
    folder.mkdir()
    mark = tmp_path / "mark"
    (folder / "a_module_nobody_has.py").write_text(f"open({str(mark)!r}, 'w').close()\ndef f(*a): raise SystemExit")
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nK\x03tQK\x00(K\x03t"
        b"(K\x01tI00\n}tR"
    )
    call = b"ca_module_nobody_has\nf\n(S'x'\ntR"
    build = call + b"}S'__class__'\nca_module_nobody_has\nf\nsb"
    payload = b"(dS'w'\n" + tensor + b"sS'c'\n" + call + b"sS'b'\n" + build + b"sS'again'\n" + call + b"(tRs."
    sys.path.insert(0, str(folder))
    try:
        weights = read_weights(in_zip(tmp_path / "x.pt", payload))
    finally:
        sys.path.remove(str(folder))
    assert weights.entries["w"].read().tolist() == [1, 2, 3]
    assert weights.notes == ("no tensors, ignored: c, b, again",)
    assert "a_module_nobody_has" not in sys.modules
    assert not mark.exists()


def machine() -> PickleMachine:
    return PickleMachine(lambda found: None, lambda callee, arguments: Placeholder(str(callee)), lambda value: value)


VALUES = [
    None, True, False, 0, -1, 255, 65536, -(2**31), 2**63, -(2**2000), 0.5, float("inf"), "", "é\n\U0001f600",
    "x" * 70000, b"", b"\x00\xff" * 200, bytearray(b"abc"), (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [],
    [1, [2]], list(range(3000)), {}, {"a": {"b": ()}}, {i: str(i) for i in range(2000)},
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_what_pickle_says(protocol: int) -> None:
    for value in VALUES:
        if isinstance(value, bytes | bytearray) and protocol < (5 if isinstance(value, bytearray) else 3):
            continue  # a call of bytes() in older protocols, which stays inert
        file = io.BytesIO(pickle.dumps(value, protocol) + b"rest")
        assert machine().run(file) == value
        assert file.read() == b"rest"


def test_shared_and_recursive_objects() -> None:
    shared = [1]
    loop: list[Any] = [shared, shared]
    loop.append(loop)
    got = machine().run(io.BytesIO(pickle.dumps(loop)))
    assert got[0] is got[1]
    assert got[2] is got


def test_every_opcode_of_every_protocol_is_known_or_refused() -> None:
    """Only what no checkpoint has is refused: extension codes and out-of-band buffers."""
    refused = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    for opcode in pickletools.opcodes:
        subject = machine()
        subject._stack[:] = [Global("a", "b"), (), {}]
        subject._marks.append([])
        subject._memo[0] = None
        argument = "a b" if opcode.name in ("GLOBAL", "INST") else 0
        said = ""
        try:
            if opcode.name != "STOP":
                subject._step(opcode.name, argument)
        except (MalformedPickle, TypeError, ValueError, KeyError, IndexError) as error:
            said = str(error)
        assert ("which no checkpoint does" in said) == (opcode.name in refused), opcode.name


BOMBS = {
    "memo index": b"]r\xff\xff\xff\x7f.",
    "bytes claimed": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "bytes claimed within the limit": b"\x80\x04B\x00\x00\x00\x0f.",
    "bytearray claimed": b"\x80\x05\x96\x00\x00\x00\x0f\x00\x00\x00\x00.",
    "text claimed": b"X\xff\xff\xff\x7f.",
    "frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "no end": b"]" * 10,
    "empty": b".",
    "stray mark": b"t.",
    "unset memo": b"h\x05.",
    "long digits": b"L" + b"9" * 60_000 + b"L\n.",
    "endless line": b"S'" + b"x" * 2_000_000,
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused_or_harmless(case: str) -> None:
    if case == "memo index":
        assert machine().run(io.BytesIO(BOMBS[case])) == []  # a dictionary entry, not an array of 2**31
        return
    with pytest.raises(MalformedPickle):
        machine().run(io.BytesIO(BOMBS[case]))


def test_a_pickle_of_endless_operations_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "MAX_OPERATIONS", 1000)
    assert machine().run(io.BytesIO(b"(" + b"]" * 998 + b"l.")) == [[]] * 998
    with pytest.raises(MalformedPickle, match="it has more than 1000 operations"):
        machine().run(io.BytesIO(b"(" + b"]" * 1001 + b"l."))


def test_keys_that_hash_in_exponential_time_are_not_hashed() -> None:
    nested = b"(t" + b"2\x86" * 100  # DUP, TUPLE2: 2**100 leaves
    result = machine().run(io.BytesIO(b"\x80\x02}" + nested + b"K\x01s."))
    assert list(result.values()) == [1]


def test_a_dictionary_nested_in_itself_ends(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop.update(model=loop, state_dict=loop, module=loop)
    torch.save(loop, tmp_path / "x.pt")
    with pytest.raises(SourceError, match="holds no tensors"):
        read_weights(tmp_path / "x.pt")
    loop["a"] = torch.ones(1)
    torch.save(loop, tmp_path / "x.pt")
    with pytest.raises(SourceError, match="has several state dicts"):
        read_weights(tmp_path / "x.pt")
    del loop["state_dict"], loop["module"]
    torch.save(loop, tmp_path / "x.pt")
    with pytest.raises(SourceError, match="wraps its state dict more than 8 deep; fix: "):
        read_weights(tmp_path / "x.pt")


FLOATS = b"S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nK\x03"


def test_legacy_storage_views(tmp_path: Path) -> None:
    """torch before 0.4 stored a view of a storage as its root and (view key, offset, size)."""
    view = b"(" + FLOATS + b"(S'v'\nK\x01K\x02ttQ"
    tensors = b"(dS'w'\nctorch._utils\n_rebuild_tensor\n(" + view + b"K\x00(K\x02t(K\x01ttRs"
    tensors += b"S'x'\nctorch._utils\n_rebuild_tensor\n(" + view + b"K\x01(K\x01t(K\x01ttRs."
    entries = read_weights(in_legacy(tmp_path / "x.pt", tensors)).entries
    assert {key: entry.read().tolist() for key, entry in entries.items()} == {"w": [2, 3], "x": [3]}


def test_a_legacy_module_with_its_source_is_refused(tmp_path: Path) -> None:
    """torch pickled whole models with their classes' source text, under a persistent id of their own."""
    payload = b"(S'module'\ncmy.models\nNet\nS'net.py'\nS'class Net: ...'\ntQ)\x81}S'_parameters'\n}sb."
    with pytest.raises(SourceError, match=r"is a whole pickled model \(my\.models\.Net\), not a state dict"):
        read_weights(in_legacy(tmp_path / "x.pt", payload))


def test_a_parameter_with_state_a_default_dictionary_and_an_unknown_dictionary(tmp_path: Path) -> None:
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((" + FLOATS + b"tQK\x00(K\x03t(K\x01tI00\n}tR"
    parameter = b"ctorch._utils\n_rebuild_parameter_with_state\n(" + tensor + b"I00\n}}tR"
    inner = b"ccollections\ndefaultdict\n(cbuiltins\nlist\ntRS'w'\n" + parameter + b"s"
    outer = b"cmy.framework\nAttributeDict\n)RS'state_dict'\n" + inner + b"s."
    weights = read_weights(in_zip(tmp_path / "x.pt", outer))
    assert {key: entry.read().tolist() for key, entry in weights.entries.items()} == {"w": [1, 2, 3]}


def refused(kind: bytes, *, metadata: bytes = b"}") -> bytes:
    rebuild = b"ctorch._utils\n" + kind + b"\n((" + FLOATS + b"tQK\x00(K\x03t(K\x01tI00\n}" + metadata + b"tR"
    return b"(dS'w'\n" + rebuild + b"s."


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (refused(b"_rebuild_nested_tensor"), "nested_tensor"),
        (refused(b"_rebuild_meta_tensor_no_storage"), "meta_tensor_no_storage"),
        (refused(b"_rebuild_device_tensor_from_numpy"), "device_tensor_from_numpy"),
        (refused(b"_rebuild_tensor_v2", metadata=b"}S'neg'\nI01\ns"), "tensor with a lazy negation or conjugation"),
    ],
)
def test_tensors_of_other_kinds_are_refused(payload: bytes, kind: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        read_weights(in_zip(tmp_path / "x.pt", payload))
    assert "1 tensor of a kind that is not read (quantized, sparse or a subclass); fix: " in str(error.value)
    assert str(error.value).endswith(f"\n  w: {kind}")


MALFORMED = {
    "persistent id that is text": b"Pfoo\n.",
    "persistent id of another kind": b"(S'file'\nS'x'\ntQ.",
    "storage without a count": b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nS'3'\ntQ.",
    "storage of two types": b"((" + FLOATS + b"tQ(" + FLOATS.replace(b"Float", b"Half") + b"tQl.",
    "storage view": b"(" + FLOATS + b"(S'v'\nS'x'\nK\x01ttQ.",
    "tensor without a shape": b"ctorch._utils\n_rebuild_tensor\n((" + FLOATS + b"tQK\x00K\x03K\x01tR.",
    "too few arguments": b"ctorch._utils\n_rebuild_tensor\n(K\x01tR.",
    "no dtype": b"ctorch._utils\n_rebuild_tensor_v3\n((" + FLOATS + b"tQK\x00(K\x03t(K\x01tI00\n}NtR.",
    "no pairs": b"ccollections\nOrderedDict\n((lK\x01atR.",
    "no type": b"ctorch._tensor\n_rebuild_from_type_v2\n(NtR.",
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("container", [in_zip, in_legacy])
def test_malformed_references_are_refused(container: Container, case: str, tmp_path: Path) -> None:
    path = container(tmp_path / "x.pt", MALFORMED[case])
    with pytest.raises(SourceError) as error:
        read_weights(path)
    assert str(error.value).startswith(f"{path}: its pickle is damaged or no checkpoint's (it")
    assert str(error.value).endswith("; fix: get the file again")


SHAPES = [  # offset, shape, strides
    (0, (4,), (1,)),
    (1, (3,), (1,)),
    (-1, (2,), (1,)),
    (0, (2, 2), (2, 1)),
    (0, (2,), (-1,)),
    (0, (2,), (9,)),
    (0, (-1,), (1,)),
    (0, (2**40, 2**40), (0, 0)),
    (0, (2**62,), (0,)),
    (0, (3,), (1, 1)),
    (2**70, (1,), (1,)),
]


@pytest.mark.parametrize(("offset", "shape", "strides"), SHAPES)
def test_tensors_that_reach_beyond_their_storage_are_refused(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], tmp_path: Path
) -> None:
    def ints(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"L%dL\n" % value for value in values) + b"t"

    payload = (
        b"(dS'w'\nctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nK\x03tQ"
        + b"L%dL\n" % offset
        + ints(shape)
        + ints(strides)
        + b"I00\n}tRs."
    )
    with pytest.raises(SourceError, match=r"tensor w .*; fix: get the file again"):
        read_weights(in_zip(tmp_path / "x.pt", payload))
