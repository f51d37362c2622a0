"""Several NumPy arrays in one file: an uncompressed .npz, read without pickles and without trust in its sizes."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.lib.format as npy

from mlxbert.errors import MLXBertError
from mlxbert.files.reading import open_regular

# What zipfile and NumPy raise for an archive with a flipped byte; a flag bit can ask for a password, too.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_array_file(file: Path, error: type[MLXBertError], *, fix: str) -> dict[str, np.ndarray] | None:
    """Return the arrays that `numpy.savez` wrote to a file, by name; None when there is no such file.

    Takes no more memory than twice the file: compressed entries, pickles and sizes that the file does not have are
    refused.

    Raises:
        error: not a regular file, or damaged; the message ends in `fix`.
    """
    opened = open_regular(file, error)
    if opened is None:
        return None
    try:
        with opened, zipfile.ZipFile(opened) as archive:
            return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in archive.infolist()}
    except _DAMAGE as cause:
        raise error(f"{file} is damaged ({cause}); {fix}") from cause


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename} is compressed, and mlxbert compresses nothing")
    content = io.BytesIO(archive.read(entry))
    shape, fortran_order, dtype = _HEADERS[npy.read_magic(content)](content)
    data = bytearray(content.read())
    # Before an array is made: a header may claim any size, and any type.
    if dtype.kind not in "iufU" or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{entry.filename} is no plain array of numbers or texts")
    return np.ndarray(shape, dtype, buffer=data, order="F" if fortran_order else "C")
