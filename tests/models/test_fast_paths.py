"""What makes the forward pass fast on the CPU changes no number, and works where there is no compiler."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from mlxbert import BertConfig, BertCore
from mlxbert.activations import exp_nonpositive, softmax
from mlxbert.models.attention import split_heads
from mlxbert.models.bert import BertLayer, BertSelfAttention

SMALL = BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, type_vocab_size=2
)


@pytest.fixture(autouse=True)
def cpu():
    """The fast paths are the CPU's."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def small_core(seed: int = 0, layers: int = 2) -> BertCore:
    mx.random.seed(seed)
    core = BertCore(replace(SMALL, num_hidden_layers=layers))
    core.update(nn.utils.tree_map(lambda p: mx.random.normal(p.shape) * 0.3, core.parameters()))
    core.eval()
    return core


def batch() -> tuple[mx.array, mx.array]:
    # Without id 0: torch gives the padding's embedding no gradient.
    ids = mx.array(np.random.default_rng(0).integers(1, 50, (4, 11)))
    mask = mx.arange(11)[None] < mx.array([11, 7, 1, 0])[:, None]  # ragged, and one row without any token
    return ids, mask.astype(mx.int32)


def sdpa(attention: BertSelfAttention, x: mx.array, mask: mx.array | None) -> mx.array:
    """The context as MLX's own fused attention computes it."""
    q, k, v = (
        split_heads(layer(x), attention.num_heads) for layer in (attention.query, attention.key, attention.value)
    )
    context = mx.fast.scaled_dot_product_attention(q, k, v, scale=attention.scale, mask=mask)
    return context.swapaxes(1, 2).reshape(x.shape)


class TestExponential:
    def test_is_as_accurate_as_mlxs(self) -> None:
        x = -np.geomspace(1e-30, 87, 300_001).astype(np.float32)
        exact = np.exp(x.astype(np.float64))
        ours, mlxs = (np.abs(np.array(f(mx.array(x))) / exact - 1) for f in (exp_nonpositive, mx.exp))
        assert ours.max() <= 1.1 * mlxs.max()
        assert ours[x > -1].max() <= 3e-7

    def test_ends(self) -> None:
        x = mx.array([0.0, -0.0, -89.0, -1e4, -3e38, -math.inf])
        assert exp_nonpositive(x).tolist() == [1, 1, 0, 0, 0, 0]
        assert math.isnan(exp_nonpositive(mx.array(math.nan)).item())
        last_normal = exp_nonpositive(mx.linspace(-89, -86, 10_001))
        assert (last_normal >= 0).all()
        assert np.abs(np.array(last_normal) - np.exp(np.linspace(-89, -86, 10_001))).max() <= 1e-37

    def test_gradient(self) -> None:
        x = mx.array([-3.0, -0.5, 0.0])
        assert mx.array_equal(mx.grad(lambda x: exp_nonpositive(x).sum())(x), exp_nonpositive(x))


class TestSoftmax:
    @pytest.mark.parametrize("spread", [0.1, 1.0, 30.0, 1e4])
    def test_is_exact(self, spread: float) -> None:
        x = np.random.default_rng(0).standard_normal((3, 4, 17, 129)).astype(np.float32) * spread
        wide = x.astype(np.float64)
        exact = np.exp(wide - wide.max(-1, keepdims=True))
        exact /= exact.sum(-1, keepdims=True)
        assert np.abs(np.array(softmax(mx.array(x))) - exact).max() <= 3e-7

    def test_a_masked_key_weighs_exactly_nothing(self) -> None:
        weights = softmax(mx.array([[1.0, mx.finfo(mx.float32).min, 2.0, mx.finfo(mx.float32).min]]))
        assert weights[0, 1].item() == weights[0, 3].item() == 0

    @pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
    @pytest.mark.parametrize("value", ["lowest", 0.0, 1e4])
    def test_a_row_of_one_value_is_uniform(self, dtype: mx.Dtype, value: float | str) -> None:
        row = mx.full((2, 8), mx.finfo(dtype).min if value == "lowest" else value, dtype)
        assert mx.array_equal(softmax(row), mx.full((2, 8), 0.125, dtype))

    def test_nan_and_infinity_are_not_hidden(self) -> None:
        for bad in (math.nan, math.inf):
            assert mx.isnan(softmax(mx.array([[0.0, bad, 1.0]]))).any()

    def test_the_gradient_is_torchs(self) -> None:
        x, scale = (np.random.default_rng(s).standard_normal((5, 7, 33)).astype(np.float32) * 3 for s in (0, 1))
        ours = mx.grad(lambda x: (softmax(x) * mx.array(scale)).sum())(mx.array(x))
        theirs = torch.tensor(x, requires_grad=True)
        (theirs.softmax(-1) * torch.tensor(scale)).sum().backward()
        assert np.abs(np.array(ours) - theirs.grad.numpy()).max() <= 2e-6


