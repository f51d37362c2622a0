"""safetensors: bit for bit what was written, and as strict as upstream's own reader."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import safetensors
import torch
from safetensors.torch import save_file

from converter.readers.safetensors import read_safetensors
from converter.readers.source_files import SourceError
from tests.support.checkpoint_builders import assert_same, safetensors_bytes

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool]
A = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_every_dtype_and_shape_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tensors = {
        f"{str(dtype)[6:]}.{'x'.join(map(str, shape)) or 'scalar'}": (torch.randn(shape) * 50).to(dtype)
        for dtype in DTYPES
        for shape in [(), (1,), (3, 5), (2, 3, 4), (0, 4)]
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert_same(read_safetensors(tmp_path / "x.safetensors"), tensors)


def test_a_header_of_128_bytes_is_not_taken_for_a_pickle(tmp_path: Path) -> None:
    from converter.readers.source_files import identify

    text = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode().ljust(0x80)
    path = tmp_path / "x.bin"
    path.write_bytes(struct.pack("<Q", len(text)) + text + A.tobytes())
    assert path.read_bytes()[:1] == b"\x80"
    assert identify(path) == "safetensors"


HONEST = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def claim(**claims: Any) -> bytes:
    """A file whose header lies about its one tensor."""
    return safetensors_bytes({"a": A}, {"a": HONEST | claims})


def with_header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + A.tobytes()


TWICE = with_header(b'{"a": %b, "a": %b}' % ((json.dumps(HONEST).encode(),) * 2))
BROKEN = {
    "truncated data": (safetensors_bytes({"a": A})[:-5], "is truncated: its header promises 24 data bytes"),
    "trailing bytes": (safetensors_bytes({"a": A}, tail=b"xx"), "has trailing bytes"),
    "seven bytes": (b"1234567", "is truncated, 7 bytes is no safetensors file"),
    "header beyond the file": (struct.pack("<Q", 5000) + b"{}", "claims 5000 bytes and the file has 10"),
    "absurd header": (struct.pack("<Q", 2**63) + b"{}", "is truncated or no safetensors file"),
    "no JSON": (with_header(b"{abc"), "its header cannot be parsed (it is not JSON)"),
    "a list": (with_header(b"[]"), "its header is not an object"),
    "deep nesting": (with_header(b"[" * 200_000), "its header cannot be parsed"),
    "wrong shape": (claim(shape=[2, 2]), "does not fit its 24 bytes"),
    "huge shape": (claim(shape=[2**40, 2**40]), "no valid dtype and shape"),
    "negative": (claim(shape=[-2, -3]), "no valid dtype and shape"),
    "bool as size": (claim(shape=[True, 6]), "no valid dtype and shape"),
    "many axes": (claim(shape=[2] * 10**5), "no valid dtype and shape"),
    "offsets backwards": (claim(data_offsets=[24, 0]), "no valid data_offsets"),
    "a gap": (claim(data_offsets=[4, 28]), "leaves a gap or overlaps"),
    "an overlap": (safetensors_bytes({"a": A, "b": A}, {"b": HONEST}), "leaves a gap or overlaps"),
}
STRICTER = {  # than upstream, which takes the last of two, and reads more dtypes
    "twice the name": (TWICE, "a name occurs twice"),
    "unread dtype": (claim(dtype="F8_E4M3", shape=[24]), "has dtype F8_E4M3, which is not read"),
}


@pytest.mark.parametrize("case", BROKEN | STRICTER)
def test_broken_files_are_refused_in_one_line_with_the_fix(case: str, tmp_path: Path) -> None:
    data, text = (BROKEN | STRICTER)[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(SourceError) as error:
        read_safetensors(path)
    message = str(error.value)
    assert text in message
    assert str(path) in message
    assert "fix: " in message
    assert "\n" not in message


@pytest.mark.parametrize("case", BROKEN)
def test_upstream_refuses_the_same_files(case: str) -> None:
    with pytest.raises((safetensors.SafetensorError, OverflowError)):
        safetensors.deserialize(BROKEN[case][0])
