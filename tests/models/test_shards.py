"""A batch in shards: the same results as the whole batch, gradients that do not get lost, and threads that end."""

from __future__ import annotations

import subprocess
import sys
from threading import Thread
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from mlxbert import BertConfig, BertCore
from mlxbert.backend.device import BlasStatus, use_fast_blas
from mlxbert.backend.threads import begin, side_by_side
from mlxbert.model_arrays import InputError, named_parameters
from mlxbert.models import shards
from mlxbert.models.architecture import supported
from mlxbert.models.base import BertOutput, Encoder

pytestmark = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU computes a batch whole")

LIMIT = 2e-5  # that of the mapping gate
ROUNDING = 1e-5
CONFIG = BertConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, type_vocab_size=2
)


@pytest.fixture(autouse=True)
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compute in shards, however small they are; the numbers of shards of what was computed so."""
    counts: list[int] = []
    compute = shards.compute
    monkeypatch.setattr(shards, "compute", lambda builds: counts.append(len(builds)) or compute(builds))
    monkeypatch.setattr("mlxbert.backend.threads._LEAST_TOKENS", 1)
    use_threads(monkeypatch, 3)
    return counts


def use_threads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    status = BlasStatus(True, use_fast_blas().library, "", threads)
    monkeypatch.setattr("mlxbert.backend.threads.use_fast_blas", lambda: status)


def make_core(seed: int = 0) -> BertCore:
    mx.random.seed(seed)
    core = BertCore(CONFIG)
    core.update(tree_map(lambda p: mx.random.normal(p.shape) * 0.3, core.parameters()))
    core.eval()
    return core


def make_batch(rows: int = 7, length: int = 11) -> dict[str, mx.array]:
    random = np.random.default_rng(0)
    lengths = random.integers(1, length + 1, rows)
    return {
        "input_ids": mx.array(random.integers(1, 60, (rows, length))),
        "attention_mask": mx.array((np.arange(length) < lengths[:, None]).astype(np.int32)),
        "token_type_ids": mx.array(random.integers(0, 2, (rows, length))),
    }


def arrays_of(output: BertOutput) -> list[mx.array]:
    lists = (output.hidden_states or (), output.attentions or ())
    single = [output.last_hidden_state, output.pooler_output]
    return [array for array in [*single, *lists[0], *lists[1]] if array is not None]


def difference(a: BertOutput, b: BertOutput) -> float:
    pairs = list(zip(arrays_of(a), arrays_of(b), strict=True))
    assert all(one.shape == other.shape for one, other in pairs)
    return max(float(mx.abs(one - other).max()) for one, other in pairs)


@pytest.mark.parametrize("model_type", supported())
def test_every_number_of_shards_gives_the_same(
    model_type: str, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    pytest.importorskip("torch", reason="the reference is transformers")
    from tests.support.encoder_pairs import batches, error, pair, reference

    theirs, core = pair(model_type)
    exact = theirs.double()
    for inputs in batches(core).values():
        rows = np.resize(np.arange(len(inputs["input_ids"])), 5)
        five = {name: array if len(array) == 1 < len(rows) else array[rows] for name, array in inputs.items()}
        five["input_ids"] = inputs["input_ids"][rows]
        expected = reference(exact, five).last_hidden_state
        # In float64, transformers' ModernBERT has NaN where a window holds nothing but padding.
        finite = np.isfinite(expected.numpy()).all(-1)
        mask = finite & (five.get("attention_mask", finite) == 1)
        assert mask.any()
        outputs = []
        for count in (1, 2, 3, 5):
            use_threads(monkeypatch, count)
            outputs.append(core(**five, output_hidden_states=True, output_attentions=True))
            assert error(outputs[-1].last_hidden_state, expected, mask) < LIMIT
        assert computed == [2, 3, 5]
        computed.clear()
        assert max(difference(outputs[0], other) for other in outputs[1:]) < ROUNDING
        again = core(**five, output_hidden_states=True, output_attentions=True)
        assert all(map(mx.array_equal, arrays_of(again), arrays_of(outputs[-1])))
        computed.clear()


def whole(core: Encoder, **inputs: Any) -> BertOutput:
    core.splits_batches = False
    try:
        return core(**inputs)
    finally:
        core.splits_batches = True


@pytest.mark.parametrize(
    "shape", [(7, 11), (1, 11), (7, 11, 11), (1, 11, 11), (7, 4, 11, 11), (1, 1, 11, 11), (7, 1, 1, 11)]
)
def test_masks_of_every_shape(shape: tuple[int, ...], computed: list[int]) -> None:
    core, inputs = make_core(), make_batch()
    mask = np.random.default_rng(1).integers(0, 2, shape)
    mask[..., 0] = 1
    if len(shape) == 2 and shape[0] == 1:
        mask = np.repeat(mask, 7, axis=0)
    inputs["attention_mask"] = mx.array(mask)
    split = core(**inputs)
    assert computed == [3]
    assert difference(split, whole(core, **inputs)) < ROUNDING


def test_embeddings_and_positions_of_the_callers(computed: list[int]) -> None:
    core, inputs = make_core(), make_batch()
    embeds = core.embeddings.word_embeddings(inputs["input_ids"])  # without values yet
    expected = whole(core, **inputs)
    given = {name: array for name, array in inputs.items() if name != "input_ids"}
    for positions in (mx.arange(11)[None], mx.broadcast_to(mx.arange(11)[None], (7, 11))):
        assert difference(core(**given, inputs_embeds=embeds, position_ids=positions), expected) < ROUNDING
    assert computed == [3, 3]


def test_the_same_in_another_dtype_and_quantized(computed: list[int]) -> None:
    inputs = make_batch()
    for dtype in (mx.float16, mx.bfloat16):
        core = make_core()
        core.set_dtype(dtype)
        assert difference(core(**inputs), whole(core, **inputs)) == 0
    core = make_core()
    nn.quantize(core.encoder, group_size=32, bits=4)
    assert difference(core(**inputs), whole(core, **inputs)) < ROUNDING
    assert computed == [3, 3, 3]


def test_a_wrong_id_is_named_at_its_place_in_the_batch(computed: list[int]) -> None:
    core, inputs = make_core(), make_batch()
    inputs["input_ids"][6, 10] = 60
    with pytest.raises(InputError, match=r"^input_ids: 60 at \[6, 10\] is outside the model's table"):
        core(**inputs)
    assert computed == []
    assert core(**make_batch()).last_hidden_state.shape == (7, 11, 32)


def test_only_large_batches_in_evaluation_mode(monkeypatch: pytest.MonkeyPatch, computed: list[int]) -> None:
    core, inputs = make_core(), make_batch()
    core.train()
    core(**inputs)
    core.eval()
    core(**{name: array[:1] for name, array in inputs.items()})
    with core.watched(lambda _path, linear, x: linear(x)):
        core(**inputs)
    monkeypatch.setattr("mlxbert.backend.threads._LEAST_TOKENS", 64)
    use_threads(monkeypatch, 2)
    core(**inputs)
    assert computed == []
    core(**make_batch(16))
    assert computed == [2]


def test_a_lone_batch_is_begun_while_it_is_built(monkeypatch: pytest.MonkeyPatch, computed: list[int]) -> None:
    core = make_core()
    one = {name: array[:1] for name, array in make_batch().items()}
    mx.eval(core.parameters(), one)
    begun: list[mx.array] = []
    monkeypatch.setattr(shards, "begin", lambda array: begun.append(array) or begin(array))
    found = core(**one, output_hidden_states=True, output_attentions=True)
    assert len(begun) == 2  # of three layers
    core.splits_batches = False
    whole = core(**one, output_hidden_states=True, output_attentions=True)
    core.splits_batches = True
    assert difference(found, whole) == 0
    mx.grad(lambda x: core(**one, inputs_embeds=x).last_hidden_state.sum())(mx.ones((1, 11, 32)))
    mx.eval(mx.compile(lambda ids: core(ids).last_hidden_state)(one["input_ids"]))
    core.train()
    core(**one)
    assert (len(begun), computed) == (2, [])


def test_nothing_is_begun_where_another_thread_may_use_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "async_eval", lambda _array: pytest.fail("this stream is another thread's"))
    side_by_side(range(2), lambda _item: begin(mx.zeros(1)) or mx.zeros(1), lambda _item, _output: None)


# Nothing may be computed while MLX follows a gradient or records a graph.


def loss_of(core: BertCore, inputs: dict[str, mx.array], **embeds: mx.array) -> mx.array:
    output = core(**inputs, **embeds)
    assert output.pooler_output is not None
    return mx.square(output.last_hidden_state).sum() + output.pooler_output.sum()


def test_gradients_by_weights(computed: list[int]) -> None:
    core, inputs = make_core(), make_batch()
    mx.eval(core.parameters())
    _, found = nn.value_and_grad(core, lambda: loss_of(core, inputs))()
    core.splits_batches = False
    _, expected = nn.value_and_grad(core, lambda: loss_of(core, inputs))()
    assert computed == []
    gradients = dict(tree_flatten(expected))
    assert len(gradients) == len(named_parameters(core))
    for name, gradient in tree_flatten(found):
        assert float(mx.abs(gradient).max()) > 0, name
        assert mx.array_equal(gradient, gradients[name]), name


@pytest.mark.parametrize("transformation", ["grad", "vjp", "grad of checkpoint", "compiled grad", "vmap of grad"])
def test_gradients_by_embeddings(transformation: str, computed: list[int]) -> None:
    core, inputs = make_core(), make_batch()
    embeds = core.embeddings.word_embeddings(inputs.pop("input_ids"))
    mx.eval(core.parameters(), embeds)

    def loss(x: mx.array) -> mx.array:
        return loss_of(core, inputs, inputs_embeds=x)

    def gradient() -> Any:
        if transformation == "vjp":
            return mx.vjp(loss, [embeds], [mx.array(1.0)])[1][0]
        if transformation == "compiled grad":
            return mx.compile(mx.grad(loss))(embeds)
        if transformation == "vmap of grad":
            return mx.vmap(mx.grad(loss))(mx.stack([embeds, 2 * embeds]))
        return mx.grad(mx.checkpoint(loss) if "checkpoint" in transformation else loss)(embeds)

    found = gradient()
    core.splits_batches = False
    expected = gradient()
    assert float(mx.abs(expected).max()) > 0
    assert mx.array_equal(found, expected)
    assert [count for count in computed if "checkpoint" not in transformation] == []


def test_compiled_and_mapped(computed: list[int]) -> None:
    core, inputs = make_core(), make_batch()
    ids = inputs["input_ids"]
    expected = core(ids).last_hidden_state
    assert computed == [3]
    compiled = mx.compile(lambda ids: core(ids).last_hidden_state)
    assert float(mx.abs(compiled(ids) - expected).max()) < ROUNDING
    mapped = mx.vmap(lambda ids: core(ids).last_hidden_state)(mx.stack([ids, ids]))
    assert float(mx.abs(mapped - expected).max()) < ROUNDING
    assert computed == [3]
    assert mx.array_equal(core(ids).last_hidden_state, expected)  # shards again after them
    assert computed == [3, 3]


def test_two_threads_of_the_caller(computed: list[int]) -> None:
    core, inputs = make_core(), make_batch()
    expected = core(**inputs).last_hidden_state
    mx.eval(core.parameters(), inputs, expected)  # another thread cannot evaluate what this one has built
    same: list[bool] = []

    def run() -> None:
        same.extend(bool(mx.array_equal(core(**inputs).last_hidden_state, expected)) for _ in range(20))

    threads = [Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    run()
    for thread in threads:
        thread.join()
    assert same == [True] * 80
    assert computed == [3] * 81


SETUP = """
import os, signal, sys, threading
import mlx.core as mx, numpy as np
from mlxbert import BertConfig, BertCore
from mlxbert.backend import threads
from mlxbert.models import shards
threads._LEAST_TOKENS = 1
threads.thread_count = shards.thread_count = lambda: 3
core = BertCore(BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                           intermediate_size=64, type_vocab_size=2))
core.eval()
ids = mx.array(np.random.default_rng(0).integers(0, 60, (7, 11)))
def run():
    return round(float(core(ids).last_hidden_state.sum()), 2)
