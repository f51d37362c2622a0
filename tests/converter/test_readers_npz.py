"""numpy's .npz against numpy and mlx themselves."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest

from converter.readers.safetensors import TensorEntry
from converter.readers.source_files import SourceError
from converter.readers.weight_files import read_weights
from converter.readers.zip_archive import ZipArchive, read_npz


def entries(path: Path) -> dict[str, TensorEntry]:
    return read_npz(ZipArchive(path))


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    made: dict[str, np.ndarray] = {}
    for dtype in ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]:
        for shape in [(), (1,), (3, 5), (2, 3, 4), (0, 4)]:
            made[f"layers.{dtype}.{'x'.join(map(str, shape))}"] = (rng.normal(size=shape) * 50).astype(dtype)
    made["fortran"] = np.asfortranarray(made["layers.f4.2x3x4"])
    made["big endian"] = made["layers.f4.3x5"].astype(">f4")
    made["big endian fortran"] = np.asfortranarray(made["layers.i8.2x3x4"].astype(">i8"))
    return made


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_dtype_order_and_compression_bit_for_bit(save: Any, tmp_path: Path) -> None:
    written = arrays()
    save(tmp_path / "weights.npz", **written)
    got = entries(tmp_path / "weights.npz")
    assert list(got) == list(written)
    for key, array in written.items():
        native = array.astype(array.dtype.newbyteorder("="))
        read = got[key].read()
        assert read.dtype == native.dtype, key
        assert read.dtype.isnative
        assert read.shape == got[key].shape == array.shape
        assert read.flags.c_contiguous
        assert read.tobytes() == native.tobytes(), key


def test_mlx_bfloat16(tmp_path: Path) -> None:
    array = mx.random.normal((4, 6), key=mx.random.key(1)).astype(mx.bfloat16)
    mx.savez(str(tmp_path / "mlx.npz"), a=array)
    entry = entries(tmp_path / "mlx.npz")["a"]
    assert entry.dtype == "BF16"
    assert entry.read().dtype == ml_dtypes.bfloat16
    assert entry.read().astype(np.float32).tolist() == array.astype(mx.float32).tolist()


def npy(header: str | bytes, data: bytes = b"\0" * 24, version: int = 1) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def header(descr: Any = "<f4", fortran: Any = False, shape: Any = (2, 3)) -> str:
    return repr({"descr": descr, "fortran_order": fortran, "shape": shape})


BAD = {
    "no npy": (b"hello, I am text", "has no valid .npy header"),
    "tiny": (b"\x93NUM", "has no valid .npy header"),
    "version 9": (npy(header(), version=9), "has no valid .npy header"),
    "header too long": (b"\x93NUMPY\x01\x00\xff\xff{}", "has no valid .npy header"),
    "no literal": (npy("__import__('os').system('false')"), "has no valid .npy header"),
    "deep": (npy("(" * 9000), "has no valid .npy header"),
    "not utf-8": (npy(b"\xff\xfe"), "has no valid .npy header"),
    "structured": (npy(header(descr=[("a", "<f4")])), "has no valid .npy header"),
    "negative": (npy(header(shape=(-2, -3))), "has no valid .npy header"),
    "huge": (npy(header(shape=(2**40, 2**40))), "has no valid .npy header"),
    "objects": (npy(header(descr="|O")), "holds pickled Python objects, which are never loaded"),
    "complex": (npy(header(descr="<c8", shape=(3,))), "has dtype <c8, which is not read"),
    "text": (npy(header(descr="<U4")), "has dtype <U4, which is not read"),
    "too few": (npy(header(shape=(2, 4))), "needs more elements than the 6"),
    "too many": (npy(header(shape=(2, 2))), "does not fit its 24 bytes"),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused(case: str, compression: int, tmp_path: Path) -> None:
    data, text = BAD[case]
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(SourceError) as error:
        read_weights(path)
    message = str(error.value)
    assert text in message
    assert message.startswith(str(path))
    assert "fix: " in message
    assert "\n" not in message


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    """A table of contents that claims a gigabyte for a kilobyte of deflated data."""
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy(header(shape=(2**28,)), bytes(1000)))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 2**30)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"its 0\.0 MB would inflate to 1024 MB, .* \(a zip bomb\?\); fix: "):
        read_weights(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_is_noticed_when_the_tensor_is_read(save: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    array = np.random.default_rng(0).normal(size=1000)
    save(path, a=array)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    entry = entries(path)["a"]
    with pytest.raises(SourceError, match=r"weights\.npz: a\.npy is damaged .*; fix: get the file again"):
        entry.read()


def test_the_same_array_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy(header()))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", npy(header()))
    with pytest.raises(SourceError, match=r"a\.npy is in the archive twice"):
        read_weights(path)
