"""Seeded damage to files: bytes, JSON values, safetensors headers, and files that are no regular files."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ESCAPE = "\x1b]0;owned\x07\x1b[31m"
HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**40, 2**70, 1.5, -1e308, float("inf"), float("nan"), "", "x", ESCAPE,
    "\ud800", "../../outside/secret.txt", "/etc/hostname", "a" * 300, "é\u202e\x00", [], [1], [[]], ["x", None], {},
    {"a": 1}, {"": []},
)  # fmt: skip


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip a bit, overwrite a run, cut off, remove, repeat or insert a piece."""
    if not data:
        return bytes(rng.randbytes(rng.randrange(1, 40)))
    at, run = rng.randrange(len(data)), rng.randrange(1, 9)
    match rng.randrange(6):
        case 0:
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        case 1:
            return data[:at] + bytes(rng.choices([0, 1, 0x7F, 0xFF, 0x2E, 0x1B], k=run)) + data[at + run :]
        case 2:
            return data[:at]
        case 3:
            return data[:at] + data[at + run :]
        case 4:
            return data[: at + run] + data[at:]
        case _:
            return data[:at] + rng.choice([b"\x1b]0;owned\x07", b"\x00", b"\xff\xfe", b'"', b"\r", b"\n"]) + data[at:]


def damaged_json(value: Any, rng: random.Random) -> Any:
    """Replace, remove, rename or add one value somewhere in a JSON document."""
    places = list(_containers(value))
    if not places:
        return rng.choice(HOSTILE)
    inner = rng.choice(places)
    if isinstance(inner, dict):
        key = rng.choice(list(inner)) if inner else "new"
        match rng.randrange(5):
            case 0:
                inner.pop(key, None)
            case 1:
                inner[str(rng.choice((ESCAPE, "../x", "a" * 300, "", "\ud800", "é")))] = inner.pop(key, None)
            case _:
                inner[key] = rng.choice(HOSTILE)
    else:
        at = rng.randrange(len(inner)) if inner else 0
        match rng.randrange(4):
            case 0:
                del inner[at : at + 1]
            case 1:
                inner.insert(at, rng.choice(HOSTILE))
            case _:
                inner[at : at + 1] = [rng.choice(HOSTILE)]
    return value


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


def damaged_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Damage the header as JSON and write its length anew, so that the damage is not found by that alone."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(damaged_json(json.loads(data[8 : 8 + length]), rng)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def damage_file(path: Path, rng: random.Random) -> str:
    """Damage one file in a way that suits its format; returns what was done."""
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.8:
        try:
            if path.suffix == ".json":
                text = json.dumps(damaged_json(json.loads(data), rng))
            else:
                lines = data.decode().splitlines()
                at = rng.randrange(len(lines))
                lines[at] = json.dumps(damaged_json(json.loads(lines[at]), rng))
                text = "\n".join(lines) + "\n"
        except ValueError:
            pass
        else:
            path.write_text(text)
            return f"JSON of {path.name}"
    if path.suffix == ".safetensors" and rng.random() < 0.6:
        path.write_bytes(damaged_safetensors(data, rng))
        return f"header of {path.name}"
    path.write_bytes(damaged_bytes(data, rng))
    return f"bytes of {path.name}"


def _fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, outside: Path) -> None:
    held = socket.socket(socket.AF_UNIX)
    here = os.open(path.parent, os.O_RDONLY)
    try:  # the path of a socket is short, and the folder's may be long
        held.bind(f"/proc/self/fd/{here}/{path.name}" if Path("/proc/self/fd").is_dir() else path.name)
    except OSError:
        os.mkfifo(path)
    finally:
        os.close(here)
        held.close()


def _link_to(target: str) -> Callable[[Path, Path], None]:
    return lambda path, outside: path.symlink_to(target.format(outside=outside))


def _folder(path: Path, outside: Path) -> None:
    path.mkdir()


SPECIAL: dict[str, Callable[[Path, Path], None]] = {
    "a FIFO": _fifo,
    "a socket": _socket,
    "a folder": _folder,
    "a link to /dev/zero": _link_to("/dev/zero"),
    "a link to a file outside": _link_to("{outside}/secret.txt"),
    "a link to itself": lambda path, outside: path.symlink_to(path.name),
    "a link to nothing": _link_to("{outside}/nothing"),
}


def make_special(path: Path, outside: Path, rng: random.Random, leave_out: tuple[str, ...] = ()) -> str:
    """Put something that is no regular file, or that leads outside, in the place of a file; returns what."""
    kind = rng.choice([one for one in SPECIAL if one not in leave_out])
    path.unlink()
    SPECIAL[kind](path, outside)
    return f"{path.name} is {kind}"


def link_folder(path: Path, outside: Path) -> str:
    """Move a folder outside and put a link to it in its place; returns what was done."""
    moved = outside / "moved"
    shutil.move(path, moved)
    path.symlink_to(moved)
    return f"{path.name}/ is a link to a folder outside"


def damage_directory(root: Path, outside: Path, rng: random.Random) -> str:
    """Damage one file or folder of a directory; returns what was done."""
    # Not what an earlier damage made a link of: this one would change what lies outside.
    files = sorted(
        path for path in root.rglob("*") if path.is_file() and path.resolve().is_relative_to(root.resolve())
    )
    path = rng.choice(files)
    chance = rng.random()
    if chance < 0.15:
        return make_special(path, outside, rng)
    if chance < 0.2:
        path.unlink()
        return f"{path.name} is gone"
    if chance < 0.24:
        folders = sorted(one for one in root.rglob("*") if one.is_dir())
        if folders:
            return link_folder(rng.choice(folders), outside)
    return damage_file(path, rng)