"""


@pytest.mark.parametrize(
    ("code", "status", "printed"),
    [
        ("first = run(); print(first == run())", 0, "True"),
        ("kept = core(ids); print('not computed')", 0, "not computed"),
        ("run(); sys.exit(3)", 3, ""),
        ("import atexit\nfirst = run()\natexit.register(lambda: print(first == run()))", 0, "True"),
        ("import atexit\natexit.register(lambda: print(isinstance(run(), float)))", 0, "True"),
        (
            "done = threading.Event()\n"
            "def wait():\n    run(); done.set(); threading.Event().wait()\n"
            "run(); threading.Thread(target=wait, daemon=True).start(); print(done.wait(60))",
            0,
            "True",
        ),
        (
            "signal.setitimer(signal.ITIMER_REAL, 0.3)\n"
            "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
            "first = run()\n"
            "try:\n    while True: run()\nexcept KeyboardInterrupt: print(first == run())",
            0,
            "True",
        ),
        # In the child of a process that has computed, MLX's own thread is gone: another thread can compute.
        (
            "first = run(); child = os.fork(); results = []\n"
            "if child == 0:\n"
            "    thread = threading.Thread(target=lambda: results.append(run())); thread.start(); thread.join()\n"
            "    os._exit(0 if results == [first] else 1)\n"
            "print(os.waitpid(child, 0)[1], first == run())",
            0,
            "0 True",
        ),
        (
            "child = os.fork()\n"
            "if child == 0: os._exit(0 if isinstance(run(), float) else 1)\n"
            "print(os.waitpid(child, 0)[1], isinstance(run(), float))",
            0,
            "0 True",
        ),
    ],
    ids=["end", "lazy", "exit", "at exit", "first at exit", "daemon", "interrupted", "fork after", "fork before"],
)
def test_a_process_that_computes_in_shards_ends_well(code: str, status: int, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (status, printed, "")
