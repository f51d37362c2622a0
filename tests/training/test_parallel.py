"""Several processes that train one model: their parts, their messages, and what they are compared by."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxbert.errors import Interrupted
from mlxbert.training import parallel
from mlxbert.training.connection import HELLO, WorldError, frame, hello, listen
from mlxbert.training.control import Control, Times
from mlxbert.training.gradients import FGM
from mlxbert.training.optimizer import ConfigurationError
from mlxbert.training.parallel import Launch, World, current_world, differences, launched, part
from mlxbert.training.state import restore_step, step_state
from mlxbert.training.step import StepReport
from tests.support.launched import free_ports
from tests.training.test_training_step import batch, largest_difference, make_step

NEVER = Times(start=20, silence=1e6, progress=1e6)


class SummedInOrder:
    """Stands for MLX's collectives: adds up the arrays of ranks that are threads of this process."""

    def __init__(self, ranks: int):
        self.arrays: dict[int, np.ndarray] = {}
        self.barrier = threading.Barrier(ranks)

    def all_sum(self, rank: int, array: mx.array) -> mx.array:
        self.arrays[rank] = np.array(array)
        self.barrier.wait(20)
        total = sum((self.arrays[number] for number in sorted(self.arrays)), np.zeros(array.shape, np.float32))
        self.barrier.wait(20)
        return mx.array(total)