class TestAttention:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(mx.float32, 1e-6), (mx.float16, 2e-3), (mx.bfloat16, 2e-2)], ids=str
    )
    @pytest.mark.parametrize("masked", [False, True])
    def test_is_mlxs_own(self, dtype: mx.Dtype, tolerance: float, masked: bool) -> None:
        attention = small_core().encoder.layer[0].attention.self
        attention.set_dtype(dtype)
        x = mx.random.normal((4, 11, 32)).astype(dtype)
        mask = batch()[1].astype(mx.bool_)[:, None, None, :] if masked else None
        expected = sdpa(attention, x, mask)
        for wants_weights in (False, True):
            context, weights = attention(x, mask, wants_weights)
            assert context.dtype == dtype
            assert not mx.isnan(context).any()
            error = mx.abs(context.astype(mx.float32) - expected.astype(mx.float32)).max().item()
            assert error <= tolerance * max(1.0, mx.abs(expected).max().item())
            assert (weights is not None) == wants_weights
        if masked:
            assert mx.array_equal(weights[3], mx.full(weights[3].shape, 1 / 11, dtype))  # no kept key: uniform

    def test_padding_changes_nothing(self) -> None:
        core, (ids, mask) = small_core(), batch()
        padded = core(ids, mask).last_hidden_state[1, :7]
        alone = core(ids[1:2, :7]).last_hidden_state[0]
        assert mx.abs(padded - alone).max().item() <= 2e-6

    def test_other_devices_use_the_fused_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        core, (ids, mask) = small_core(), batch()
        expected = core(ids, mask).last_hidden_state
        calls = []
        kernel = mx.fast.scaled_dot_product_attention
        monkeypatch.setattr("mlxbert.models.attention.has_fast_softmax", lambda _dtype: False)
        monkeypatch.setattr(
            mx.fast, "scaled_dot_product_attention", lambda *args, **rest: calls.append(1) or kernel(*args, **rest)
        )
        other = core(ids, mask).last_hidden_state
        assert len(calls) == SMALL.num_hidden_layers
        assert mx.abs(other - expected).max().item() <= 5e-6


def loss(core: BertCore, ids: mx.array, mask: mx.array) -> mx.array:
    output = core(ids, mask)
    return (output.last_hidden_state**2 * mask[..., None]).sum() + output.pooler_output.sum()


