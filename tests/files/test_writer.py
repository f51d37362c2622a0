"""The output side: safetensors files that every reader takes, and a directory that is whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import safetensors

from mlxbert.errors import MLXBertError
from mlxbert.files import output_file
from mlxbert.files.output_directory import (
    OutputDirectory,
    aside_path,
    exchange,
    lock_path,
    recover,
    siblings,
    target_lock,
    temporary_path,
)
from mlxbert.files.output_file import (
    HashedFile,
    WriteError,
    format_bytes,
    is_complete,
    manifest_problems,
    read_manifest,
    replace_listed_files,
)
from mlxbert.files.reading import PathError, sha256_hex
from mlxbert.files.safetensors import NUMPY_DTYPES, PlannedTensor, plan_shards, write_safetensors
from tests.support.interruption import Points, counted_points, no_exchange

REPOSITORY = Path(__file__).parents[2]
CONFIG = {"model_type": "bert", "mlxbert": {"format_version": 1}}
FLOATS = ("F32", "F16", "BF16")


def planned(name: str, array: np.ndarray[Any, Any]) -> PlannedTensor:
    code = next(code for code, dtype in NUMPY_DTYPES.items() if dtype == array.dtype)
    return PlannedTensor(name, array.shape, code, lambda: array)


def some_tensors(seed: int = 0) -> list[PlannedTensor]:
    rng = np.random.default_rng(seed)
    return [planned(f"t{i}", rng.standard_normal((4, 5 + i)).astype(np.float32)) for i in range(3)]


def write_model(target: Path, seed: int = 0, **options: Any) -> Path:
    with OutputDirectory(target, **options) as out:
        out.write_model(some_tensors(seed))
        out.write_bytes("1_Pooling/config.json", b"{}")
        out.write_json("vocab.json", {"a": 1})
        return out.commit(CONFIG)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def message(action: Callable[[], object]) -> str:
    with pytest.raises(WriteError) as caught:
        action()
    return str(caught.value)


class TestSafetensors:
    def test_every_dtype_comes_back_bit_for_bit(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        arrays = {
            f"{code}.{'x'.join(map(str, shape))}": rng.integers(0, 2, shape).astype(dtype)
            for code, dtype in NUMPY_DTYPES.items()
            for shape in [(3, 5), (7,), (), (0, 4), (1, 2, 3)]
        }
        file = tmp_path / "all.safetensors"
        write_safetensors(file, [planned(name, array) for name, array in arrays.items()])
        with safetensors.safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "mlx"}
            assert set(opened.keys()) == set(arrays)
            for name, array in arrays.items():
                tensor = opened.get_tensor(name)
                assert tuple(tensor.shape) == array.shape
                assert tensor.reshape(-1).float().tolist() == array.reshape(-1).astype(np.float32).tolist()

    @pytest.mark.parametrize("code", FLOATS)
    def test_mlx_and_torch_read_the_same_numbers(self, tmp_path: Path, code: str) -> None:
        array = np.random.default_rng(1).standard_normal((64, 33)).astype(NUMPY_DTYPES[code])
        file = tmp_path / "one.safetensors"
        write_safetensors(file, [planned("weight", array), planned("bias", array[0])])
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        assert np.array_equal(np.array(loaded["weight"].astype(mx.float32)), array.astype(np.float32))
        with safetensors.safe_open(file, framework="pt") as opened:
            assert np.array_equal(opened.get_tensor("weight").float().numpy(), array.astype(np.float32))

    def test_data_is_aligned_whatever_the_names_and_mixture(self, tmp_path: Path) -> None:
        for length in range(9):  # every remainder of the header's length
            arrays = [
                planned("b" * (length + 1), np.zeros(3, np.uint8)),
                planned("h", np.zeros(3, np.float16)),
                planned("w", np.zeros(3, np.float32)),
                planned("l", np.zeros(1, np.int64)),
            ]
            file = tmp_path / f"{length}.safetensors"
            write_safetensors(file, arrays)
            data = file.read_bytes()
            size = int.from_bytes(data[:8], "little")
            assert (8 + size) % 8 == 0
            entries = json.loads(data[8 : 8 + size])
            assert entries.pop("__metadata__") == {"format": "mlx"}
            for entry in entries.values():
                assert entry["data_offsets"][0] % NUMPY_DTYPES[entry["dtype"]].itemsize == 0
            assert max(entry["data_offsets"][1] for entry in entries.values()) + 8 + size == len(data)

    def test_strided_arrays_are_written_in_row_order(self, tmp_path: Path) -> None:
        array = np.arange(12, dtype=np.float32).reshape(3, 4).T
        write_safetensors(tmp_path / "t.safetensors", [planned("t", array)])
        with safetensors.safe_open(tmp_path / "t.safetensors", framework="np") as opened:
            assert np.array_equal(opened.get_tensor("t"), array)

    def test_only_one_tensor_is_alive_at_a_time(self, tmp_path: Path) -> None:
        given: list[weakref.ref[Any]] = []
        alive: list[int] = []

        def read() -> np.ndarray[Any, Any]:
            alive.append(sum(ref() is not None for ref in given))
            array = np.ones((1024, 1024), np.float32)  # large enough for the hashing thread
            given.append(weakref.ref(array))
            return array

        tensors = [PlannedTensor(f"t{i}", (1024, 1024), "F32", read) for i in range(4)]
        write_safetensors(tmp_path / "t.safetensors", tensors)
        assert alive == [0, 0, 0, 0]

    def test_record_is_the_files_size_and_hash(self, tmp_path: Path) -> None:
        file = tmp_path / "t.safetensors"
        record = write_safetensors(file, [planned("big", np.ones((2048, 1024), np.float32)), *some_tensors()])
        assert record.size == file.stat().st_size
        assert record.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()

    def test_progress_is_told_every_tensor_in_order(self, tmp_path: Path) -> None:
        seen: list[str] = []
        write_safetensors(tmp_path / "t.safetensors", some_tensors(), on_tensor=lambda t: seen.append(t.name))
        assert seen == ["t0", "t1", "t2"]

    def test_another_shape_or_dtype_than_planned_is_refused(self, tmp_path: Path) -> None:
        for number, array in enumerate((np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float16))):
            tensor = PlannedTensor("w", (2, 3), "F32", lambda array=array: array)
            text = message(lambda n=number, t=tensor: write_safetensors(tmp_path / f"{n}.safetensors", [t]))
            assert text == f"w: read as {array.dtype} {array.shape}, planned as float32 (2, 3)"

    def test_a_name_planned_twice_is_refused(self, tmp_path: Path) -> None:
        text = message(lambda: write_safetensors(tmp_path / "t", [*some_tensors(), *some_tensors()]))
        assert text == "3 tensor name(s) planned twice\n  t0\n  t1\n  t2"

    def test_an_unknown_dtype_is_refused(self, tmp_path: Path) -> None:
        tensor = PlannedTensor("w", (1,), "F4", lambda: np.zeros(1))
        assert message(lambda: write_safetensors(tmp_path / "t", [tensor])).startswith("w: dtype F4 cannot be written")

    def test_bfloat16_keeps_its_bits(self, tmp_path: Path) -> None:
        bits = np.arange(65536, dtype=np.uint16)
        write_safetensors(tmp_path / "t.safetensors", [planned("w", bits.view(ml_dtypes.bfloat16))])
        loaded = mx.load(str(tmp_path / "t.safetensors"))
        assert isinstance(loaded, dict)
        assert np.array_equal(np.array(loaded["w"].view(mx.uint16)), bits)


class TestShards:
    def test_small_models_have_one_file(self) -> None:
        assert list(plan_shards(some_tensors())) == ["model.safetensors"]

    def test_no_tensors_are_one_file_too(self) -> None:
        assert plan_shards([]) == {"model.safetensors": []}

    def test_files_are_filled_up_to_the_limit(self) -> None:
        tensors = [planned(f"t{i}", np.zeros(size, np.float32)) for i, size in enumerate((10, 10, 5, 100, 1))]
        shards = plan_shards(tensors, max_shard_size=100)
        assert {file: [t.name for t in shard] for file, shard in shards.items()} == {
            "model-00001-of-00003.safetensors": ["t0", "t1", "t2"],  # 100 bytes: the limit itself fits
            "model-00002-of-00003.safetensors": ["t3"],  # larger than the limit by itself
            "model-00003-of-00003.safetensors": ["t4"],
        }

    @pytest.mark.parametrize("limit", [100, 10**9])
    def test_the_index_names_every_tensors_file(self, tmp_path: Path, limit: int) -> None:
        with OutputDirectory(tmp_path / "out") as out:
            out.write_model(some_tensors(), max_shard_size=limit)
            out.commit(CONFIG)
        index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
        assert index["metadata"] == {"total_size": 4 * 4 * (5 + 6 + 7), "total_parameters": 4 * (5 + 6 + 7)}
        assert list(index["weight_map"]) == ["t0", "t1", "t2"]
        files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
        assert sorted(set(index["weight_map"].values())) == files
        assert len(files) == (3 if limit == 100 else 1)
        for name, file in index["weight_map"].items():
            loaded = mx.load(str(tmp_path / "out" / file))
            assert isinstance(loaded, dict)
            expected = next(t for t in some_tensors() if t.name == name).read()
            assert np.array_equal(np.array(loaded[name]), expected)


class TestCommit:
    def test_everything_is_there_and_in_the_manifest(self, tmp_path: Path) -> None:
        target = write_model(tmp_path / "out")
        assert sorted(contents(target)) == [
            "1_Pooling/config.json",
            "config.json",
            "manifest.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "vocab.json",
        ]
        files = read_manifest(target)
        assert files is not None
        assert list(files) == sorted(set(contents(target)) - {"manifest.json"})
        for name, record in files.items():
            data = (target / name).read_bytes()
            assert (record.size, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert manifest_problems(target) == []
        assert names_in(tmp_path) == ["out"]

    def test_config_is_written_after_all_else(self, tmp_path: Path) -> None:
        made: list[str] = []
        real_open = os.open

        def counted(path: Path, flags: int, *rest: int) -> int:
            if flags & os.O_CREAT:
                made.append(Path(path).name)
            return real_open(path, flags, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", counted)
            write_model(tmp_path / "out")
        files = [name for name in made if "." in name and not name.startswith(".")]
        assert files[-2:] == ["manifest.json", "config.json"]

    def test_every_file_and_directory_is_synced_before_the_rename(self, tmp_path: Path) -> None:
        synced: set[tuple[int, int]] = set()
        missing: list[str] = []
        real_sync, real_rename = os.fsync, os.rename

        def fsync(descriptor: int) -> None:
            real_sync(descriptor)
            status = os.fstat(descriptor)
            synced.add((status.st_dev, status.st_ino))

        def rename(old: Path, new: Path) -> None:
            for path in (old, *Path(old).rglob("*")):
                if (path.stat().st_dev, path.stat().st_ino) not in synced:
                    missing.append(path.name)
            real_rename(old, new)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            patch.setattr(os, "rename", rename)
            write_model(tmp_path / "out")
        assert missing == []
        assert (tmp_path.stat().st_dev, tmp_path.stat().st_ino) in synced

    def test_nothing_is_at_the_target_before(self, tmp_path: Path) -> None:
        with OutputDirectory(tmp_path / "out") as out:
            out.write_model(some_tensors())
            assert not (tmp_path / "out").exists()
            assert not list(tmp_path.rglob("config.json"))
            assert (out.path / "model.safetensors").is_file()

    def test_leaving_without_commit_leaves_nothing(self, tmp_path: Path) -> None:
        with OutputDirectory(tmp_path / "a/b/out") as out:
            out.write_model(some_tensors())
        assert names_in(tmp_path) == []

    def test_missing_parents_are_made(self, tmp_path: Path) -> None:
        write_model(tmp_path / "a/b/out")
        assert is_complete(tmp_path / "a/b/out")

    def test_permissions_follow_the_umask(self, tmp_path: Path) -> None:
        old = os.umask(0o027)
        try:
            target = write_model(tmp_path / "out")
        finally:
            os.umask(old)
        assert target.stat().st_mode & 0o777 == 0o750
        assert (target / "config.json").stat().st_mode & 0o777 == 0o640

    def test_links_are_copied_as_files(self, tmp_path: Path) -> None:
        (tmp_path / "blob").write_bytes(b"words" * 400_000)  # several buffers
        (tmp_path / "vocab.txt").symlink_to(tmp_path / "blob")
        with OutputDirectory(tmp_path / "out") as out:
            out.copy("vocab.txt", tmp_path / "vocab.txt")
            target = out.commit(CONFIG)
        assert not (target / "vocab.txt").is_symlink()
        assert (target / "vocab.txt").read_bytes() == b"words" * 400_000
        assert manifest_problems(target) == []

    @pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", ".", "a//b", "./a", "a\\b", "a\0b", ".."])
    def test_names_outside_are_refused(self, tmp_path: Path, name: str) -> None:
        with OutputDirectory(tmp_path / "out") as out:
            text = message(lambda: out.write_bytes(name, b""))
        assert text == f"{name!r}: not a relative path inside the output; a model's files must be"

    @pytest.mark.parametrize("name", ["vocab.txt", "config.json", "manifest.json"])
    def test_a_file_is_not_written_twice(self, tmp_path: Path, name: str) -> None:
        with OutputDirectory(tmp_path / "out") as out:
            out.write_bytes("vocab.txt", b"")
            assert message(lambda: out.write_bytes(name, b"")) == f"{name}: would be written twice"

    def test_a_side_file_that_is_no_file_is_named(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with OutputDirectory(tmp_path / "out") as out:
            for source, reason in {
                tmp_path / "pipe": "is a pipe, not a regular file; fix: put a regular file there",
                tmp_path / "absent": "cannot be copied: it is gone; fix: run it again",
                tmp_path: "is a directory, not a regular file; fix: put a regular file there",
            }.items():
                assert message(lambda source=source: out.copy("vocab.txt", source)) == f"{source}: {reason}"

    def test_the_manifest_notices_every_change(self, tmp_path: Path) -> None:
        target = write_model(tmp_path / "out")
        data = bytearray((target / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (target / "model.safetensors").write_bytes(data)
        (target / "vocab.json").write_bytes(b"")
        (target / "1_Pooling/config.json").unlink()
        (target / "extra").write_bytes(b"")
        assert manifest_problems(target) == [
            "1_Pooling/config.json: missing",
            "model.safetensors: SHA-256 differs from the manifest's",
            "vocab.json: 0 bytes, the manifest says 13",
            "1_Pooling: not in the manifest",
            "extra: not in the manifest",
        ]

    @pytest.mark.parametrize(
        "files", [7, [], "x", {"a": 7}, {"a": {"size": "5", "sha256": "0" * 64}}, {"a": {"size": 5, "sha256": "x"}}]
    )
    def test_a_manifest_of_another_shape_is_not_ours(self, tmp_path: Path, files: Any) -> None:
        content = {"format": "mlxbert-manifest", "version": 1, "files": files}
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        assert read_manifest(tmp_path) is None

    def test_a_manifest_that_is_no_file_neither_hangs_nor_fills_the_memory(self, tmp_path: Path) -> None:
        file = tmp_path / "manifest.json"
        (tmp_path / "config.json").write_text("{}")
        os.mkfifo(file)
        for what, kind in {"a pipe": None, "a device": Path("/dev/zero"), "a directory": tmp_path}.items():
            if kind is not None:
                file.unlink()
                file.symlink_to(kind)
            for read in (read_manifest, manifest_problems):
                with pytest.raises(PathError, match=rf"manifest\.json: is {what}, not a regular file; fix: put"):
                    read(tmp_path)
            assert not is_complete(tmp_path)
        file.unlink()
        with file.open("wb") as huge:
            huge.truncate(10 << 30)
        with pytest.raises(PathError, match=r"10240 MB is too large for this file \(limit 64 MB\)"):
            read_manifest(tmp_path)

    def test_a_file_that_may_not_be_read_is_named(self, unprivileged: Path) -> None:
        unprivileged.chmod(0o755)
        target = write_model(unprivileged / "out")
        for name in ("vocab.json", "manifest.json"):
            (target / name).chmod(0o000)
            with pytest.raises(PathError, match=rf"{name}: permission denied; fix: make it readable \(chmod u\+r"):
                manifest_problems(target)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "mlxbert-manifest"}', '{"name": "web app"}'])
    def test_another_programs_manifest_is_not_ours(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "manifest.json").write_text(text)
        (tmp_path / "config.json").write_text("{}")
        assert read_manifest(tmp_path) is None
        assert not is_complete(tmp_path)
        assert manifest_problems(tmp_path) == ["manifest.json: absent or not written by mlxbert"]


class TestTargets:
    def test_an_empty_directory_is_filled(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        write_model(tmp_path / "out")
        assert is_complete(tmp_path / "out")
        assert names_in(tmp_path) == ["out"]

    def test_an_existing_one_is_kept_without_overwrite(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        write_model(target)
        before = contents(target)
        text = message(lambda: write_model(target, seed=1))
        assert text == f"{target}: exists; replace it with --overwrite or give another output with -o"
        assert contents(target) == before
        assert names_in(tmp_path) == ["out"]

    def test_overwrite_replaces_the_whole_directory(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        write_model(target)
        before = contents(target)
        with OutputDirectory(target, overwrite=True) as out:
            out.write_model(some_tensors(1))
            assert contents(target) == before
            out.commit(CONFIG)
        assert "vocab.json" not in contents(target)
        assert manifest_problems(target) == []
        assert names_in(tmp_path) == ["out"]

    def test_a_reader_never_finds_the_model_absent_while_it_is_replaced(self, tmp_path: Path) -> None:
        if not exchange(*(self.made(tmp_path / name) for name in "ab")):
            pytest.skip("the system cannot exchange two directories")
        target = write_model(tmp_path / "out")
        config, ended = os.fsencode(target / "config.json"), os.fsencode(tmp_path / "ended")
        reader = os.fork()  # a thread would wait for this one between two calls of the system
        if not reader:
            looks = absent = 0
            while not absent and not os.access(ended, os.F_OK):
                for _ in range(1000):
                    absent += not os.access(config, os.F_OK)
                looks += 1000
            os._exit(1 if absent else 2 if looks < 10_000 else 0)
        for seed in range(1, 40):
            write_model(target, seed=seed, overwrite=True)
        (tmp_path / "ended").touch()
        _, status = os.waitpid(reader, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert names_in(tmp_path) == ["a", "b", "ended", "out"]

    def made(self, directory: Path) -> Path:
        directory.mkdir()
        return directory

    def test_two_directories_that_cannot_be_exchanged_stay(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        assert not exchange(tmp_path / "a", tmp_path / "absent")
        assert names_in(tmp_path) == ["a"]

    def test_overwrite_of_nothing_is_fine(self, tmp_path: Path) -> None:
        write_model(tmp_path / "out", overwrite=True)
        assert is_complete(tmp_path / "out")

    def test_files_added_later_by_this_project_and_macos_do_not_stop_overwrite(self, tmp_path: Path) -> None:
        target = write_model(tmp_path / "out")
        (target / "parity.json").write_text("{}")
        (target / ".DS_Store").write_text("")
        write_model(target, overwrite=True)
        assert "parity.json" not in contents(target)

    def test_overwrite_leaves_a_foreign_directory_alone(self, tmp_path: Path) -> None:
        target = tmp_path / "home"
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")
        text = message(lambda: write_model(target, overwrite=True))
        assert text == (
            f"{target}: not a directory that mlxbert-convert wrote (manifest.json is not there or not its own), "
            "so --overwrite leaves it alone; remove it yourself or give another output with -o"
        )
        assert contents(target) == {"thesis.tex": b"years of work"}

    def test_overwrite_deletes_no_file_that_somebody_added(self, tmp_path: Path) -> None:
        target = write_model(tmp_path / "out")
        (target / "runs/1").mkdir(parents=True)
        (target / "runs/1/log.txt").write_text("loss")
        before = contents(target)
        text = message(lambda: write_model(target, overwrite=True))
        assert text == (
            f"{target}: --overwrite would delete 1 file(s) that mlxbert-convert did not write; "
            "move them away or give another output with -o\n  runs/1/log.txt"
        )
        assert contents(target) == before

    def test_a_file_is_no_target(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("mine")
        text = message(lambda: write_model(tmp_path / "out", overwrite=True))
        assert text == f"{tmp_path / 'out'}: is a file; give a directory as output with -o"
        assert (tmp_path / "out").read_text() == "mine"

    def test_a_link_to_a_directory_is_followed_and_kept(self, tmp_path: Path) -> None:
        real = write_model(tmp_path / "disk/real")
        (tmp_path / "link").symlink_to(real)
        assert write_model(tmp_path / "link", seed=1, overwrite=True) == real
        assert (tmp_path / "link").is_symlink()
        assert manifest_problems(real) == []
        assert names_in(tmp_path / "disk") == ["real"]

    def test_a_link_to_nothing_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "gone")
        assert message(lambda: write_model(tmp_path / "link")) == (
            f"{tmp_path / 'link'}: a link to {tmp_path / 'gone'}, which does not exist; "
            "remove the link or give another output with -o"
        )

    @pytest.mark.parametrize("inside", [".", "a"])
    def test_the_current_directory_is_refused(
        self, tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a").mkdir()
        monkeypatch.chdir(tmp_path / inside)
        text = message(lambda: write_model(tmp_path))
        assert text == f"{tmp_path}: is or holds the current directory; give another output with -o, such as -o mlx"
        if inside == ".":
            assert message(lambda: write_model(Path())).startswith(".: is or holds the current directory")

    def test_a_mount_point_is_refused(self) -> None:
        assert message(lambda: write_model(Path("/"))) == (
            "/: is a mount point, which cannot be replaced; give a directory in it, such as -o /model"
        )

    def test_an_output_inside_the_source_is_refused(self, tmp_path: Path) -> None:
        source = tmp_path / "src"
        source.mkdir()
        (tmp_path / "alias").symlink_to(source)
        for target in (source / "mlx", source / "deep/mlx", tmp_path / "alias/mlx"):
            text = message(lambda target=target: write_model(target, source=source))
            assert text == f"{target}: lies inside the source {source}; give an output outside it with -o"
        assert names_in(source) == []

    def test_the_source_itself_is_refused(self, tmp_path: Path) -> None:
        source = write_model(tmp_path / "src")
        (tmp_path / "alias").symlink_to(source)
        for target in (source, tmp_path / "alias"):
            text = message(lambda target=target: write_model(target, source=source, overwrite=True))
            assert text == f"{target}: is the source {source}; give an output outside it with -o"

    def test_a_source_inside_the_output_is_not_deleted(self, tmp_path: Path) -> None:
        target = write_model(tmp_path / "out")
        source = target / "1_Pooling"
        text = message(lambda: write_model(target, source=source, overwrite=True))
        assert text == f"{target}: holds the source {source}; give another output with -o"
        file = source / "config.json"
        text = message(lambda: write_model(target, source=file, overwrite=True))
        assert text == f"{target}: holds the source {file}; give another output with -o"

    def test_a_source_file_may_lie_beside_the_output(self, tmp_path: Path) -> None:
        (tmp_path / "model.ckpt").write_bytes(b"")
        write_model(tmp_path / "mlx", source=tmp_path / "model.ckpt")
        assert is_complete(tmp_path / "mlx")

    def test_a_parent_that_is_a_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        text = message(lambda: write_model(tmp_path / "file/out"))
        assert text.startswith(str(tmp_path / "file"))
        assert text.endswith("Not a directory; give another output with -o")

    def test_a_parent_that_cannot_be_written_is_named(self, unprivileged: Path) -> None:
        text = message(lambda: write_model(unprivileged / "out"))
        assert text.startswith(str(unprivileged))
        assert text.endswith("cannot be written: Permission denied; give another output with -o")
        assert names_in(unprivileged) == []

    def test_a_very_long_name_is_one_line(self, tmp_path: Path) -> None:
        text = message(lambda: write_model(tmp_path / ("x" * 250)))
        assert text.endswith("File name too long; give another output with -o")
        assert names_in(tmp_path) == []


class TestInterruption:
    @pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
    def test_an_exception_removes_what_was_written(self, tmp_path: Path, kind: type[BaseException]) -> None:
        def leave() -> None:
            with OutputDirectory(tmp_path / "a/out") as out:
                out.write_model(some_tensors())
                raise kind

        with pytest.raises(kind):
            leave()
        assert names_in(tmp_path) == []

    @pytest.mark.parametrize("mode", ["fresh", "overwrite", "overwrite in two steps"])
    def test_ctrl_c_at_every_point_loses_nothing(self, tmp_path: Path, mode: str) -> None:
        overwrite = mode != "fresh"

        def stop() -> None:
            raise KeyboardInterrupt

        target = tmp_path / "work/out"
        write_model(tmp_path / "old")
        write_model(tmp_path / "new", seed=1)
        old, new = contents(tmp_path / "old"), contents(tmp_path / "new")

        def fresh_start() -> None:
            shutil.rmtree(target.parent, ignore_errors=True)
            if overwrite:
                shutil.copytree(tmp_path / "old", target)

        def counted(points: Points) -> AbstractContextManager[object]:
            both = ExitStack()
            if mode == "overwrite in two steps":
                both.enter_context(no_exchange())
            both.enter_context(counted_points(points))
            return both

        fresh_start()
        undisturbed = Points()
        with counted(undisturbed):
            write_model(target, seed=1, overwrite=overwrite)
        assert ("before exchange" in undisturbed.names) == overwrite
        assert len(undisturbed.names) > 60
        seen = set()
        for at in range(len(undisturbed.names)):
            fresh_start()
            with pytest.raises(KeyboardInterrupt), counted(Points(stop, at)):
                write_model(target, seed=1, overwrite=overwrite)
            recover(target)
            state = contents(target) if target.exists() else None
            assert state in ([old, new] if overwrite else [None, new]), undisturbed.names[at]
            seen.add("new" if state == new else "before")
            if target.parent.exists():
                assert names_in(target.parent) in ([], ["out"]), undisturbed.names[at]
        assert seen == {"before", "new"}

    def test_the_old_model_survives_a_rename_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = write_model(tmp_path / "out")
        before = contents(target)
        real_rename = os.rename

        def rename(old: Path, new: Path) -> None:
            if "-tmp-" in Path(old).name and Path(new) == target:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(old))
            real_rename(old, new)

        monkeypatch.setattr(os, "rename", rename)
        with no_exchange():
            text = message(lambda: write_model(target, seed=1, overwrite=True))
        assert text == f"{target}: cannot be written: Input/output error; give another output with -o"
        assert contents(target) == before
        assert names_in(tmp_path) == ["out"]

    def test_somebody_elses_directory_that_appears_meanwhile_is_kept(self, tmp_path: Path) -> None:
        target = tmp_path / "out"

        def write(overwrite: bool) -> None:
            with OutputDirectory(target, overwrite=overwrite) as out:
                out.write_model(some_tensors())
                target.mkdir()
                (target / "mine.txt").write_text("mine")
                out.commit(CONFIG)

        for overwrite in (False, True):
            message(lambda overwrite=overwrite: write(overwrite))
            assert contents(target) == {"mine.txt": b"mine"}
            assert names_in(tmp_path) == ["out"]
            shutil.rmtree(target)


class TestNoRoom:
    def test_a_full_disk_is_one_line_and_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = write_model(tmp_path / "out")
        before = contents(target)

        def full(descriptor: int, data: memoryview) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "write", full)
        text = message(lambda: write_model(target, seed=1, overwrite=True))
        assert text.startswith(str(tmp_path))
        assert text.endswith(
            "no room for model.safetensors (No space left on device): 288 bytes needed there; "
            "free some space or give another output with -o"
        )
        assert contents(target) == before
        assert names_in(tmp_path) == ["out"]

    def test_a_file_size_limit_says_how_much_is_needed(self, tmp_path: Path) -> None:
        tensors = [planned("w", np.ones((1024, 1024), np.float32))]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            with OutputDirectory(tmp_path / "out") as out:
                text = message(lambda: out.write_model(tensors))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "no room for model.safetensors (File too large): 4.2 MB needed there" in text
        assert names_in(tmp_path) == []

    @pytest.mark.skipif(sys.platform != "linux", reason="mounts a small file system in a Linux user namespace")
    def test_a_really_full_disk(self, tmp_path: Path) -> None:
        enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = f"mount -t tmpfs -o size=1m tmpfs '{disk}'"
        try:
            allowed = subprocess.run([*enter, mount], capture_output=True).returncode == 0
        except FileNotFoundError:
            allowed = False
        if not allowed:
            pytest.skip("this machine lets nobody mount in a user namespace")
        code = (
            "import sys, os, numpy as np; from pathlib import Path\n"
            "from tests.files.test_writer import planned, OutputDirectory, WriteError\n"
            "disk = Path(sys.argv[1])\n"
            "try:\n"
            "    with OutputDirectory(disk / 'out') as out:\n"
            "        out.write_model([planned(f't{i}', np.ones((512, 512), np.float32)) for i in range(3)])\n"
            "except WriteError as error:\n"
            "    print(error); print(os.listdir(disk))\n"
        )
        run = subprocess.run(
            [*enter, f"{mount} && exec '{sys.executable}' -c \"$1\" '{disk}'", "sh", code],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
        )
        lines = run.stdout.splitlines()
        assert run.returncode == 0, run.stderr
        assert lines[0].endswith(
            "no room for model.safetensors (No space left on device): 3.1 MB needed there; "
            "free some space or give another output with -o"
        )
        assert lines[1] == "[]"

    @pytest.mark.parametrize(
        ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (438_000_000, "438.0 MB"), (5 * 10**13, "50.0 TB")]
    )
    def test_sizes_are_written_for_people(self, count: int, text: str) -> None:
        assert format_bytes(count) == text


class TestRecovery:
    def test_a_model_that_was_moved_aside_comes_back(self, tmp_path: Path) -> None:
        target = write_model(tmp_path / "out")
        before = contents(target)
        shutil.copytree(target, temporary_path(target))  # the new one, complete, not yet in place
        target.rename(aside_path(target))
        recover(target)
        assert contents(target) == before
        assert names_in(tmp_path) == ["out"]

    def test_it_comes_back_even_when_the_next_run_is_refused(self, tmp_path: Path) -> None:
        target = write_model(tmp_path / "out")
        target.rename(aside_path(target))
        assert "exists; replace it with --overwrite" in message(lambda: write_model(target))
        assert manifest_problems(target) == []
        assert names_in(tmp_path) == ["out"]

    def test_through_a_link_too(self, tmp_path: Path) -> None:
        real = write_model(tmp_path / "real")
        (tmp_path / "link").symlink_to(real)
        real.rename(aside_path(real))
        write_model(tmp_path / "link", overwrite=True)
        assert names_in(tmp_path) == ["link", "real"]

    def test_into_an_empty_directory(self, tmp_path: Path) -> None:
        target = write_model(tmp_path / "out")
        target.rename(aside_path(target))
        target.mkdir()
        recover(target)
        assert manifest_problems(target) == []

    def test_what_was_moved_aside_goes_when_its_successor_is_in_place(self, tmp_path: Path) -> None:
        target = write_model(tmp_path / "out", seed=1)
        new = contents(target)
        write_model(tmp_path / "old").rename(aside_path(target))
        recover(target)
        assert contents(target) == new
        assert names_in(tmp_path) == ["out"]

    def test_it_stays_when_something_else_is_in_its_place(self, tmp_path: Path) -> None:
        target = write_model(tmp_path / "out")
        aside = aside_path(target)
        target.rename(aside)
        target.mkdir()
        (target / "config.json").write_text("{}")
        recover(target)
        assert manifest_problems(aside) == []
        assert contents(target) == {"config.json": b"{}"}

    def test_temporary_directories_of_dead_runs_go(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        temporary_path(target).mkdir()
        (temporary_path(target) / "1_Pooling").mkdir(parents=True)
        lock_path(target).touch()
        write_model(target)
        assert names_in(tmp_path) == ["out"]

    def test_names_that_are_not_ours_stay(self, tmp_path: Path) -> None:
        names = [".out.mlxbert-tmp-", ".out.tmp-12345678", ".out2.mlxbert-tmp-12345678", ".out.mlxbert-old-123"]
        for name in names:
            (tmp_path / name).mkdir()
        (tmp_path / ".out.mlxbert-tmp-00000000").write_text("a file")
        write_model(tmp_path / "out")
        assert names_in(tmp_path) == sorted([*names, "out", ".out.mlxbert-tmp-00000000"])

    def test_nothing_is_made_where_nothing_is_to_be_mended(self, tmp_path: Path) -> None:
        recover(tmp_path / "absent/out")
        recover(tmp_path / "out")
        assert names_in(tmp_path) == []

    def test_a_live_run_is_left_alone(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        with OutputDirectory(target) as out:
            out.write_model(some_tensors())
            expected = (
                f"{target}: another process is writing it right now; "
                "wait for that to end or give another output with -o"
            )
            assert message(lambda: write_model(target)) == expected
            assert message(lambda: recover(target)) == expected
            assert siblings(target, "tmp") == [out.path]
            out.commit(CONFIG)
        assert manifest_problems(target) == []
        assert names_in(tmp_path) == ["out"]

    def test_other_targets_are_not_locked(self, tmp_path: Path) -> None:
        with OutputDirectory(tmp_path / "a") as out:
            write_model(tmp_path / "b")
            out.commit(CONFIG)
        assert names_in(tmp_path) == ["a", "b"]

    def test_a_lock_file_that_is_unlinked_while_we_wait_is_not_trusted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fcntl

        target = tmp_path / "out"
        real_flock = fcntl.flock
        calls: list[int] = []

        def flock(descriptor: int, operation: int) -> None:
            if not calls:  # the holder before us leaves between our open and our flock
                lock_path(target).unlink()
            calls.append(descriptor)
            real_flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", flock)
        with target_lock(target):
            assert len(calls) == 2
            assert lock_path(target).exists()
        assert names_in(tmp_path) == []

    def test_a_file_system_without_locks_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import fcntl

        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", flock)
        text = message(lambda: write_model(tmp_path / "out"))
        assert text == (
            f"{lock_path(tmp_path / 'out')}: cannot be locked: No locks available; "
            "give an output on a local disk with -o"
        )


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    text = message(lambda: HashedFile(tmp_path / "x", needed=0))
    assert text == f"{tmp_path / 'x'}: cannot be written: File exists; give another output with -o"
    assert (tmp_path / "x").read_text() == "mine"


class TestListedFiles:
    def test_files_and_their_entries_are_replaced(self, tmp_path: Path) -> None:
        target = write_model(tmp_path / "out")
        replace_listed_files(target, {"vocab.json": b"{}", "parity.json": b"[]"}, fix="fix: none")
        assert (target / "vocab.json").read_bytes() == b"{}"
        assert manifest_problems(target) == []
        assert "parity.json" in (read_manifest(target) or {})

    def test_without_a_manifest_the_files_alone_are_replaced(self, tmp_path: Path) -> None:
        replace_listed_files(tmp_path, {"parity.json": b"[]"}, fix="fix: none")
        assert names_in(tmp_path) == ["parity.json"]

    @pytest.mark.parametrize("calls", range(4))
    def test_a_kill_in_between_leaves_no_wrong_entry(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
    ) -> None:
        target, real, left = write_model(tmp_path / "out"), output_file.replace_file, [calls]

        def replace_file(*args: Any, **options: Any) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(*args, **options)

        monkeypatch.setattr(output_file, "replace_file", replace_file)
        with pytest.raises(KeyboardInterrupt):
            replace_listed_files(target, {"vocab.json": b"{}", "parity.json": b"[]"}, fix="fix: none")
        assert all(problem.endswith(": not in the manifest") for problem in manifest_problems(target))


def test_the_digest_of_bytes_an_open_file_and_a_path_is_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    with (tmp_path / "file").open("rb", buffering=0) as file:
        assert sha256_hex(b"abc") == sha256_hex(file) == sha256_hex(tmp_path / "file", MLXBertError) == expected
    assert sha256_hex(tmp_path / "none", MLXBertError) is None