def together(ranks: int, work: Callable[[World], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Call a function for each rank of a world, each on a thread of its own, over real connections."""
    address, sums = ("127.0.0.1", free_ports(1)), SummedInOrder(ranks)
    monkeypatch.setattr(parallel.mx.distributed, "all_sum", lambda array, group: sums.all_sum(group, array))
    results: list[Any] = [None] * ranks

    def run(rank: int) -> None:
        try:
            world = World(rank, ranks, Control(rank, ranks, address, NEVER), rank)
            results[rank] = work(world)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return results


@pytest.mark.parametrize(("rows", "size"), [(32, 4), (7, 3), (2, 4), (0, 2), (5, 1)])
def test_each_row_has_one_rank(rows: int, size: int) -> None:
    parts = [part(rows, rank, size) for rank in range(size)]
    expected = [len(one) for one in np.array_split(np.arange(rows), size)]
    assert [one.stop - one.start for one in parts] == expected
    assert [row for one in parts for row in range(one.start, one.stop)] == list(range(rows))


def test_the_launcher_says_rank_size_and_where_rank_0_is(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(json.dumps([["10.0.0.1:5000", "10.0.0.1:5001"], ["10.0.0.2:5002", "10.0.0.2:5003"]]))
    ring = {"MLX_RANK": "1", "MLX_HOSTFILE": str(hosts)}
    assert launched(ring) == Launch(1, 2, ("10.0.0.1", 5004), ("10.0.0.1", "10.0.0.2"), "ring")
    nccl = {"MLX_RANK": "3", "MLX_WORLD_SIZE": "4", "NCCL_HOST_IP": "10.0.0.1", "NCCL_PORT": "12345"}
    assert launched(nccl) == Launch(3, 4, ("10.0.0.1", 12346), backend="nccl")
    devices = tmp_path / "devices"
    devices.write_text(json.dumps([[None, "rdma_en5"], ["rdma_en5", None]]))
    jaccl = {"MLX_RANK": "0", "MLX_IBV_DEVICES": str(devices), "MLX_JACCL_COORDINATOR": "10.0.0.1:32323"}
    assert launched(jaccl) == Launch(0, 2, ("10.0.0.1", 32324), backend="jaccl")
    assert launched({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}) == Launch(2, 3, None)
    hosts.write_text("\n")  # mlx.launch -n 1
    assert launched(ring) is None
    assert launched({}) is None


@pytest.mark.parametrize(
    "variables",
    [
        {"MLX_RANK": "x"},
        {"MLX_RANK": "0", "MLX_HOSTFILE": "/no/such/file"},
        {"MLX_RANK": "7", "MLX_WORLD_SIZE": "4", "NCCL_HOST_IP": "a", "NCCL_PORT": "1"},
    ],
)
def test_damaged_variables_of_the_launcher_are_one_line(variables: dict[str, str]) -> None:
    with pytest.raises(WorldError, match=r"^the launcher's environment variables are damaged \(.*mlx\.launch$"):
        launched(variables)


def test_the_time_out_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("soon", "0", "inf", "nan"):
        monkeypatch.setenv("MLXBERT_RANK_TIMEOUT", wrong)
        with pytest.raises(WorldError, match=rf"^MLXBERT_RANK_TIMEOUT='{wrong}' is not a number of seconds from 1 on"):
            parallel._times()


def test_a_world_of_one_needs_nobody() -> None:
    world = current_world()
    assert (world.rank, world.size, world.writes) == (0, 1, True)
    assert world.gather("x", [1.5]) == [[1.5]]
    assert world.add("x", [0.1, 0.2]) == [0.1, 0.2]
    arrays = {"a": mx.ones((2,))}
    assert world.sum(arrays) is arrays
    world.same_arrays("weights", arrays)
    with world.running(), world.files_of_first(Path("/there")) as directory:
        assert directory == Path("/there")


def test_differences_name_ranks_and_facts() -> None:
    facts = [{"mlx": "1", "digest": "a"}, {"mlx": "1", "digest": "b"}, {"mlx": "2", "digest": "a"}]
    assert differences(facts) == ["rank 1: digest is b, not a", "rank 2: mlx is 2, not 1"]
    many = [dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2)]
    assert differences(many) == ["rank 1: a is 2, not 1, b is 2, not 1, c is 2, not 1 and 2 more"]


def test_gradients_are_sent_in_few_large_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_PIECE", 10)
    assert parallel._pieces({"a": 4, "b": 6, "c": 1, "d": 30, "e": 2}) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_ranks_exchange_numbers_files_and_arrays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"x" * 1000)
    (tmp_path / "empty").write_bytes(b"")
    monkeypatch.setattr(parallel, "_CHUNK", 300)
    monkeypatch.setattr(parallel, "_PIECE", 3)

    def work(world: World) -> Any:
        with world.files_of_first(tmp_path if world.writes else None) as directory:
            assert directory is not None
            files = {file.name: file.read_bytes() for file in directory.iterdir()}
        sums = world.sum({"a": mx.full((2, 2), world.rank + 1.0), "b": mx.ones((1,))})
        turns = world.in_turn("logits", [np.full(2, i) for i in range(world.rank, 4, 3)], 4)
        return (
            world.add("losses", [0.1 * world.rank, float("nan")])[0],
            world.any("stop", world.rank == 2),
            world.first("first", {"rank": world.rank}),
            files,
            {name: np.array(array).tolist() for name, array in sums.items()},
            [array.tolist() for array in turns],
        )

    found = together(3, work, monkeypatch)
    assert found[0] == found[1] == found[2]
    assert found[0][:3] == (0.0 + 0.1 + 0.2, True, {"rank": 0})
    assert found[0][3] == {"state": b"x" * 1000, "empty": b""}
    assert found[0][4:] == ({"a": [[6.0, 6.0], [6.0, 6.0]], "b": [3.0]}, [[0, 0], [1, 1], [2, 2], [3, 3]])


@pytest.mark.parametrize("freeze_layers", [0, 1])
def test_batches_that_one_process_has_accumulated_count_once_in_several(
    monkeypatch: pytest.MonkeyPatch, freeze_layers: int
) -> None:
    """One process saves between the batches of a step, and several go on, with --allow-changes."""
    one = make_step(dropout=0.0, freeze_layers=freeze_layers)
    one.accumulate(*batch(0))
    state = {name: mx.array(np.array(array)) for name, array in step_state(one).items()}
    one.accumulate(*batch(1))
    expected = one.update()
    means = {}

    def work(world: World) -> StepReport:
        step = make_step(dropout=0.0, freeze_layers=freeze_layers)
        step.world = world
        restore_step(step, state)
        step.accumulate(*batch(1))
        report = step.update()
        means[world.rank] = {name: np.array(array) for name, array in step.means.items()}
        return report

    found = together(2, work, monkeypatch)
    assert found[0] == found[1]
    assert found[0].rows == expected.rows == 16
    assert found[0].loss == pytest.approx(expected.loss, rel=1e-5)
    assert found[0].norm == pytest.approx(expected.norm, rel=1e-5)
    assert largest_difference({name: mx.array(array) for name, array in means[1].items()}, one.means) < 1e-4


def test_ranks_that_differ_or_are_elsewhere_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def differ(world: World) -> None:
        world.same_arrays("the weights", {"w": mx.array([1.0 + world.rank])})

    for error in together(2, differ, monkeypatch):
        assert isinstance(error, WorldError)
        text = r"^the ranks differ in the weights from rank 0: rank 1: checksum is \d+, not \d+; fix: use machines"
        assert re.match(text, str(error))

    def elsewhere(world: World) -> None:
        world.first("a" if world.writes else "b", 1)

    _, error = together(2, elsewhere, monkeypatch)
    assert "is at another place of the program (a) than rank 1 (b); fix: run the same program" in str(error)


def test_ranks_that_wait_for_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []
    monkeypatch.setattr(Control, "_end", lambda self, reason: reasons.append(reason))
    monkeypatch.setattr("mlxbert.training.control.BEAT_SECONDS", 0.05)

    def wait(world: World) -> None:
        control = world._control
        assert control is not None
        if not world.writes:
            world.first("b", None)
            return
        rescue = threading.Thread(target=look, args=(control,))
        rescue.start()
        world.gather("a", 1)

    def look(control: Control) -> None:
        limit = time.monotonic() + 10
        while control.peers[1].beat[1] != "wait" and time.monotonic() < limit:
            time.sleep(0.01)
        control._check_progress(time.monotonic() + 0.9 * NEVER.progress)
        assert not reasons
        control._check_progress(time.monotonic() + 1.1 * NEVER.progress)
        with control._changed:  # let both go on
            control.peers[1].inbox.append(("a", b"1"))
            control._changed.notify_all()

    first, _ = together(2, wait, monkeypatch)
    assert first is None
    (reason,) = reasons
    expected = (
        r"^rank 0 and rank 1 on .* \(process \d+\) have waited for each other for 1e\+06 s, at different places of "
    )
    assert re.match(expected + "the program; fix: run the same command and versions on all ranks$", reason)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyboardInterrupt(), ("interrupted", 130)),
        (Interrupted("at step 3"), ("at step 3", 130)),
        (ConfigurationError("no such layer"), ("no such layer", 2)),
        (ValueError("two\nlines"), ("ValueError: two lines", 2)),
        (AssertionError(), ("AssertionError", 2)),
    ],
)
def test_the_error_of_a_rank_is_sent_as_one_line(error: BaseException, line: tuple[str, int]) -> None:
    sent: list[tuple[str, int]] = []
    world = World(1, 2, types.SimpleNamespace(failed=lambda *given: sent.append(given)))  # type: ignore[arg-type]
    with pytest.raises(type(error)), world.running():
        raise error
    assert sent == [line]


@pytest.mark.parametrize("pid", [-1, 0, 1, "x", None])
def test_who_names_no_process_of_its_own_is_no_rank(pid: Any) -> None:
    """A rank that hangs is killed by its number; -1 and 0 would be all processes of this user."""
    about = {"rank": 1, "size": 2, "host": "here", "machine": "this"}
    for number, is_rank in ((os.getpid(), True), (pid, False)):
        with listen(("127.0.0.1", 0)) as waiting, socket.create_connection(waiting.getsockname()) as theirs:
            theirs.sendall(frame(HELLO, {**about, "pid": number}))
            ours, _ = waiting.accept()
            with ours:
                assert (hello(ours, 2) is not None) == is_rank


def test_a_rank_that_does_not_come_is_named() -> None:
    port = free_ports(1)
    quick = Times(start=0.3, silence=1e6, progress=1e6)
    with pytest.raises(
        WorldError, match=r"^rank 1 on there, rank 2 on far did not answer within 0\.3 s; fix: see that"
    ):
        Control(0, 3, ("127.0.0.1", port), quick, ("here", "there", "far"))
    with pytest.raises(
        WorldError, match=rf"^rank 1: rank 0 on 127\.0\.0\.1, port {port}, did not answer within 0.3 s"
    ):
        Control(1, 2, ("127.0.0.1", port), quick)
    with listen(("127.0.0.1", port)), pytest.raises(WorldError, match="another training uses it"):
        Control(0, 2, ("127.0.0.1", port), quick)


def test_adversarial_training_needs_one_process() -> None:
    step = make_step(adversarial=FGM(0.5))
    with pytest.raises(ConfigurationError, match="each of several processes has only its rows; fix: train in one"):
        type(step)(step.model, step.rules, step.schedule, step.settings, World(0, 2))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux opens the other end of a pipe")
def test_the_pipe_of_the_launcher_is_full_so_that_it_does_not_spin() -> None:
    read, write = os.pipe()
    try:
        assert select.select([], [write], [], 0)[1] == [write]
        parallel.calm_launcher(read)
        assert select.select([], [write], [], 0)[1] == []
    finally:
        os.close(read)
        os.close(write)
    with tempfile.TemporaryFile() as file:
        parallel.calm_launcher(file.fileno())  # a file is left alone
        assert file.read() == b""