class TestTraining:
    def test_gradients_are_torchs(self) -> None:
        from transformers import BertConfig as HFConfig
        from transformers import BertModel

        core, (ids, mask) = small_core(), batch()
        mask = mx.maximum(mask, mx.arange(11)[None] < 1)  # torch's own attention has no answer to an empty row
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        reference = BertModel(HFConfig(**{name: getattr(SMALL, name) for name in names})).eval()
        reference.load_state_dict({k: torch.tensor(np.array(v)) for k, v in tree_flatten(core.parameters())})
        theirs = reference(torch.tensor(np.array(ids)), attention_mask=torch.tensor(np.array(mask)))
        weighted = theirs.last_hidden_state**2 * torch.tensor(np.array(mask))[..., None]
        (weighted.sum() + theirs.pooler_output.sum()).backward()

        gradients = nn.value_and_grad(core, loss)(core, ids, mask)[1]
        for name, gradient in tree_flatten(gradients):
            expected = dict(reference.named_parameters())[name].grad.numpy()
            error = np.abs(np.array(gradient) - expected).max() / max(1.0, np.abs(expected).max())
            assert error <= 1e-5, name

    def test_dropout_drops_and_eval_does_not(self) -> None:
        core, (ids, mask) = small_core(), batch()
        a, b = core(ids, mask).last_hidden_state, core(ids, mask).last_hidden_state
        assert mx.array_equal(a, b)
        core.train()
        a, b = core(ids, mask).last_hidden_state, core(ids, mask).last_hidden_state
        assert not mx.array_equal(a, b)
        assert mx.isfinite(loss(core, ids, mask)).item()

    @pytest.mark.parametrize("kind", ["compiled", "checkpointed"])
    def test_gradients_survive(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A compiled step and recomputed layers, the way mlx-lm recomputes them."""
        core, (ids, mask) = small_core(layers=1), batch()
        step = nn.value_and_grad(core, loss)
        expected = tree_flatten(step(core, ids, mask))
        call = BertLayer.__call__

        def checkpointed(layer: BertLayer, x: mx.array, keep: mx.array, _weights: bool) -> tuple[mx.array, None]:
            def run(parameters: dict, x: mx.array, keep: mx.array) -> mx.array:
                layer.update(parameters)
                return call(layer, x, keep)[0]

            return mx.checkpoint(run)(layer.trainable_parameters(), x, keep), None

        if kind == "compiled":
            result = mx.compile(lambda ids, mask: step(core, ids, mask), inputs=core.state)(ids, mask)
        else:
            monkeypatch.setattr(BertLayer, "__call__", checkpointed)
            result = step(core, ids, mask)
        for (name, want), (_, got) in zip(expected, tree_flatten(result), strict=True):
            assert mx.abs(want - got).max().item() <= 1e-5 * max(1.0, mx.abs(want).max().item()), name

    def test_the_parameters_are_the_checkpoints(self) -> None:
        core, (ids, mask) = small_core(), batch()
        before = [name for name, _ in tree_flatten(core.parameters())]
        mx.eval(core(ids, mask).last_hidden_state)
        nn.value_and_grad(core, loss)(core, ids, mask)
        assert [name for name, _ in tree_flatten(core.parameters())] == before
        assert len(before) == 5 + 16 * SMALL.num_hidden_layers + 2

    def test_new_weights_count_at_once(self) -> None:
        core, other, (ids, mask) = small_core(0), small_core(1), batch()
        mx.eval(core(ids, mask).last_hidden_state)
        core.update(other.parameters())
        assert mx.array_equal(core(ids, mask).last_hidden_state, other(ids, mask).last_hidden_state)


_PROGRAM = """
import mlxbert, mlx.core as mx
from mlxbert.activations import gelu
from mlxbert.activations import softmax
TRANSFORM
x = mx.array([[-1.5, 0.25, 3.0, 0.0]])
print(gelu(x).tolist(), softmax(x).tolist(), mx.grad(lambda x: gelu(x).sum())(x).tolist())
"""


def run_program(tmp_path: Path, path: str | None = None, transform: str = "", **environment: str) -> tuple[list, str]:
    """Run `_PROGRAM` in a process with its own temporary directory; the numbers that it printed, and its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.replace("TRANSFORM", transform)],
        env={**os.environ, "TMPDIR": str(tmp_path), "PATH": path or os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return np.concatenate([np.ravel(part) for part in eval(done.stdout.replace("] [", "], ["))]), done.stderr


@pytest.fixture(scope="module")
def numbers() -> np.ndarray:
    """What `_PROGRAM` prints, from torch."""
    x = torch.tensor([[-1.5, 0.25, 3.0, 0.0]], requires_grad=True)
    y = torch.nn.functional.gelu(x)
    y.sum().backward()
    return np.concatenate([part.detach().numpy().ravel() for part in (y, x.softmax(-1), x.grad)])


def without_compiler(tmp_path: Path) -> Path:
    """A PATH of one folder that has a shell and no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="MLX compiles for the CPU with g++ on Linux")
class TestCompiler:
    def test_none_is_needed(self, tmp_path: Path, numbers: np.ndarray) -> None:
        printed, errors = run_program(tmp_path, str(without_compiler(tmp_path)))
        np.testing.assert_allclose(printed, numbers, atol=1e-6)
        assert errors == ""
        assert not list(tmp_path.rglob("*.so"))

    def test_a_broken_one_is_named_once(self, tmp_path: Path, numbers: np.ndarray) -> None:
        folder = without_compiler(tmp_path)
        (folder / "g++").write_text(
            "#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'fatal error: cstdint: No such file'\nexit 1\n"
        )
        (folder / "g++").chmod(0o755)
        printed, errors = run_program(tmp_path, str(folder))
        np.testing.assert_allclose(printed, numbers, atol=1e-6)
        assert errors.splitlines() == [
            "mlxbert: mx.compile fails here (fatal error: cstdint: No such file); activations and softmax run "
            "uncompiled, which is slower; fix: install g++ with its headers, or set MLX_DISABLE_COMPILE=1 to silence "
            "this line"
        ]

    def test_compiling_can_be_off(self, tmp_path: Path, numbers: np.ndarray) -> None:
        printed, errors = run_program(tmp_path, MLX_DISABLE_COMPILE="1")
        np.testing.assert_allclose(printed, numbers, atol=1e-6)
        assert errors == ""
        assert not list(tmp_path.rglob("*.so"))

    @pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
    def test_the_first_call_may_be_inside_a_transformation(self, tmp_path: Path, numbers: np.ndarray) -> None:
        first = "mx.eval(mx.compile(mx.grad(lambda x: (gelu(x) * softmax(x)).sum()))(mx.ones((2, 3))))"
        printed, errors = run_program(tmp_path, transform=first)
        np.testing.assert_allclose(printed, numbers, atol=1e-6)
        assert errors == ""

    @pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
    def test_one_compilation_serves_every_shape_and_layout(self, tmp_path: Path) -> None:
        shapes = (
            "for shape in ((2, 3, 4, 5), (7, 5), (1,), (2, 9)):\n"
            "    y = mx.random.normal(shape); mx.eval(gelu(y), gelu(y.T), softmax(y), softmax(y.T))"
        )
        run_program(tmp_path, transform=shapes)
        assert len(list(tmp_path.rglob("*.so"))) == 3  # the two parts of exp, and GELU
