"""Xet's two file formats, read: xorbs (compressed chunks) and shards (which chunks make up which file).

From the specification at huggingface.co/docs/xet. Every hash in them is a keyed BLAKE3, which the standard library
has not: they are taken as names and not recomputed. What a file is, is checked by its SHA-256 instead, which a shard
carries.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_ENTRY = 48  # bytes of every record of a shard
_HEADER = 48
_END_OF_SECTION = b"\xff" * 32
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30
_LZ4_MAGIC = b"\x04\x22\x4d\x18"


class FormatError(Exception):
    """Not a xorb or a shard: the server answers 400."""


@dataclass(frozen=True)
class Chunk:
    """One chunk in a xorb: where its header begins and its data ends, and how long it is unpacked."""

    start: int
    end: int
    scheme: int
    length: int


@dataclass(frozen=True)
class Term:
    """The chunks [first, last) of one xorb: a piece of a file, `length` bytes unpacked."""

    xorb: str
    first: int
    last: int
    length: int


def hash_text(raw: bytes) -> str:
    """A hash as text: four little-endian 64-bit numbers in hexadecimal, not byte by byte."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def xorb_chunks(xorb: bytes) -> list[Chunk]:
    """The chunks of a xorb, in order; its footer, if one was sent, is left out."""
    chunks, at = [], 0
    while at < len(xorb) and xorb[at : at + 7] != b"XETBLOB":
        if at + 8 > len(xorb) or xorb[at] != 0:
            raise FormatError(f"no chunk header at byte {at}")
        packed = int.from_bytes(xorb[at + 1 : at + 4], "little")
        length = int.from_bytes(xorb[at + 5 : at + 8], "little")
        end = at + 8 + packed
        if end > len(xorb):
            raise FormatError(f"the chunk at byte {at} ends beyond the xorb")
        chunks.append(Chunk(at, end, xorb[at + 4], length))
        at = end
    return chunks


def unpack(xorb: bytes, chunk: Chunk) -> bytes:
    """A chunk's data."""
    packed = xorb[chunk.start + 8 : chunk.end]
    data = packed if chunk.scheme == 0 else _lz4_frame(packed)
    if len(data) != chunk.length:
        raise FormatError(f"a chunk of {chunk.length} bytes unpacks to {len(data)}")
    return _regroup(data) if chunk.scheme == 2 else data


def shard_files(shard: bytes) -> Iterator[tuple[str, list[Term], str | None]]:
    """Each file of a shard: its Xet hash, its pieces in order, and its SHA-256 in hex where given."""
    if not shard.startswith(b"HFRepoMetaData\0"):
        raise FormatError("not a shard")
    at = _HEADER
    try:
        while (record := shard[at : at + _ENTRY])[:32] != _END_OF_SECTION:
            flags, count = struct.unpack_from("<II", record, 32)
            terms = []
            for number in range(1, count + 1):
                raw, _, length, first, last = struct.unpack_from("<32s4I", shard, at + number * _ENTRY)
                terms.append(Term(hash_text(raw), first, last, length))
            at += (1 + count) * _ENTRY
            if flags & _WITH_VERIFICATION:
                at += count * _ENTRY
            sha256 = None
            if flags & _WITH_METADATA:
                sha256 = hash_text(shard[at : at + 32])
                at += _ENTRY
            yield hash_text(record[:32]), terms, sha256
    except struct.error as error:
        raise FormatError(f"the shard ends too early: {error}") from error


def _regroup(planes: bytes) -> bytes:
    """Undo "byte grouping": every fourth byte was stored beside its like."""
    data, at = bytearray(len(planes)), 0
    for first in range(4):
        size = len(range(first, len(planes), 4))
        data[first::4] = planes[at : at + size]
        at += size
    return bytes(data)


def _lz4_frame(frame: bytes) -> bytes:
    if frame[:4] != _LZ4_MAGIC:
        raise FormatError("not an LZ4 frame")
    flags, at = frame[4], 6
    at += (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0) + 1  # content size, dictionary, header checksum
    out = bytearray()
    while (size := int.from_bytes(frame[at : at + 4], "little")) != 0:
        at += 4
        length = size & 0x7FFFFFFF
        block = frame[at : at + length]
        if len(block) != length:
            raise FormatError("an LZ4 frame ends too early")
        if size >> 31:
            out += block
        else:
            _lz4_block(block, out)
        at += length + (4 if flags & 0x10 else 0)  # block checksum
    return bytes(out)


def _lz4_block(block: bytes, out: bytearray) -> None:
    """Append what the block unpacks to; it may look back into what is there."""
    at, end = 0, len(block)

    def length_from(nibble: int) -> int:
        nonlocal at
        if nibble == 15:
            while True:
                more = block[at]
                at += 1
                nibble += more
                if more != 255:
                    break
        return nibble

    try:
        while at < end:
            token = block[at]
            at += 1
            literals = length_from(token >> 4)
            out += block[at : at + literals]
            at += literals
            if at >= end:
                return
            offset = block[at] | block[at + 1] << 8
            at += 2
            copied = length_from(token & 15) + 4
            start = len(out) - offset
            if offset == 0 or start < 0:
                raise FormatError("an LZ4 block looks back too far")
            piece = out[start : start + copied]
            while len(piece) < copied:  # the copy overlaps itself
                piece += piece[: copied - len(piece)]
            out += piece
    except IndexError as error:
        raise FormatError("an LZ4 block ends too early") from error
