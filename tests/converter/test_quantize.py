"""Making quantized checkpoints: formats, calibration, allotment, quality, and everything that is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from converter.canonical import DtypeError
from converter.cli import convert as command
from converter.convert import convert, where_plotted
from converter.quantize.allotment import (
    Option,
    allot_bits,
    check_reach,
    frontier,
    point_of,
    rounded_down,
)
from converter.quantize.auto import TILTS, Search, Study, layer_options, scaled, uniform_choices, worth_a_trial
from converter.quantize.calibrated import calibrate, embedding_metric
from converter.quantize.cost import Quality
from converter.quantize.pipeline import pack_rows
from converter.quantize.quality import distributions, divergence, embeddings, measure_quality, rank_correlation
from converter.quantize.recipes import (
    HELD_OUT,
    RECIPES,
    CalibrationError,
    RecipeError,
    Target,
    TextList,
    TokenBatch,
    built_in,
    configure,
    parse_size,
    quantize_settings,
    recipe_named,
    thinned,
    token_batches,
)
from converter.quantize.rounding import (
    Moments,
    compensate,
    compensate_table,
    corrected_bias,
    encode,
    full_range,
    pack,
    round_fp4,
    rounded,
    searched_range,
)
from heads.command_line import install_fix
from mlxbert.checkpoint import load, load_core
from mlxbert.model_arrays import named_parameters
from mlxbert.models.architecture import HeadKind, architecture, supported
from mlxbert.models.base import Encoder, module_at
from mlxbert.models.bert import BertCore
from mlxbert.quantization import LayerQuantization, QuantizationConfig
from tests.support.tiny import save_tiny, save_tokenizer

RNG = np.random.default_rng(0)
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source") / "tiny"
    save_tiny(directory, "BertForSequenceClassification", num_labels=3, **SIZES)
    return directory


@pytest.fixture(scope="module")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "tiny"
    convert(source, out, verify=False)
    return out


@pytest.fixture(scope="module", params=supported())
def each_source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of every architecture, with a classifier and a tokenizer."""
    directory = tmp_path_factory.mktemp("each") / "tiny"
    declared = architecture(request.param)
    # Wide enough for a group, where embeddings have a width of their own.
    widths = {"embedding_size": 32} if "embedding_size" in declared.tiny else {}
    name = declared.head_of(HeadKind.SEQUENCE)
    save_tiny(directory, str(name), num_labels=3, **(SIZES | widths | {"vocab_size": 400}))
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def each_plain(each_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("each-plain") / "tiny"
    convert(each_source, out, verify=False)
    return out


def shapes_of(core: Encoder) -> dict[str, tuple[int, int]]:
    matrices = {name: array for name, array in named_parameters(core).items() if array.ndim == 2}
    return {name.removesuffix(".weight"): (array.shape[0], array.shape[1]) for name, array in matrices.items()}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of the tiny vocabulary: letters and their pieces."""
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    letters = np.array([chr(code) for code in range(ord("a"), ord("z") + 1)])
    words = ["".join(RNG.choice(letters, RNG.integers(1, 5))) for _ in range(400)]
    file.write_text("\n".join(" ".join(words[i : i + 8]) for i in range(0, 400, 8)), encoding="utf-8")
    return file


def unpacked(words: np.ndarray, scales: np.ndarray, biases: np.ndarray | None, layer: LayerQuantization) -> np.ndarray:
    arrays = [mx.array(words), mx.array(scales), None if biases is None else mx.array(biases)]
    return np.array(mx.dequantize(*arrays, layer.group_size, layer.bits, layer.mode, dtype=mx.float32))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_mlx_reads_our_affine_words(bits: int, group: int) -> None:
    layer = LayerQuantization(bits, group)
    weight = RNG.standard_normal((7, 256), np.float32)
    for search in (False, True):
        packed = rounded(weight, layer, search=search)
        assert packed.scales.dtype == np.float16
        theirs = unpacked(pack(packed.codes, bits), packed.scales.astype("f4"), packed.biases.astype("f4"), layer)
        np.testing.assert_allclose(theirs, packed.numbers, atol=1e-6)
        assert packed.codes.nbytes * bits // 8 + 4 * packed.scales.size == layer.bytes_of(7, 256)
    # Nobody's full range is better than the searched one, and MLX's own rounding is not better than ours.
    mlx = mx.dequantize(*mx.quantize(mx.array(weight), group, bits), group, bits)
    assert np.square(packed.numbers - weight).sum() <= np.square(np.array(mlx) - weight).sum()


@pytest.mark.parametrize(("mode", "group"), [("mxfp4", 32), ("nvfp4", 16)])
def test_mlx_reads_our_4_bit_floats_and_they_are_nearer_than_its_own(mode: str, group: int) -> None:
    weight = RNG.standard_normal((9, 192), np.float32) * np.exp2(RNG.integers(-9, 3, (9, 1))).astype(np.float32)
    weight[0, :group] = 0
    codes, scales = round_fp4(weight, group, mode)
    ours = unpacked(pack(codes, 4), scales, None, LayerQuantization(4, group, mode))
    quantized = mx.quantize(mx.array(weight), group, 4, mode=mode)
    theirs = np.array(mx.dequantize(*quantized, group_size=group, bits=4, mode=mode, dtype=mx.float32))
    assert not ours[0, :group].any()
    error, mlx_error = (np.square(x - weight).sum(axis=1) for x in (ours, theirs))
    assert (error <= mlx_error * (1 + 1e-5)).all()
    assert np.mean(error[error > 0] / mlx_error[error > 0]) < 0.97


def test_equal_weights_and_large_ones() -> None:
    layer = LayerQuantization(4, 32)
    equal = rounded(np.full((2, 32), 0.25, np.float32), layer)
    np.testing.assert_array_equal(equal.numbers, np.full((2, 32), 0.25))
    scales, biases = full_range(np.array([[[-1.0, 2.0] * 16]], np.float32), 8)
    assert float(biases[0, 0]) == -1.0
    assert encode(np.array([[5.0] * 32], np.float32), scales[0][None], biases[0][None], 8).codes.max() == 255


def test_weights_that_float16_scales_cannot_hold() -> None:
    weight = np.full((2, 64), 1e6, np.float32)
    weight[:, ::2] = -1e6
    with pytest.raises(DtypeError, match="x: its weights are too large for float16 scales; fix: --dtype bfloat16"):
        pack_rows("x", weight, LayerQuantization(4, 64), "float16")
    words, rest = pack_rows("x", weight, LayerQuantization(4, 64), "bfloat16")
    assert words.shape == (2, 8)
    assert np.isfinite(rest["scales"].astype(np.float32)).all()


@pytest.mark.parametrize("name", ["embeddings.word_embeddings", "encoder.layer.1.output.dense"])
def test_a_calibrated_weight_that_float16_scales_cannot_hold(name: str, plain: Path, texts: Path) -> None:
    core, tokenizer = load(plain)
    weight = np.array(named_parameters(core)[f"{name}.weight"])
    weight[7, ::2] = -1e6
    core.load_weights([(f"{name}.weight", mx.array(weight))], strict=False)
    shapes = shapes_of(core)
    batches = token_batches(texts.read_text().splitlines()[:8], tokenizer, max_length=64)
    config = configure(RECIPES["8bit"].default, shapes)
    with pytest.raises(DtypeError, match=f"{name}: its weights are too large for float16 scales; fix: --dtype bfloat"):
        calibrate(core, batches, config)


def test_importance_decides_the_range() -> None:
    groups = RNG.standard_normal((1, 64)).astype(np.float32)
    groups[0, 0] = 9
    importance = np.ones(64, np.float32)
    importance[0] = 1e4
    ranges = [searched_range(groups, 3, weights) for weights in (None, importance)]
    errors = [abs(encode(groups, s[:, None], b[:, None], 3).numbers[0, 0] - 9) for s, b in ranges]
    assert errors[1] < errors[0]


def test_compensation_beats_rounding_on_the_inputs_it_saw_and_on_others() -> None:
    # Inputs that depend on each other, as hidden states do: otherwise nothing can make up for an error.
    mixing = RNG.standard_normal((12, 64))
    seen, unseen = (
        (RNG.standard_normal((n, 12)) @ mixing + 0.3 * RNG.standard_normal((n, 64))).astype(np.float32)
        for n in (600, 200)
    )
    weight, layer = RNG.standard_normal((32, 64)).astype(np.float32), LayerQuantization(3, 32)
    moments = Moments.empty(64)
    moments.add(seen, seen)
    plain = rounded(weight, layer, search=True).numbers
    compensated = compensate(weight, moments, layer, dtype="float16").numbers
    for inputs, factor in ((seen, 0.6), (unseen, 0.8)):
        harm = [np.square(inputs @ (weight - other).T).mean() for other in (compensated, plain)]
        assert harm[0] < factor * harm[1]
    bias = corrected_bias(np.zeros(32, np.float32), weight, compensated, moments)
    np.testing.assert_allclose((seen @ compensated.T + bias).mean(axis=0), (seen @ weight.T).mean(axis=0), atol=1e-5)


def test_compensation_aims_at_what_the_float_model_would_have_given() -> None:
    exact = RNG.standard_normal((500, 64)).astype(np.float32)
    own = exact * 0.9  # what quantized layers before this one have made of it
    moments = Moments.empty(64)
    moments.add(exact, own)
    weight = RNG.standard_normal((16, 64)).astype(np.float32)
    # Hardly damped, as these inputs are all there are: what it aims at is then what it gives.
    numbers = compensate(weight, moments, LayerQuantization(8, 64), dtype="float16", target_damping=0.01).numbers
    error = np.square(own @ numbers.T - exact @ weight.T).mean() / np.square(exact @ weight.T).mean()
    assert error < 1e-4  # as it is, the weight would be off by 1e-2


def test_inputs_that_never_occur_do_no_harm() -> None:
    moments = Moments.empty(64)
    moments.add(np.zeros((5, 64), np.float32), np.zeros((5, 64), np.float32))
    weight = RNG.standard_normal((4, 64)).astype(np.float32)
    assert np.isfinite(compensate(weight, moments, LayerQuantization(4, 64), dtype="float16").numbers).all()


def test_calibration_beats_rounding_on_a_model(each_plain: Path, texts: Path) -> None:
    core, tokenizer = load(each_plain)
    lines = texts.read_text().splitlines()
    seen, unseen = (token_batches(part, tokenizer, max_length=64) for part in (lines[:40], lines[40:]))
    shapes = shapes_of(core)
    config = configure(RECIPES["3bit"].default, shapes, kept=core.architecture.kept)
    told: list[tuple[int, int]] = []
    result = calibrate(core, seen, config, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == len(told)
    exact = embeddings(core, unseen, ("mean",))
    cosines = []
    for calibrated in (True, False):
        other, _ = load(each_plain)
        for path in shapes:
            layer = config.of(path)
            if layer is not None:
                weight = np.array(named_parameters(core)[f"{path}.weight"])
                numbers = result.weights[path] if calibrated else rounded(weight, layer, search=True)
                other.load_weights([(f"{path}.weight", mx.array(numbers.numbers))], strict=False)
        if calibrated:
            other.load_weights([(n, mx.array(b)) for n, b in result.biases.items()], strict=False)
        cosines.append((embeddings(other, unseen, ("mean",)) * exact).sum(axis=1).mean())
    assert 1 - cosines[0] < 0.8 * (1 - cosines[1])


def test_a_table_is_rounded_where_its_errors_do_not_show() -> None:
    directions = RNG.standard_normal((16, 64))
    metric = directions.T @ directions  # 48 of 64 directions do not matter
    table, layer = RNG.standard_normal((9000, 64)).astype(np.float32), LayerQuantization(3, 64)
    plain, compensated = rounded(table, layer, search=True), compensate_table(table, metric, layer, dtype="float16")
    assert compensated.codes.shape == table.shape
    harm = [np.square((other.numbers - table) @ directions.T).mean() for other in (compensated, plain)]
    assert harm[0] < 0.6 * harm[1]
    nothing = compensate_table(table[:5], np.zeros((64, 64)), layer, dtype="float16")  # no direction matters
    assert np.isfinite(nothing.numbers).all()


def test_the_metric_says_what_an_error_of_an_embedding_does(each_plain: Path, texts: Path) -> None:
    core, tokenizer = load(each_plain)
    batches = token_batches(texts.read_text().splitlines(), tokenizer, max_length=64)
    metric = embedding_metric(core, batches)
    np.testing.assert_array_equal(metric, embedding_metric(core, batches))
    values, vectors = np.linalg.eigh(metric)
    ones = np.ones(len(metric))
    # The same for all embeddings is what LayerNorm takes away.
    assert ones @ metric @ ones < 1e-6 * len(metric) * values[-1]
    exact = embeddings(core, batches, ("mean",))
    name = core.architecture.word_embeddings
    rows, moved = named_parameters(core)[name], []
    for direction in (vectors[:, -4:], vectors[:, 1:5]):
        noise = RNG.standard_normal((len(rows), 4)) @ direction.T
        core.load_weights([(name, rows + mx.array(0.02 * noise))], strict=False)
        moved.append(1 - (embeddings(core, batches, ("mean",)) * exact).sum(axis=1).mean())
    assert moved[0] > 3 * moved[1]


def test_alone_each_layer_is_rounded_on_what_float32_gives_it(each_plain: Path, texts: Path) -> None:
    core, tokenizer = load(each_plain)
    batches = token_batches(texts.read_text().splitlines(), tokenizer, max_length=64)
    shapes = shapes_of(core)
    (*_, path) = (path for group in core.linears() if group.stage == 2 for path in group.paths)
    only = configure(RECIPES["3bit"].default, {path: shapes[path]})
    only = QuantizationConfig(only.default, only.overrides, {other: "kept" for other in shapes if other != path})
    expected = calibrate(core, batches, only).weights[path]
    found = calibrate(core, batches, configure(RECIPES["3bit"].default, shapes), alone=True).weights
    np.testing.assert_array_equal(found[path].codes, expected.codes)
    together = calibrate(core, batches, configure(RECIPES["3bit"].default, shapes)).weights[path]
    assert (together.codes != expected.codes).any()


class SharedLayers(BertCore):
    """Every layer runs the modules of the first, as in ALBERT."""

    def run_layer(self, i: int, *inputs: Any) -> Any:
        return super().run_layer(0, *inputs)


def test_a_linear_that_runs_several_times_is_rounded_once_for_all_its_inputs(plain: Path, texts: Path) -> None:
    core, tokenizer = load(plain)
    core.__class__ = SharedLayers
    batches = token_batches(texts.read_text().splitlines(), tokenizer, max_length=64)
    used = {path: shape for path, shape in shapes_of(core).items() if not path.startswith("encoder.layer.1.")}
    told: list[tuple[int, int]] = []
    config = configure(RECIPES["3bit"].default, used)
    found = calibrate(core, batches, config, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, len(used)) for done in range(1, len(used) + 1)]
    path = "encoder.layer.0.output.dense"
    moments = Moments.empty(96)

    def note(name: str, linear: Any, x: mx.array) -> mx.array:
        if name == path:
            rows = np.array(x)[batch.keep]
            moments.add(rows, rows)
        return linear(x)

    for batch in batches:
        with core.watched(note):
            core(batch.input_ids, batch.attention_mask)
    assert moments.tokens == 2 * sum(int(batch.keep.sum()) for batch in batches)
    weight = np.array(module_at(core, path).weight)
    expected = compensate(weight, moments, LayerQuantization(3, 32), dtype="float16")
    np.testing.assert_array_equal(found.weights[path].codes, expected.codes)


@pytest.mark.parametrize("recipe", ["4bit", "mixed"])
def test_each_architecture_is_proven_before_it_is_packed(
    recipe: str, each_source: Path, texts: Path, tmp_path: Path
) -> None:
    calibration = None if recipe == "4bit" else texts
    report = convert(each_source, tmp_path / "out", quantize=recipe, calibration=calibration, verify=True).report
    assert report is not None
    assert report.verified, report.failures
    assert report.quantization is not None
    assert report.quantization.limits.name == recipe
    config = QuantizationConfig.from_hf(json.loads((tmp_path / "out" / "config.json").read_text()))
    assert config is not None
    modules = dict(load(tmp_path / "out")[0].named_modules())
    tables = {kind: path for kind, path in architecture(report.model_type).tables.items() if path in modules}
    bits = {kind: layer and layer.bits for kind, path in tables.items() if (layer := config.of(path)) is not None}
    expected = {"word": 4, "position": 4 if recipe == "4bit" else 6}
    assert bits == {kind: number for kind, number in expected.items() if kind in tables}


def option(bits: int, size: int, harm: float) -> Option:
    return Option(LayerQuantization(bits, 64), size, harm)


def test_the_frontier_leaves_out_what_is_not_worth_its_bytes() -> None:
    options = [option(2, 10, 1.0), option(3, 20, 0.9), option(4, 30, 0.2), option(5, 40, 0.3), option(6, 50, 0.1)]
    assert [o.layer.bits for o in frontier(options)] == [2, 4, 6]


def test_bits_go_where_they_help() -> None:
    options = {
        "sensitive": [option(2, 100, 1.0), option(4, 200, 0.25), option(8, 400, 0.01)],
        "robust": [option(2, 100, 0.01), option(4, 200, 0.0025), option(8, 400, 0.0001)],
    }
    chosen, curve = allot_bits(options, fixed_bytes=50, budget=560)
    assert {path: o.layer.bits for path, o in chosen.items()} == {"sensitive": 8, "robust": 2}
    assert curve[0].bytes == 250
    assert curve[-1].bytes == 850
    assert [point.cosine for point in curve] == sorted(point.cosine for point in curve)
    chosen, _ = allot_bits(options, fixed_bytes=50, harm=0.3)
    assert {path: o.layer.bits for path, o in chosen.items()} == {"sensitive": 4, "robust": 2}


def test_what_is_tried_fits_and_the_uniform_recipe_is_among_it(plain: Path) -> None:
    core, _ = load(plain)
    shapes = shapes_of(core)
    shapes = {path: shape for path, shape in shapes.items() if shape[0] > 4}
    harms = {path: 1e-3 * 1.5**i for i, path in enumerate(shapes)}
    options = {path: layer_options(core, path, shape, harms[path], "float16") for path, shape in shapes.items()}
    uniform = uniform_choices(options)
    budget = int(1.05 * point_of(uniform["5bit"], 100).bytes)
    ways = worth_a_trial(options, fixed_bytes=100, budget=budget)
    assert ways[-1][1] == uniform["5bit"]
    assert all(point_of(chosen, 100).bytes <= budget for _, chosen in ways)
    assert [tilt for tilt, _ in ways] == [*TILTS, 1.0, 1.0]
    tables = {tilt: sum(o.bytes for o in chosen.values() if o.is_table) for tilt, chosen in ways[:2]}
    assert tables[0.5] < tables[1.0]
    # The harms are those of the options, not the tilted ones; without room for 2 bits, nothing is uniform.
    assert all(option in options[path] for _, chosen in ways for path, option in chosen.items())
    # The one before the last: all tables alike, and all linear layers, each at a recipe's bits.
    pairs = {frozenset((o.is_table, o.layer.bits) for o in ways[-2][1].values())}
    assert all(len(pair) == 2 for pair in pairs)
    # Too small for any uniform recipe, the greedy choice stays.
    small = worth_a_trial(options, fixed_bytes=100, budget=point_of(uniform["2bit"], 100).bytes - 1)
    assert {tilt for tilt, _ in small} <= set(TILTS)
    linear, table = "encoder.layer.0.output.dense", "embeddings.word_embeddings"
    half = scaled(options, 0.5, tables=3)
    assert half[linear][0].harm == pytest.approx(0.5 * options[linear][0].harm)
    assert half[table][0].harm == pytest.approx(1.5 * options[table][0].harm)


def test_what_is_left_of_a_budget_is_spent() -> None:
    options = {"large": [option(2, 100, 1), option(8, 900, 0)], "small": [option(2, 10, 0.01), option(8, 20, 0)]}
    chosen, _ = allot_bits(options, fixed_bytes=0, budget=150)
    assert {path: o.layer.bits for path, o in chosen.items()} == {"large": 2, "small": 8}


def test_a_budget_that_no_allotment_reaches_says_the_nearest() -> None:
    options = {"only": [option(2, 2_000_000, 0.5), option(8, 8_000_000, 0.001)]}
    about: dict[str, int] = {"fixed_bytes": 10_000, "file_bytes": 10_000, "parameters": 7_000_000}
    for target, message in (
        (
            Target(size=1_000_000),
            "--target-size 1.00MB: no allotment is so small; the nearest is 2.01MB (expected cosine 0.500); "
            "fix: --target-size 2.01MB or more",
        ),
        (
            Target(bits=2),
            "--target-bits 2: no allotment is so small; the nearest is 2.29 bits a weight, 2.01MB (expected cosine "
            "0.500); fix: --target-bits 2.29 or more",
        ),
        (
            Target(cosine=0.9995),
            "--target-cosine 0.9995: no allotment is so near; the nearest is 0.99900, at 8.01MB; fix: a lower",
        ),
    ):
        with pytest.raises(RecipeError, match=re.escape(message)):
            check_reach(target, options, **about)
    for target in (Target(size=2_010_000), Target(bits=2.29), Target(cosine=0.999)):
        check_reach(target, options, **about)
    assert allot_bits(options, fixed_bytes=0, budget=1)[0]["only"].layer.bits == 2
    assert allot_bits(options, fixed_bytes=0, harm=0.0)[0]["only"].layer.bits == 8


def test_a_cosine_is_rounded_to_one_that_is_reached() -> None:
    assert rounded_down(0.99996, 4) == "0.9999"
    assert rounded_down(0.5, 4) == "0.5000"


def test_auto_that_falls_short_says_the_best_that_it_found(
    source: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.9, 0.94, 0.970064, 0.95, 0.96])  # the first: the one trial
    monkeypatch.setattr("converter.quantize.auto.worth_a_trial", lambda *args, **kw: worth_a_trial(*args, **kw)[:1])
    monkeypatch.setattr(Study, "harms", lambda self, alone, progress: dict.fromkeys(alone.weights, 1e-3))
    monkeypatch.setattr(Study, "cosine", lambda self, calibrated: next(found))
    message = r"--target-cosine 0.98: the nearest found is 0\.97006, at 0\.\d\dMB; fix: --target-cosine 0\.9700, or"
    with pytest.raises(RecipeError, match=message):
        convert(source, tmp_path / "out", quantize="auto", calibration=texts, target_cosine=0.98, verify=False)


def test_auto_needs_more_than_one_text(source: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a b c\n")
    with pytest.raises(CalibrationError, match="there is one text; fix: --calibration with a few hundred, one a line"):
        convert(source, tmp_path / "out", quantize="auto", calibration=tmp_path / "one.txt", target_bits=5.0)


def test_rank_correlation_is_scipy_s() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = RNG.integers(0, 9, 60), RNG.integers(0, 9, 60)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert rank_correlation(np.ones(5), a[:5]) is None


def test_divergence_is_scipy_s() -> None:
    special = pytest.importorskip("scipy.special")
    logits = RNG.standard_normal((2, 4, 5))
    p, q = special.softmax(logits, axis=-1)
    np.testing.assert_allclose(divergence(*logits), special.rel_entr(p, q).sum(axis=-1), atol=1e-12)
    masked = np.array([[0.5, -np.inf, 1.0]])
    assert divergence(masked, masked) == 0


def test_quality_of_a_model_with_itself(plain: Path) -> None:
    from mlxbert import load_with_head

    model, tokenizer = load_with_head(plain)
    for quality in measure_quality(model, model, tokenizer, ("mean",)):
        assert quality.sentences == 64
        assert quality.cosine_min == pytest.approx(1, abs=1e-6)
        assert quality.rank_correlation == pytest.approx(1)
        assert (quality.logit_agreement, quality.logit_kl) == (1, 0)


def test_several_labels_are_compared_each_by_itself() -> None:
    special = pytest.importorskip("scipy.special")
    batch = TokenBatch(np.zeros((4, 2), np.int64), np.ones((4, 2), np.int64))
    logits = RNG.standard_normal((2, 4, 3)).astype(np.float32)
    (a,), (b,) = (
        distributions({"logits": mx.array(one)}, batch, HeadKind.SEQUENCE, "multi_label_classification")
        for one in logits
    )
    p, q = special.expit(logits.astype(np.float64))
    np.testing.assert_allclose(divergence(a, b), special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q), atol=1e-7)
    np.testing.assert_array_equal(a.argmax(axis=-1) == b.argmax(axis=-1), (p > 0.5) == (q > 0.5))
    assert distributions({"logits": mx.array(logits[0])}, batch, HeadKind.SEQUENCE, "regression") == []


@pytest.mark.parametrize("problem", ["multi_label_classification", "single_label_classification", "regression"])
def test_without_pytorch_the_head_s_cost_is_measured_too(
    problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path / "source", "BertForSequenceClassification", num_labels=3, problem_type=problem, **SIZES)
    monkeypatch.setattr("converter.convert.why_not_verified", lambda *_, **__: "no torch")
    result = convert(tmp_path / "source", tmp_path / "out", quantize="4bit")
    assert result.report is None
    assert result.quantization is not None
    for quality in result.quantization.quality:
        if problem == "regression":
            assert (quality.logit_agreement, quality.logit_kl) == (None, None)
        else:
            assert quality.logit_agreement is not None
            assert quality.logit_kl is not None
            assert 0.5 < quality.logit_agreement <= 1
            assert 0 < quality.logit_kl < 0.5


def test_calibration_and_held_out_texts_share_nothing() -> None:
    lists = [built_in("calibration"), *map(built_in, HELD_OUT)]
    assert [len(texts.texts) for texts in lists] == [268, 64, 64]

    def runs(line: str, length: int) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", line.lower())
        return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}

    seen = [set().union(*(runs(line, 5) for line in texts.texts)) for texts in lists]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


@pytest.mark.slow
def test_auto_by_size_bits_and_cosine(source: Path, texts: Path, tmp_path: Path) -> None:
    sizes = {}
    for name, target in {"size": {"target_size": "80kB"}, "bits": {"target_bits": 5.0}}.items():
        result = convert(source, tmp_path / name, quantize="auto", calibration=texts, **target)  # type: ignore[arg-type]
        assert result.report is not None
        assert result.report.passed
        assert result.report.quantization is not None
        assert result.report.quantization.calibrated
        assert result.allotment is not None
        sizes[name] = sum(file.stat().st_size for file in (tmp_path / name).glob("*.safetensors"))
        assert (tmp_path / name / "quantization.png").read_bytes().startswith(b"\x89PNG")
        assert f"size against quality: {tmp_path / name / 'quantization.png'}" in result.notes
        bits = {choice.option.layer.bits for choice in result.allotment.choices}
        assert len(bits) > 1
        assert 0 <= result.allotment.expected.bytes - sizes[name] < 600  # the header, estimated from above
    assert sizes["size"] <= 80_000
    assert result.report.quantization.bits_per_weight <= 5.0
    assert result.allotment.measured_on == "the calibration text itself"
    near = convert(source, tmp_path / "near", quantize="auto", calibration=texts, target_cosine=0.98, verify=False)
    assert near.allotment is not None
    assert near.allotment.measured is not None
    assert near.allotment.measured >= 0.98
    assert near.allotment.measured_on == "calibration text held back"


def test_where_the_plot_is_or_why_there_is_none() -> None:
    assert where_plotted(Path("out"), {"quantization.png": b""}) == "size against quality: out/quantization.png"
    assert where_plotted(Path("out"), {}) == (
        f"size against quality: no plot: matplotlib is not installed; {install_fix('kaggle')}"
    )


def test_a_budget_that_cannot_be_met_leaves_nothing(source: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--target-size 0\.01MB: no allotment is so small; the nearest is 0\.0\dMB"):
        convert(source, tmp_path / "out", quantize="auto", target_size="10kB", calibration=texts, verify=False)
    assert not (tmp_path / "out").exists()


def test_scales_in_another_dtype(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", quantize="8bit", dtype="bfloat16", verify=False)
    core = load_core(tmp_path / "out", dequantize=False)
    assert core.packed is not None
    assert core.packed.dtype == "bfloat16"
    assert core.packed.tensors["pooler.dense.scales"].dtype == mx.bfloat16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.fixture(scope="module")
def minilm(minilm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float32."""
    return convert(minilm_source, tmp_path_factory.mktemp("minilm") / "float32", verify=False).path


@pytest.fixture(scope="module")
def half_of_the_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the calibration that the command does, for the time it takes; the limits are those of all of it."""
    half = tmp_path_factory.mktemp("half") / "half.txt"
    half.write_text("\n".join(built_in("calibration").texts[::2]), encoding="utf-8")
    return half


def qualities(exact_directory: Path, directory: Path) -> list[Quality]:
    (exact, tokenizer), (quantized, _) = load(exact_directory), load(directory)
    return list(measure_quality(exact, quantized, tokenizer, ("mean",)))


@pytest.mark.slow
def test_minilm_at_5_bits_a_weight(
    minilm: Path, half_of_the_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.quantize.pipeline.VARIANTS", 1)
    result = convert(minilm, tmp_path / "out", quantize="mixed", calibration=half_of_the_texts, verify=False)
    assert result.size < 14_300_000
    assert (tmp_path / "out" / "model.safetensors").stat().st_size <= 14_300_000
    for quality in qualities(minilm, tmp_path / "out"):
        assert quality.cosine_mean >= 0.996
        assert quality.cosine_min >= 0.992
        assert quality.rank_correlation is not None
        assert quality.rank_correlation >= 0.99


def first_allotment(search: Search) -> dict[str, Option]:
    ways = worth_a_trial(search._options, fixed_bytes=search._fixed_bytes, budget=search._budget())
    return ways[0][1]


@pytest.mark.slow
def test_minilm_in_13_mb(
    minilm: Path, half_of_the_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Besides: no variants, and the first of four allotments without a trial.
    monkeypatch.setattr("converter.quantize.auto.VARIANTS", 0)
    monkeypatch.setattr(Search, "_best_trial", first_allotment)
    out = tmp_path / "out"
    convert(minilm, out, quantize="auto", calibration=half_of_the_texts, target_size="13.0MB", verify=False)
    assert (out / "model.safetensors").stat().st_size <= 13_000_000
    for quality in qualities(minilm, out):
        assert quality.cosine_mean >= 0.986


def test_parity_json_says_what_it_cost(source: Path, tmp_path: Path) -> None:
    result = convert(source, tmp_path / "out", quantize="4bit")
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert parity["passed"]
    assert parity["written_dtype"] == "4bit"
    found = parity["quantization"]
    assert (found["recipe"], found["calibrated"]) == ("4bit", False)
    assert found["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert found["parameters"] == result.parameters
    assert 4.5 < found["bits_per_weight"] < 6
    first = found["layers"][0]
    assert set(first) == {"path", "mode", "bits", "group_size", "bytes", "error", "limit"}
    assert found["limits"] == {"name": "4bit", "cosine_mean": 0.93, "cosine_min": 0.88, "rank_correlation": 0.92}
    assert {point["gate"] for point in parity["points"]} == {"mapping"}
    assert 0.01 < first["error"] < 0.15
    assert {"path": "embeddings.token_type_embeddings", "reason": "2 rows: nothing to gain"} in found["skipped"]
    assert [quality["text"] for quality in found["quality"]] == list(HELD_OUT)
    for quality in found["quality"]:
        assert 0.9 < quality["cosine_mean"] < 1
        assert 0 < quality["logit_kl"] < 0.5
    from converter.parity.render import render_html
    from converter.parity.report import ParityReport

    again = ParityReport.from_value(json.loads((tmp_path / "out" / "parity.json").read_text()))
    assert again == result.report
    page = render_html(again)
    assert "Quantization: 4bit" in page
    assert "kept: 2 rows: nothing to gain" in page


BREAKS = {
    "a row's neighbour's scales": lambda words, scales: (words, scales[::-1]),
    "a group's neighbour's scales": lambda words, scales: (words, np.roll(scales, 1, axis=1)),
    "codes in another order": lambda words, scales: (words[:, ::-1], scales),
    "bits in another order": lambda words, scales: (words.byteswap(), scales),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_a_wrong_packing_is_named_by_its_layer(broken: str, packed: Path, source: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from converter.verify import verify

    shutil.copytree(packed, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    path = "encoder.layer.1.output.dense"
    changed = BREAKS[broken](tensors[f"{path}.weight"], tensors[f"{path}.scales"])
    for leaf, array in zip(("weight", "scales"), changed, strict=True):
        tensors[f"{path}.{leaf}"] = np.ascontiguousarray(array)
    save_file(tensors, file, metadata={"format": "mlx"})
    report = verify(tmp_path / "out", source)
    assert report.gate_passed("mapping")
    assert not report.gate_passed("precision")
    assert not report.passed
    assert report.failures[0].startswith(f"packing: {path}: error ")
    assert report.quantization is not None
    (layer,) = [layer for layer in report.quantization.layers if layer.path == path]
    assert layer.error > 5 * layer.limit
    assert all(other.failure is None for other in report.quantization.layers if other is not layer)


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At 8 bits; not to be written to."""
    return convert(source, tmp_path_factory.mktemp("packed") / "out", quantize="8bit", verify=False).path


def test_a_tensor_that_is_not_packed_and_not_the_sources_fails(packed: Path, source: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from converter.verify import verify

    shutil.copytree(packed, tmp_path / "out")
    for name, tensor in (("model", "encoder.layer.0.output.LayerNorm.bias"), ("heads", None)):
        file = tmp_path / "out" / f"{name}.safetensors"
        tensors = load_file(file)
        kept = dict(tensors)
        tensor = tensor or next(key for key in tensors if key.endswith("bias"))
        tensors[tensor] = tensors[tensor] + np.float16(0.05)
        save_file(tensors, file, metadata={"format": "mlx"})
        failures = verify(tmp_path / "out", source).failures
        assert failures[0].startswith(f"packing: {tensor}, not packed: error "), failures
        save_file(kept, file, metadata={"format": "mlx"})
    assert verify(tmp_path / "out", source).passed


def test_an_already_converted_directory_is_quantized_and_comes_back(plain: Path, tmp_path: Path) -> None:
    convert(plain, tmp_path / "packed", quantize="8bit", verify=False)
    back = convert(tmp_path / "packed", tmp_path / "back", dequantize=True)
    assert back.dtype == "float32"
    assert back.unverified is not None
    assert "--reference" in back.unverified
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert "quantization" not in config
    assert "quantization_config" not in config
    assert "quantization" not in config["mlxbert"]
    assert config["mlxbert"]["original_architectures"] == ["BertForSequenceClassification"]
    packed, unpacked_core = (named_parameters(load_core(tmp_path / name)) for name in ("packed", "back"))
    assert set(packed) == set(unpacked_core)
    for name, array in packed.items():
        np.testing.assert_array_equal(np.array(array), np.array(unpacked_core[name]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "4bits"}, "--quantize 4bits: no such recipe; fix: 4bit or"),
        ({"quantize": "zzz"}, "fix: 2bit or 3bit or 4bit"),
        ({"quantize": "auto"}, "has no target; fix: add --target-size, --target-bits, --target-cosine"),
        ({"quantize": "4bit", "target_size": "14MB"}, "--target-size is for --quantize auto, not 4bit"),
        ({"quantize": "auto", "target_size": "14MB", "target_bits": 4.5}, "only one target is possible"),
        ({"quantize": "auto", "target_size": "14 potatoes"}, "--target-size 14 potatoes: not a size; fix: as in 14MB"),
        ({"quantize": "auto", "target_size": "0MB"}, "not a size"),
        ({"quantize": "auto", "target_bits": -1.0}, "--target-bits -1: must lie between 0 and 32"),
        ({"quantize": "auto", "target_cosine": 1.5}, "--target-cosine 1.5: must lie between 0 and 1"),
        ({"quantize": "auto", "target_cosine": float("nan")}, "--target-cosine nan: must lie between"),
        ({"quantize": "auto", "target_bits": 4.0, "calibration": "none"}, "measures layers on calibration text"),
        ({"quantize": "mxfp4", "calibration": "built-in"}, "--quantize mxfp4 is rounded, not calibrated"),
        ({"calibration": "x.txt"}, "--calibration is for a quantization; fix: add --quantize 4bit"),
        ({"target_size": "14MB"}, "--target-size is for a quantization; fix: add --quantize auto"),
        ({"quantize": "4bit", "dequantize": True}, "--dequantize and --quantize contradict each other"),
        ({"target_bits": 4.5, "dequantize": True}, "--dequantize and --target-bits contradict each other"),
    ],
)
def test_options_that_cannot_be_met(options: dict[str, Any], message: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        convert(source, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; fix: a few hundred texts, one a line"),
        (b"\n \n\t\n", "is empty"),
        ("Caf\u00e9\n".encode("latin-1"), "not UTF-8 at line 1; fix: save it as UTF-8"),
        ("A text.\n".encode("utf-16"), "not UTF-8 at line 1"),
        (b"A\0text.\n", "has null characters"),
        (None, "no such file; fix: give one, or built-in"),
    ],
)
def test_a_calibration_file_that_cannot_be_used(
    content: bytes | None, message: str, source: Path, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CalibrationError, match=message) as caught:
        convert(source, tmp_path / "out", quantize="4bit", calibration=file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


class WordsAlone:
    """A tokenizer of [CLS]-less texts, in which a text can have no token."""

    vocab_size, pad_token_id = 97, 0

    def encode(self, texts: list[str], max_length: int) -> list[Any]:
        found = [tuple(5 + len(word) for word in text.split() if word.isalpha())[:max_length] for text in texts]
        return [SimpleNamespace(ids=ids) for ids in found]


def test_texts_without_a_token_are_left_out() -> None:
    tokenizer: Any = WordsAlone()
    batches = token_batches(["a bc def", "1 2", "g"], tokenizer, max_length=8, variants=4)
    assert sum(len(batch.input_ids) for batch in batches) == 2 * 5
    assert all(batch.keep.any(axis=1).all() for batch in batches)
    with pytest.raises(CalibrationError, match="no text has a token; fix: give texts that this tokenizer knows"):
        token_batches(["1 2"], tokenizer, max_length=8, variants=4)


def test_more_texts_than_have_room_are_thinned_and_it_is_said(
    source: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Any = WordsAlone()
    given = TextList("book.txt", ("a b",) * 9000, "")
    room: dict[str, Any] = {"max_length": 8, "width": 64, "variants": 4}
    used, notes = thinned(given, tokenizer, **room)
    assert len(used) == 3000
    assert notes == ["calibration uses one text in 3 of book.txt, 3,000 of 9,000: more need too much time or memory"]
    assert thinned(TextList("few.txt", ("a b",) * 50, ""), tokenizer, **room)[1] == []
    monkeypatch.setattr("converter.quantize.recipes._STATE_BYTES", 2_000_000)
    result = convert(source, tmp_path / "out", quantize="4bit", calibration=texts, verify=False)
    assert any(note.startswith("calibration uses one text in") for note in result.notes)
    facts = json.loads((tmp_path / "out" / "config.json").read_text())["mlxbert"]["quantization"]["calibration"]
    assert 0 < facts["texts"] < 50


def test_a_model_without_a_tokenizer_cannot_be_calibrated(source: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((source / name).read_bytes())
    with pytest.raises(CalibrationError, match="has no tokenizer to read calibration text with"):
        convert(bare, tmp_path / "out", quantize="mixed", verify=False)
    result = convert(bare, tmp_path / "out", quantize="mixed", calibration="none")
    assert result.report is not None
    assert result.report.quantization is not None
    (quality,) = result.report.quantization.quality
    assert (quality.text, quality.sentences) == ("random ids", 64)
    assert 0.93 < quality.cosine_mean < 1


@pytest.mark.parametrize("recipe", ["4bit", "mixed", "mxfp4", "nvfp4"])
def test_a_model_of_which_nothing_can_be_packed_is_refused(recipe: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", hidden_size=48, intermediate_size=80, num_hidden_layers=1)
    groups = "32" if "fp4" in recipe else "32, 64, 128"
    message = f"--quantize {recipe}: no layer can be packed: rows of 48 and 80 divide into no groups of {groups}; fix:"
    with pytest.raises(RecipeError, match=re.escape(message)):
        convert(tmp_path / "source", tmp_path / "out", quantize=recipe, verify=False)
    assert not (tmp_path / "out").exists()


def test_sources_that_are_quantized_already_or_not_at_all(plain: Path, tmp_path: Path) -> None:
    convert(plain, tmp_path / "packed", quantize="4bit", verify=False)
    for options in ({"quantize": "4bit"}, {}):
        with pytest.raises(Exception, match=r"quantized to 4 bits already.*or --dequantize"):
            convert(tmp_path / "packed", tmp_path / "out", **options)  # type: ignore[arg-type]
    with pytest.raises(Exception, match='has no "quantization": nothing to unpack; fix: leave --dequantize out'):
        convert(plain, tmp_path / "out", dequantize=True)
    (tmp_path / "packed" / "config.json").write_text(
        (tmp_path / "packed" / "config.json").read_text().replace('"bits": 4', '"bits": 8')
    )
    with pytest.raises(Exception, match="are not 8 bits in groups of"):
        convert(tmp_path / "packed", tmp_path / "out", dequantize=True)


def test_the_command_says_it_in_one_line(source: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(command, [str(source), "-o", str(tmp_path / "out"), "--quantize", "5bits"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        line for line in result.stderr.splitlines() if line.startswith("convert: error: --quantize 5bits")
    ]
    done = runner.invoke(
        command, [str(source), "-o", str(tmp_path / "out"), "--quantize", "4bit", "--target-bits", "x"]
    )
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "size"), [("14MB", 14_000_000), ("13.5 mb", 13_500_000), ("12MiB", 12 << 20), (7, 7)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


def test_recipes_are_found_by_name() -> None:
    assert recipe_named("mixed").calibrated
    assert quantize_settings(None) is None
    for name, recipe in RECIPES.items():
        assert recipe_named(name) is recipe
