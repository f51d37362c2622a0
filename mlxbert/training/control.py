"""The control connection of several training processes: who is there, who waits for whom, who has stopped.

MLX's collectives carry the gradients. They cannot say that a process is gone or stuck: a collective then waits for
ever, and MLX's ring sometimes does so without a fault of any process (https://github.com/ml-explore/mlx/issues/4475).
So each rank has a plain TCP connection to rank 0. It carries small messages, of which each side waits without using
the processor, and a heartbeat with step and phase. Two threads of each process read and watch it, also while the main
thread is inside MLX. If a rank ends, is silent or makes no progress, all ranks end with one line that names it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from mlxbert.errors import printable, readable
from mlxbert.training.connection import (
    BEAT,
    BEAT_SECONDS,
    BYE,
    DATA,
    END,
    FAIL,
    HELLO,
    MOST_BYTES,
    WELCOME,
    Peer,
    WorldError,
    frame,
    hello,
    listen,
    machine_name,
    no_delay,
    process_of,
    read_frame,
)

# For a rank that raises: rank 0 may be about to raise the same.
_GRACE_SECONDS = 2.0
# For the others to end by themselves, before those on this machine are killed.
_END_SECONDS = 2.0
# In these phases others wait for this rank's progress. In any other a rank only has to be alive.
WATCHED = ("step", "sum of gradients", "evaluation")


@dataclass(frozen=True)
class Times:
    """Limits in seconds: `start` until all ranks are there, `silence` of a rank, `progress` in a watched phase."""

    start: float
    silence: float
    progress: float


class Control:
    """Connects this process with rank 0, or as rank 0 with all others, and watches them.

    Attributes:
        advice: end of the line with which all ranks end: how to go on.
    """

    def __init__(self, rank: int, size: int, address: tuple[str, int], times: Times, hosts: Sequence[str] = ()):
        """Wait until all ranks are there.

        Args:
            rank: of this process.
            size: number of ranks.
            address: host and port on which rank 0 waits.
            times: the limits.
            hosts: name of each rank's host, where the launcher says it.

        Raises:
            WorldError: a rank does not come, or the port is in use; it is named.
        """
        self.rank, self.size, self.times, self.advice = rank, size, times, ""
        self.host, self.machine = socket.gethostname(), machine_name()
        self._hosts = tuple(hosts)
        self._changed = threading.Condition()
        self._beat: tuple[int, str, int] = (0, "start", 0)
        self._moved = time.monotonic()
        self._awaited: Peer | None = None
        self._ending = threading.Lock()
        self._code: int | None = None
        self.peers: dict[int, Peer] = self._accept(address) if rank == 0 else self._connect(address)
        for number, peer in self.peers.items():
            self._thread(self._read, peer, name=f"rank {number}")
        self._thread(self._send_beats, name="heartbeat")
        self._thread(self._watch, name="watchdog")

    @property
    def phase(self) -> str:
        """What this rank does now."""
        return self._beat[1]

    def at(self, phase: str, step: int | None = None) -> None:
        """Note the phase of this rank, and that it makes progress."""
        before, _, count = self._beat
        self._beat = (before if step is None else step, phase, count + 1)
        self._moved = time.monotonic()

    def gather(self, label: str, content: bytes) -> list[bytes]:
        """Return the contents of all ranks, in their order; each waits for the others.

        Raises:
            WorldError: another rank has ended, or is at another place of the program.
        """
        if self.rank:
            self._send(self.peers[0], label, content)
            packed = self._receive(self.peers[0], label)
            found, place = [], 0
            for _ in range(self.size):
                (length,) = struct.unpack_from(">Q", packed, place)
                found.append(packed[place + 8 : place + 8 + length])
                place += 8 + length
            return found
        found = [content, *(self._receive(self.peers[rank], label) for rank in range(1, self.size))]
        packed = b"".join(struct.pack(">Q", len(one)) + one for one in found)
        for peer in self.peers.values():
            self._send(peer, label, packed)
        return found

    def first(self, label: str, content: bytes | None) -> bytes:
        """Return the content of rank 0; others give None."""
        if self.rank:
            return self._receive(self.peers[0], label)
        assert content is not None
        for peer in self.peers.values():
            self._send(peer, label, content)
        return content

    def failed(self, line: str, code: int) -> None:
        """Let all ranks end because this one raises.

        Rank 0 goes on and shows its error. Another rank sends it to rank 0, which shows it, and ends; it returns only
        if rank 0 does not answer.
        """
        if self.rank:
            self.peers[0].send(FAIL, line.encode())
            self._sleep_until_end(_GRACE_SECONDS + 2 * _END_SECONDS)
            return
        self._ending.acquire(blocking=False)  # the main thread shows its error
        self._code = code
        # The launcher ends rank 0 as soon as another rank has ended: first let it show its error.
        self._thread(self._end_later, name="end")

    def wait_for_verdict(self) -> None:
        """Wait for the watchdog's line after a collective failed: another rank has ended, and it says which."""
        self._sleep_until_end(self.times.silence + 2 * _END_SECONDS)

    def leave(self) -> None:
        """Say that this process ends, and whether all ranks end because of an error of rank 0."""
        if self._code is None:
            self._send_to_all(BYE, b"")
        else:
            self._send_to_all(END, bytes([self._code]))

    # Connecting

    def _accept(self, address: tuple[str, int]) -> dict[int, Peer]:
        deadline = time.monotonic() + self.times.start
        peers: dict[int, Peer] = {}
        with listen(address) as waiting:
            while len(peers) < self.size - 1:
                waiting.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    connection, _ = waiting.accept()
                except TimeoutError:
                    self._nobody(peers)
                peer = hello(connection, self.size)
                if peer is None or peer.rank in peers:
                    connection.close()
                else:
                    peers[peer.rank] = peer
        everyone = json.dumps({"host": self.host, "machine": self.machine, "pid": os.getpid()}).encode()
        for peer in peers.values():
            peer.connection.settimeout(None)
            peer.send(WELCOME, everyone)
        return dict(sorted(peers.items()))

    def _nobody(self, peers: dict[int, Peer]) -> NoReturn:
        absent = [rank for rank in range(1, self.size) if rank not in peers]
        names = ", ".join(f"rank {rank}" + (f" on {self._hosts[rank]}" if self._hosts else "") for rank in absent[:10])
        for peer in peers.values():
            peer.connection.settimeout(1)
            peer.send(END, bytes([1]))
        raise WorldError(
            f"{names} did not answer within {self.times.start:g} s; fix: see that mlxbert starts there by the same "
            "command, and that its network reaches this machine"
        )

    def _connect(self, address: tuple[str, int]) -> dict[int, Peer]:
        # Rank 1 is the first to say that rank 0 does not answer.
        deadline = time.monotonic() + self.times.start + 2 * (self.rank - 1)
        about = {"rank": self.rank, "size": self.size, "host": self.host, "machine": self.machine, "pid": os.getpid()}
        while True:
            try:
                left = max(deadline - time.monotonic(), 0.01)
                connection = socket.create_connection(address, timeout=min(left, 5))
                no_delay(connection)
                connection.sendall(frame(HELLO, about))
                connection.settimeout(max(deadline - time.monotonic(), 0.01) + 2 * _END_SECONDS)
                kind, content = read_frame(connection, MOST_BYTES)
                if kind == END:
                    os._exit(1)  # rank 0 has said which rank is missing
                there = json.loads(content)
                connection.settimeout(None)
                return {0: Peer(0, str(there["host"]), str(there["machine"]), process_of(there), connection)}
            except (OSError, EOFError, ValueError, KeyError, TypeError):  # nobody, or another program
                if time.monotonic() > deadline:
                    place = f"rank 0 on {address[0]}, port {address[1]},"
                    raise WorldError(
                        f"rank {self.rank}: {place} did not answer within {self.times.start:g} s; fix: see that "
                        "mlxbert starts there, and that this machine reaches it"
                    ) from None
                time.sleep(0.1)

    # Messages

    def _send(self, peer: Peer, label: str, content: bytes) -> None:
        name = label.encode()
        peer.send(DATA, struct.pack(">H", len(name)) + name + content)

    def _receive(self, peer: Peer, label: str) -> bytes:
        before = self.phase
        self._awaited = peer
        self.at("wait")
        with self._changed:
            # The time-out lets Python answer signals; the watchdog ends a wait that takes too long.
            while not peer.inbox:
                if peer.left or peer.closed:
                    break
                self._changed.wait(0.5)
            found = peer.inbox.popleft() if peer.inbox else None
        self._awaited = None
        if found is None:
            self._sleep_until_end(0 if peer.left else self.times.silence)
            raise WorldError(f"{peer.name} has ended, and rank {self.rank} waits for it: {label}")
        self.at(before)
        if found[0] != label:
            raise WorldError(
                f"{peer.name} is at another place of the program ({printable(found[0], 40)}) than rank {self.rank} "
                f"({label}); fix: run the same program on all ranks"
            )
        return found[1]

    def _send_to_all(self, kind: int, content: bytes) -> None:
        """Send to every rank that takes it; do not wait for a rank that is stuck."""
        threads = [self._thread(peer.send, kind, content, name="end") for peer in self.peers.values()]
        deadline = time.monotonic() + 1
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))

    # The threads

    def _thread(self, target: Any, *arguments: Any, name: str) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, name=f"mlxbert {name}", daemon=True)
        thread.start()
        return thread

    def _read(self, peer: Peer) -> None:
        """Read what a rank sends, until the connection ends."""
        try:
            while True:
                kind, content = read_frame(peer.connection, None, peer)
                if kind == BEAT:
                    step, phase, count = json.loads(content)
                    if count != peer.beat[2]:
                        peer.moved = time.monotonic()
                    peer.beat = (int(step), str(phase), int(count))
                elif kind == DATA:
                    (length,) = struct.unpack_from(">H", content)
                    with self._changed:
                        peer.inbox.append((content[2 : 2 + length].decode(), content[2 + length :]))
                        self._changed.notify_all()
                elif kind == FAIL:
                    peer.failure = (content.decode(errors="replace"), time.monotonic())
                elif kind == END:
                    self._exit(content[0] if content else 1)
                elif kind == BYE:
                    with self._changed:
                        peer.left = True
                        self._changed.notify_all()
        except (OSError, EOFError, ValueError, struct.error):
            with self._changed:
                peer.closed = True
                self._changed.notify_all()
        if not peer.left and peer.failure is None:
            self._end(f"{peer.name} has ended without a word; it was last heard of at {peer.place}", order=True)

    def _send_beats(self) -> None:
        while True:
            content = json.dumps(self._beat).encode()
            for peer in self.peers.values():
                if not peer.lock.locked():  # what is being sent is a sign of life
                    peer.send(BEAT, content)
            time.sleep(BEAT_SECONDS)

    def _watch(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(BEAT_SECONDS / 2)
            now = time.monotonic()
            if now - last > 3 * BEAT_SECONDS:  # this process was stopped, or its machine: what it has read is old
                self._moved = now
                for peer in self.peers.values():
                    peer.heard = peer.moved = now
            last = now
            for peer in self.peers.values():
                if peer.failure is not None and now - peer.failure[1] > _GRACE_SECONDS:
                    self._end(f"{peer.name}, step {peer.beat[0]}: {peer.failure[0]}")
                if now - peer.heard > self.times.silence and not (peer.left or peer.closed):
                    silent = f"gives no sign of life for {self.times.silence:g} s"
                    self._end(f"{peer.name} {silent}; its last was at {peer.place}", order=True)
            if self.rank == 0:
                self._check_progress(now)

    def _check_progress(self, now: float) -> None:
        limit = self.times.progress
        there = [peer for peer in self.peers.values() if not (peer.left or peer.closed or peer.is_silent)]
        stuck = [peer for peer in there if peer.beat[1] in WATCHED and now - peer.moved > limit]
        names = [f"{peer.name} at {peer.place}" for peer in stuck]
        if self._beat[1] in WATCHED and now - self._moved > limit:
            names.insert(0, f"rank 0 on {self.host} (process {os.getpid()}) at step {self._beat[0]}, {self._beat[1]}")
        if names:
            self._end(f"no progress for {limit:g} s: {', '.join(names[:10])}")
        awaited = self._awaited
        if awaited in there and awaited.beat[1] == "wait" and now - max(self._moved, awaited.moved) > limit:
            self._end(
                f"rank 0 and {awaited.name} have waited for each other for {limit:g} s, at different places of the "
                "program; fix: run the same command and versions on all ranks"
            )

    # The end

    def _end(self, reason: str, *, order: bool = False) -> None:
        """Show one line, let all ranks end, and end this process, whatever its main thread does.

        Args:
            reason: names the rank, its host, its step and what is wrong.
            order: on other ranks than 0, wait for those before: the launcher ends all when the first one ends.
        """
        if order and self.rank > 1:
            time.sleep(2.0 * (self.rank - 1))
        if not self._ending.acquire(blocking=False):
            return  # another thread does it
        for peer in self.peers.values():
            if peer.is_silent:
                self._kill(peer)  # the launcher would wait for ever for a stopped one
        advice = f"; {self.advice}" if self.advice else ""
        with suppress(OSError):
            os.write(2, f"mlxbert: error: {readable(reason)}; all ranks end{advice}\n".encode())
        if self.rank == 0:
            self._send_to_all(END, bytes([1]))
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline and not all(peer.closed for peer in self.peers.values()):
            time.sleep(0.05)
        for peer in self.peers.values():
            self._kill(peer)
        self._exit(1)

    def _kill(self, peer: Peer) -> None:
        """Kill a rank on this machine; one on another machine ends when it notices the end of its connection."""
        if not peer.closed and peer.machine == self.machine:
            with suppress(OSError):
                os.kill(peer.pid, signal.SIGKILL)  # it is stopped, or hangs: no other signal ends it

    def _exit(self, code: int) -> NoReturn:
        """End this process now; the main thread may be inside MLX and never return."""
        for stream in (sys.stdout, sys.stderr):
            self._thread(_flush, stream, name="flush").join(0.5)
        os._exit(code)

    def _end_later(self) -> None:
        time.sleep(_GRACE_SECONDS)
        self.leave()

    def _sleep_until_end(self, seconds: float) -> None:
        """Sleep, and let a thread end this process."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.05)


def _flush(stream: Any) -> None:
    with suppress(OSError, ValueError, AttributeError):
        stream.flush()
