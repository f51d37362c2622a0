"""What a command writes where something lies already: a link, a device, a pipe, a file of somebody else's run.

`replacing` is the one way; that every place uses it is tested by `test_nothing_else_opens_a_file_for_writing`.
"""

from __future__ import annotations

import ast
import fcntl
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mlxbert.files.output_file import TEMPORARY, WriteError, replace_file, replacing

REPOSITORY = Path(__file__).parents[2]


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class TestReplacing:
    def test_a_link_stays_and_its_file_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        real = tmp_path / "there" / "real.csv"
        real.write_text("old")
        link = tmp_path / "out.csv"
        link.symlink_to("there/real.csv")
        inode = real.stat().st_ino
        replace_file(link, b"new")
        assert link.is_symlink()
        assert real.read_bytes() == b"new"
        assert real.stat().st_ino != inode
        assert names_in(tmp_path / "there") == ["real.csv"]

    def test_a_link_to_nothing_yet_makes_its_file(self, tmp_path: Path) -> None:
        link = tmp_path / "out.csv"
        link.symlink_to(tmp_path / "a" / "real.csv")
        replace_file(link, b"new")
        assert (tmp_path / "a" / "real.csv").read_bytes() == b"new"

    def test_links_that_lead_in_a_circle_are_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        with pytest.raises(WriteError, match=r"^\S+/a: cannot be written: Too many levels of symbolic links; give"):
            replace_file(tmp_path / "a", b"")

    def test_a_link_in_a_strangers_directory_is_replaced_and_not_followed(self, tmp_path: Path) -> None:
        private = tmp_path / "bashrc"
        private.write_text("mine")
        (tmp_path / "run").mkdir()
        link = tmp_path / "run" / "scores.json"
        link.symlink_to(private)
        replace_file(link, b"{}", follow_links=False)
        assert not link.is_symlink()
        assert link.read_bytes() == b"{}"
        assert private.read_text() == "mine"

    def test_a_device_is_written_into(self) -> None:
        before = Path("/dev/null").stat()
        replace_file(Path("/dev/null"), b"x" * 100_000)
        assert (Path("/dev/null").stat().st_ino, Path("/dev/null").stat().st_mode) == (before.st_ino, before.st_mode)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
    def test_a_device_that_is_full_is_one_line(self) -> None:
        with pytest.raises(WriteError, match=r"^/dev: no room for full \(No space left on device\): 3 bytes needed"):
            replace_file(Path("/dev/full"), b"abc")

    def test_a_pipe_is_written_into(self, tmp_path: Path) -> None:
        pipe = tmp_path / "out.csv"
        os.mkfifo(pipe)
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
        reader.start()
        while True:  # until the reader is there
            try:
                replace_file(pipe, b"y" * 200_000)  # more than a pipe holds
            except WriteError:
                continue
            break
        reader.join(10)
        assert read == [b"y" * 200_000]
        assert stat.S_ISFIFO(pipe.stat().st_mode)

    def test_a_pipe_that_nobody_reads_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "out.csv")
        with pytest.raises(
            WriteError, match=r"out\.csv: is a pipe that nobody reads; start its reader first, or give"
        ):
            replace_file(tmp_path / "out.csv", b"")

    @pytest.mark.parametrize("follow", [True, False])
    def test_a_directory_and_a_socket_are_refused(self, tmp_path: Path, follow: bool) -> None:
        (tmp_path / "d").mkdir()
        with pytest.raises(WriteError, match=r"/d: is a directory, not a file; give another output with -o$"):
            replace_file(tmp_path / "d", b"", follow_links=follow)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s"))
            with pytest.raises(WriteError, match=r"/s: is a socket, which is not replaced by a file; give"):
                replace_file(tmp_path / "s", b"", follow_links=follow)
        assert stat.S_ISSOCK((tmp_path / "s").stat().st_mode)

    def test_a_pipe_in_a_strangers_directory_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "oof.csv")
        with pytest.raises(WriteError, match=r"oof\.csv: is a pipe, which is not replaced by a file"):
            replace_file(tmp_path / "oof.csv", b"", follow_links=False)

    @pytest.mark.parametrize("where", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
    @pytest.mark.parametrize("to", ["file", "pipe"])
    def test_standard_output_gets_the_bytes(self, tmp_path: Path, where: str, to: str) -> None:
        if not Path(where).exists():
            pytest.skip("a path of Linux")
        code = (
            "from pathlib import Path; from mlxbert.files.output_file import replace_file; print('before'); "
            f"replace_file(Path({where!r}), b'data\\n'); print('after')"
        )
        if to == "pipe":
            out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        else:
            with (tmp_path / "log").open("wb") as log:
                subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
            out = (tmp_path / "log").read_bytes()
        assert out == b"before\ndata\nafter\n"

    def test_permissions_and_owner_of_the_old_file_stay(self, tmp_path: Path) -> None:
        file = tmp_path / "out.csv"
        file.write_text("old")
        file.chmod(0o640)
        owner = (12345, 54321) if os.geteuid() == 0 else (os.getuid(), os.getgid())
        os.chown(file, *owner)
        replace_file(file, b"new")
        now = file.stat()
        assert (stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid) == (0o640, *owner)

    def test_a_new_file_follows_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            replace_file(tmp_path / "out.csv", b"new")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "out.csv").stat().st_mode) == 0o640

    def test_a_write_protected_file_and_a_read_only_directory_are_one_line(self, unprivileged: Path) -> None:
        unprivileged.chmod(0o755)
        file = unprivileged / "out.csv"
        file.write_text("mine")
        file.chmod(0o444)
        refused = r"out\.csv: cannot be written: Permission denied; give another output with -o$"
        with pytest.raises(WriteError, match=refused):
            replace_file(file, b"new")
        assert file.read_text() == "mine"
        file.unlink()
        unprivileged.chmod(0o555)
        with pytest.raises(WriteError, match=refused):
            replace_file(file, b"new")

    @pytest.mark.parametrize("length", [255, 256, 300])
    def test_long_names_work_up_to_the_systems_limit(self, tmp_path: Path, length: int) -> None:
        file = tmp_path / ("n" * length)
        if length == 255:
            replace_file(file, b"new")
            assert names_in(tmp_path) == [file.name]
            return
        with pytest.raises(WriteError, match=r"^\S+: cannot be written: File name too long; give another") as caught:
            replace_file(file, b"new")
        assert len(str(caught.value)) < 300

    def test_an_exception_leaves_the_old_file_and_no_temporary_one(self, tmp_path: Path) -> None:
        file = tmp_path / "out.npy"
        file.write_text("old")

        def stop() -> None:
            with replacing(file) as out:
                np.save(out, np.zeros(1000))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stop()
        assert file.read_text() == "old"
        assert names_in(tmp_path) == ["out.npy"]

    def test_a_file_size_limit_leaves_the_old_file(self, tmp_path: Path) -> None:
        file = tmp_path / "out.npy"
        file.write_text("old")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(WriteError, match=r": no room for out\.npy \(File too large\): 20\.0 kB needed there"):
                replace_file(file, bytes(20_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        assert file.read_text() == "old"
        assert names_in(tmp_path) == ["out.npy"]

    def test_what_a_killed_writer_left_is_swept_and_a_living_ones_is_not(self, tmp_path: Path) -> None:
        child = os.fork()
        if not child:
            with replacing(tmp_path / "out.csv") as out:
                out.write(b"half")
                out.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        (left,) = names_in(tmp_path)
        assert TEMPORARY.fullmatch(left)
        foreign = [".out.csv.tmp", ".out.csv.0123.tmp", ".other.csv.0123456789abcdef.tmp"]
        for name in foreign:
            (tmp_path / name).write_text("")
        living = tmp_path / ".out.csv.fedcba9876543210.tmp"
        with living.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            replace_file(tmp_path / "out.csv", b"new")
            assert names_in(tmp_path) == sorted([*foreign, living.name, "out.csv"])
        replace_file(tmp_path / "out.csv", b"new")
        assert names_in(tmp_path) == sorted([*foreign, "out.csv"])

    def test_two_writers_at_once_leave_one_of_the_two(self, tmp_path: Path) -> None:
        file = tmp_path / "out.csv"
        writers = [
            threading.Thread(target=lambda data=data: [replace_file(file, data) for _ in range(40)])
            for data in (b"a" * 5000, b"b" * 5000)
        ]
        for writer in writers:
            writer.start()
        seen = set()
        while any(writer.is_alive() for writer in writers):
            seen.add(file.read_bytes() if file.exists() else b"")
        assert seen <= {b"", b"a" * 5000, b"b" * 5000}
        assert names_in(tmp_path) == ["out.csv"]


# Where a file is opened for writing otherwise, and why.
_OTHERWISE = {
    "mlxbert/files/output_file.py": "the one way itself",
    "mlxbert/runs/log.py": "a log grows by lines",
    "converter/export/inference_modules/submission_file.py": "runs without this package",
    "mlxbert/training/parallel.py": "a rank's copy of the saved state, in a folder of its own that is gone afterwards",
    "converter/card/facts.py": "a folder of its own that is gone afterwards",
}


def test_nothing_else_opens_a_file_for_writing() -> None:
    found = set()
    for package in ("mlxbert", "converter", "heads"):
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and _writes(node):
                    found.add(path.relative_to(REPOSITORY).as_posix())
    assert found == set(_OTHERWISE)


def _writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("write_text", "mkstemp", "NamedTemporaryFile", "to_csv", "savefig", "replace"):
        # A frame's to_csv() and a figure's savefig(buffer) without a path give text or bytes; `replace` is a file's
        # only where one thing is replaced.
        return name in ("write_text", "mkstemp", "NamedTemporaryFile")
    if name != "open":
        return False
    modes = [one.value for one in [*call.args, *(key.value for key in call.keywords)] if isinstance(one, ast.Constant)]
    return any(isinstance(mode, str) and set(mode) & set("wax+") and len(mode) <= 3 for mode in modes)
