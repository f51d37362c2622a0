"""A connection between two ranks: frames over TCP, and the peer at its other end.

A frame is a byte for its kind, eight for its length, and its content: JSON or plain bytes. Nothing in it is run.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxbert.errors import MLXBertError, printable

HELLO, WELCOME, BEAT, DATA, FAIL, END, BYE = range(1, 8)
_HEADER = struct.Struct(">BQ")
# No message of these kinds is longer; a longer one is not of this project.
MOST_BYTES = 1 << 20
BEAT_SECONDS = 1.0
# So many heartbeats are missing of a rank that is silent.
_MISSING = 5


class WorldError(MLXBertError):
    """Several training processes that cannot work together; the message names the rank."""


@dataclass(eq=False)
class Peer:
    """Another rank, at the other end of a connection.

    Attributes:
        rank: its number.
        host: its name for messages.
        machine: differs between machines; processes of one machine can be killed.
        pid: of its process.
        connection: to it.
        inbox: labels and contents of messages that nobody has taken yet.
        heard: when its last bytes came; `moved`: when its count last changed.
        beat: its last heartbeat: [step, phase, count].
        left: whether it said that it ends; `closed`: whether the connection has ended.
        failure: its error and when it came; None: it has none.
    """

    rank: int
    host: str
    machine: str
    pid: int
    connection: socket.socket
    inbox: deque[tuple[str, bytes]] = field(default_factory=deque)
    heard: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    beat: tuple[int, str, int] = (0, "start", 0)
    left: bool = False
    closed: bool = False
    failure: tuple[str, float] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """Rank, host and process, for messages."""
        return f"rank {self.rank} on {printable(self.host, 80)} (process {self.pid})"

    @property
    def place(self) -> str:
        """Step and phase of the last heartbeat."""
        step, phase, _ = self.beat
        return f"step {step}, {printable(phase, 40)}"

    @property
    def is_silent(self) -> bool:
        """Whether several heartbeats are missing."""
        return time.monotonic() - self.heard > _MISSING * BEAT_SECONDS

    def send(self, kind: int, content: bytes) -> None:
        """Send one frame; a connection that has ended is noticed by its reader."""
        with self.lock, suppress(OSError):
            self.connection.sendall(_HEADER.pack(kind, len(content)))
            self.connection.sendall(content)


def machine_name() -> str:
    """Return a name that is the same for two processes only if one can send signals to the other."""
    with suppress(OSError):  # Linux: the system that is up, and the container
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    return f"{socket.gethostname()} {uuid.getnode():x}"


def listen(address: tuple[str, int]) -> socket.socket:
    """Return a socket that waits for connections on host and port.

    Raises:
        WorldError: the host is not this machine, or the port is in use.
    """
    host, port = address
    waiting = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        waiting = socket.socket(family, socket.SOCK_STREAM)
        waiting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        waiting.bind((host, port))
        waiting.listen(128)
    except OSError as error:
        if waiting is not None:
            waiting.close()
        raise WorldError(
            f"rank 0 cannot listen on {host}, port {port} ({error.strerror}); fix: another port with mlx.launch "
            "--starting-port, if another training uses it"
        ) from None
    return waiting


def hello(connection: socket.socket, size: int) -> Peer | None:
    """Return the rank at the other end; None if it is not a rank of this training."""
    try:
        connection.settimeout(5)
        no_delay(connection)
        kind, content = read_frame(connection, 4096)
        about = json.loads(content)
        rank = int(about["rank"])
        if kind != HELLO or about["size"] != size or not 0 < rank < size:
            return None
        return Peer(rank, str(about["host"]), str(about["machine"]), process_of(about), connection)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def process_of(about: Mapping[str, Any]) -> int:
    """Return the number of the process that introduces itself.

    Raises:
        ValueError: it is not that of one process. To the system, 0 and −1 mean many, and such a rank may be killed.
    """
    pid = int(about["pid"])
    if pid < 2:
        raise ValueError(f"process {pid}")
    return pid


def no_delay(connection: socket.socket) -> None:
    """Send small messages at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def frame(kind: int, value: Any) -> bytes:
    """Return the frame of a JSON value."""
    content = json.dumps(value).encode()
    return _HEADER.pack(kind, len(content)) + content


def read_frame(connection: socket.socket, most: int | None, peer: Peer | None = None) -> tuple[int, bytes]:
    """Return kind and content of the next frame.

    Raises:
        EOFError: the connection has ended.
        ValueError: the frame is longer than `most`, or than any of its kind.
    """
    kind, length = _HEADER.unpack(_read(connection, _HEADER.size, peer))
    limit = most if most is not None else None if kind == DATA else MOST_BYTES
    if limit is not None and length > limit:
        raise ValueError(f"a frame of {length} bytes")
    return kind, bytes(_read(connection, length, peer))


def _read(connection: socket.socket, length: int, peer: Peer | None) -> bytearray:
    content = bytearray()
    while len(content) < length:
        part = connection.recv(min(length - len(content), 1 << 20))
        if not part:
            raise EOFError
        content += part
        if peer is not None:
            peer.heard = time.monotonic()
    return content
