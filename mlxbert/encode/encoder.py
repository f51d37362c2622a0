"""`SentenceEncoder`: embed texts as the checkpoint's sentence-transformers files say."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import gcd
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlxbert.backend.device import one_blas_thread
from mlxbert.backend.threads import side_by_side, thread_count
from mlxbert.checkpoint import load, resolve
from mlxbert.encode.modules import Normalize, SentenceModuleError
from mlxbert.encode.precision import check_precision, quantize
from mlxbert.encode.sentence_modules import SentencePlan, read_sentence_plan
from mlxbert.errors import MLXBertWarning
from mlxbert.models.base import BertOutput, Encoder
from mlxbert.pooling import STRATEGIES, PoolingError, pool
from mlxbert.tokenization.encoding import Encoding, padded, warn_of_truncation
from mlxbert.tokenization.tokenizer import Tokenizer, check_texts

# Texts are tokenized and sorted in parts of this size, so that the token ids of millions of texts fit in memory.
_BLOCK = 8192
# Tokens that are computed at the same time, as many as those of 32 texts of 512: they bound the memory of long texts.
# Every thread has one text at least, so with many threads of very long texts there are more.
_TOKENS = 16384
# A batch of fewer tokens takes longer on a thread of its own than in another batch.
_LEAST_TOKENS = 64
# Of one of the square products. A smaller one takes longer on two threads of OpenBLAS than on one.
_LEAST_MULTIPLICATIONS = 4_000_000


class SentenceEncoderWarning(MLXBertWarning):
    """The checkpoint does not say how to compute its embeddings."""


class SentenceEncoder:
    """Sentence embeddings, equal to sentence-transformers' for the same checkpoint.

    Attributes:
        core: the encoder.
        tokenizer: its tokenizer.
        plan: pooling and the steps after it.
        max_length: texts are cut to this many tokens; also sentence-transformers' name for it, `max_seq_length`.
        dimension: width of an embedding.
    """

    # Setting an unknown attribute, such as sentence-transformers' `truncate_dim`, is an error.
    __slots__ = ("core", "dimension", "max_length", "plan", "tokenizer")

    def __init__(self, core: Encoder, tokenizer: Tokenizer, plan: SentencePlan):
        self.core = core
        self.tokenizer = tokenizer.lowercased() if plan.lower_case else tokenizer
        self.plan = plan
        # As in sentence-transformers, max_seq_length replaces the tokenizer's own limit.
        wanted = plan.max_length if plan.max_length is not None else tokenizer.max_length
        self.max_length = core.config.max_length if wanted is None else min(wanted, core.config.longest_input)
        self.dimension = core.config.hidden_size * len(plan.pooling)
        for step in plan.steps:
            if step.in_features is not None and step.in_features != self.dimension:
                raise SentenceModuleError(
                    f"modules.json: {type(step).__name__} takes {step.in_features} features, and is given "
                    f"{self.dimension}"
                )
            self.dimension = step.out_features or self.dimension
        states = core.num_layers + 1
        if plan.mix is not None and plan.mix.start + plan.mix.count != states:
            raise SentenceModuleError(
                f"modules.json: WeightedLayerPooling is made for {plan.mix.start + plan.mix.count} hidden states, and "
                f"this model has {states}"
            )
        if plan.truncate_dim is not None:
            self.dimension = min(self.dimension, plan.truncate_dim)

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | Path, *, revision: str | None = None, pooling: str | None = None
    ) -> SentenceEncoder:
        """Load a converted checkpoint.

        Args:
            path_or_hub_id: a converted directory, or the id of a converted repository on the Hub.
            revision: a branch, tag or commit of that repository.
            pooling: a strategy of `mlxbert.pooling`, for a checkpoint without `modules.json`.

        Raises:
            CheckpointError: never converted (the message has the command to run), or damaged.
            SentenceModuleError: a module or a setting that is not known here.
            TokenizerError: its tokenizer files cannot be used.

        Warns:
            SentenceEncoderWarning: there is no `modules.json` and `pooling` is not given: mean pooling, as
                sentence-transformers does.
        """
        if pooling is not None and pooling not in STRATEGIES:
            raise PoolingError(f"pooling {pooling!r} is unknown; known: {', '.join(STRATEGIES)}")
        directory = resolve(path_or_hub_id, revision)
        plan = read_sentence_plan(directory)
        if plan is not None and pooling is not None:
            raise SentenceModuleError(
                f"{directory}: modules.json says how to pool; fix: leave pooling={pooling!r} out"
            )
        if plan is None:
            plan = SentencePlan() if pooling is None else SentencePlan(pooling=(pooling,))
            if pooling is None:
                warnings.warn(
                    f"{path_or_hub_id} has no modules.json, so it is no sentence-transformers model: mean pooling is "
                    "used, as sentence-transformers does; fix: convert the sentence-transformers directory, or, in "
                    "Python, SentenceEncoder.from_pretrained(…, pooling='mean')",
                    SentenceEncoderWarning,
                    stacklevel=2,
                )
        core, tokenizer = load(directory / plan.transformer)
        return cls(core, tokenizer, plan)

    @property
    def max_seq_length(self) -> int:
        """The number of tokens that texts are cut to, special ones included. May be set; None: the model's positions.

        Raises:
            TokenizerError: it leaves no room for text, or is more than the model has positions.
        """
        return self.max_length

    @max_seq_length.setter
    def max_seq_length(self, tokens: int | None) -> None:
        positions = self.core.config.max_length
        self.max_length = self.tokenizer.checked_limit(tokens) or positions if tokens is not None else positions

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int = 32,
        normalize: bool | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        show_progress: bool = False,
        precision: str = "float32",
        ranges: np.ndarray | None = None,
        calibration: np.ndarray | None = None,
    ) -> np.ndarray:
        """Embed texts, in their order; batches hold texts of similar lengths.

        Args:
            texts: one text or several.
            batch_size: the most texts of a batch; long texts make smaller ones.
            normalize: True: scale to length 1; False: skip the checkpoint's Normalize; None: as the checkpoint says.
            prompt_name: which of the checkpoint's prompts to put before each text; default: the checkpoint's.
            prompt: a prompt of your own, instead.
            show_progress: a progress bar on standard error.
            precision: "float32", "float16", "int8", "uint8", "binary" or "ubinary" (`mlxbert.encode.precision`).
            ranges: for int8 and uint8, the smallest and the largest value of each dimension: (2, dimension).
            calibration: for int8 and uint8 without `ranges`, embeddings that give them; None: those of `texts`.

        Returns:
            float32, (N, dimension), or what `mlxbert.encode.precision.quantize` returns; for one string a vector.

        Raises:
            TokenizerError: something that is not text (its index is named).
            PrecisionError: an unknown precision, or one that cannot hold these embeddings.
            ValueError: an impossible batch size, or a prompt that the checkpoint does not have.

        Warns:
            TruncationWarning: once, if texts were longer than `max_length`: how many, and the longest.
        """
        check_batches(batch_size, normalize)
        check_precision(precision)
        prompt = self.prompt_text(prompt, prompt_name)
        items = check_texts(texts)
        cut = CutTexts()
        with _progress(len(items), show_progress) as advance:
            out = self.embed(items, prompt, batch_size=batch_size, normalize=normalize, advance=advance, cut=cut)
        if cut.texts:
            cut.warn(len(items), self.max_length, stacklevel=2)
        if precision != "float32":
            out = quantize(out, precision, ranges=ranges, calibration=calibration)
        return out[0] if isinstance(texts, str) else out

    def embed(
        self,
        texts: list[str],
        prompt: str = "",
        *,
        batch_size: int,
        normalize: bool | None,
        advance: Callable[[int], None],
        cut: CutTexts,
    ) -> np.ndarray:
        """Embed checked texts as `encode` does, and count the texts that are cut instead of warning.

        Args:
            texts: N texts.
            prompt: put before each.
            batch_size, normalize: as for `encode`.
            advance: called with the number of texts of each batch that is done.
            cut: counts the texts that are too long.

        Returns:
            float32, (N, dimension).
        """
        skip = self._prompt_tokens(prompt) if prompt and not self.plan.include_prompt else 0
        out = np.empty((len(texts), self.dimension), np.float32)

        def build(batch: _Batch) -> mx.array:
            return self._embed(batch.inputs, skip, normalize)

        def done(batch: _Batch, vectors: mx.array) -> None:
            out[batch.rows] = np.array(vectors)
            advance(len(batch.rows))

        todo = self._batches(texts, prompt, batch_size, cut)
        first_two = [*islice(todo, 2)]
        if len(first_two) == 1:
            with self._blas_threads(first_two[0]):
                done(first_two[0], build(first_two[0]))
        else:
            modules = [module for module in (self.plan.mix, *self.plan.steps) if module is not None]
            mx.eval(self.core.parameters(), [vars(module) for module in modules])  # other threads only read them
            side_by_side(chain(first_two, todo), build, done)
        return out

    def _blas_threads(self, batch: _Batch) -> AbstractContextManager[None]:
        """Let a lone batch have all threads of OpenBLAS, if its products are large enough."""
        multiplications = batch.inputs["input_ids"].size * self.core.config.hidden_size**2
        return one_blas_thread() if multiplications < _LEAST_MULTIPLICATIONS else nullcontext()

    def _batches(self, items: list[str], prompt: str, batch_size: int, cut: CutTexts) -> Iterator[_Batch]:
        """Yield the batches of all texts, and count in `cut` those that are too long.

        A block is tokenized when the first of its batches is taken, while other threads compute the last block's.
        """
        threads = thread_count()
        for start in range(0, len(items), _BLOCK):
            block = [prompt + text for text in items[start : start + _BLOCK]]
            encodings = self.tokenizer.encode(block, max_length=self.max_length, offsets=False)
            cut.add(encodings)
            lengths = [len(encoding) for encoding in encodings]
            for rows, length in batches(lengths, batch_size, self.max_length, threads=threads):
                yield _Batch(
                    start + rows,
                    padded(
                        [encodings[i].ids for i in rows],
                        [encodings[i].type_ids for i in rows],
                        length=length,
                        pad_id=self.tokenizer.pad_token_id or 0,
                    ),
                )
            del encodings, block  # before the next block is tokenized: else both are in memory

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the similarity of each vector of `a` with each of `b`, by the checkpoint's measure: (N, M) float32.

        "euclidean" and "manhattan" are negative distances, so that more is closer.
        """
        x, y = (np.atleast_2d(np.asarray(v, np.float32)) for v in (a, b))
        if self.plan.similarity in ("cosine", "dot"):
            if self.plan.similarity == "cosine":
                x, y = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (x, y))
            return x @ y.T
        # One row at a time: the differences of all pairs at once would be N·M·D numbers.
        order = 2 if self.plan.similarity == "euclidean" else 1
        rows = [-np.linalg.norm(row - y, ord=order, axis=1) for row in x]
        return np.stack(rows) if rows else np.empty((0, len(y)), np.float32)

    def prompt_text(self, prompt: str | None, name: str | None) -> str:
        """Return the prompt that is put before each text: `prompt`, or the checkpoint's of that name.

        Raises:
            ValueError: both are given, or the checkpoint has no prompt of that name.
        """
        if prompt is not None and name is not None:
            raise ValueError("give prompt or prompt_name, not both")
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"prompt must be a text, not {prompt!r}")
        name = name if name is not None else self.plan.default_prompt
        if prompt is not None or name is None:
            return prompt or ""
        prompts = self.plan.prompts
        if name not in prompts:
            raise ValueError(f"prompt_name {name!r} is not one of {', '.join(sorted(prompts)) or 'none'}")
        return prompts[name]

    def _prompt_tokens(self, prompt: str) -> int:
        """Return the number of leading tokens of the prompt, with [CLS]."""
        ids = self.tokenizer.encode(prompt, max_length=self.max_length)[0].ids
        return len(ids) - (ids[-1] in self.tokenizer.special_ids)

    def _embed(self, inputs: dict[str, mx.array], skip: int, normalize: bool | None) -> mx.array:
        """Map (B, L) ids to (B, dimension) float32."""
        mask = inputs["attention_mask"]
        mix = self.plan.mix
        output = self.core(inputs["input_ids"], mask, inputs["token_type_ids"], output_hidden_states=mix is not None)
        if mix is not None and output.hidden_states is not None:
            output = replace(output, last_hidden_state=mix(output.hidden_states))
        vectors = [_pool(strategy, output, mask, skip) for strategy in self.plan.pooling]
        x = mx.concatenate([vector.astype(mx.float32) for vector in vectors], axis=-1)
        for step in self.plan.steps:
            if normalize is not False or not isinstance(step, Normalize):
                x = step(x)
        x = x[:, : self.dimension]
        return Normalize()(x) if normalize else x


def _pool(strategy: str, output: BertOutput, mask: mx.array, skip: int) -> mx.array:
    if not skip:
        return output.pool(strategy, mask)
    mask = mx.where(mx.arange(mask.shape[1]) < skip, 0, mask)  # (B, L)
    if strategy == "cls":
        # If the prompt fills the whole length, sentence-transformers takes the very first token.
        first = mx.argmax(mask, axis=1)[:, None, None]  # (B, 1, 1)
        return mx.take_along_axis(output.last_hidden_state, first, axis=1)[:, 0]
    return pool(strategy, output.last_hidden_state, mask)


@dataclass(frozen=True)
class _Batch:
    """Texts that go through the encoder at once: their numbers, and the arguments of the encoder."""

    rows: np.ndarray
    inputs: dict[str, mx.array]


@dataclass
class CutTexts:
    """The texts that were cut: their number, the longest text's tokens, and whether it may have more."""

    texts: int = 0
    longest: int = 0
    uncounted: bool = False

    def add(self, encodings: Sequence[Encoding]) -> None:
        """Count those of some texts."""
        self.texts += sum(e.n_truncated > 0 for e in encodings)
        self.longest = max([self.longest, *(len(e) + e.n_truncated for e in encodings)])
        self.uncounted = self.uncounted or any(e.uncounted for e in encodings)

    def warn(self, texts: int, limit: int, *, stacklevel: int) -> None:
        """Warn of them; `texts` is the number of all texts, `limit` that of the tokens that fit."""
        warn_of_truncation(self.texts, texts, self.longest, limit, stacklevel=stacklevel + 1, at_least=self.uncounted)


def check_batches(batch_size: int, normalize: bool | None) -> None:
    """Refuse an impossible batch size, or a `normalize` that is none.

    Raises:
        ValueError: the message has the value.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive whole number, not {batch_size!r}")
    if normalize is not None and not isinstance(normalize, bool):
        raise ValueError(f"normalize must be True, False or None, not {normalize!r}")


def batches(
    lengths: Sequence[int], batch_size: int, limit: int, *, threads: int = 1
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the indices of the texts of each batch and the length to pad it to, longest texts first.

    Batches of short texts are limited by `batch_size`, those of long ones by their tokens. Lengths are rounded up so
    that few shapes occur: by 3 % at most, or until the batch's tokens are a multiple of 4. A text no longer than half
    of a batch's padded length waits for the next batch: less than half of a batch is padding.

    Args:
        lengths: tokens of each text.
        batch_size: the most texts of a batch.
        limit: the most tokens of a text.
        threads: so many batches are computed at the same time; each gets its share of a small number of texts.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    share = -(-len(order) // max(1, min(threads, sum(lengths) // _LEAST_TOKENS)))
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        rows = max(1, min(batch_size, share, _TOKENS // threads // max(longest, 1), len(order) - start))
        # The fewer texts, the more it matters that OpenBLAS multiplies multiples of 4 tokens at once.
        step = max(1 << max(longest.bit_length() - 6, 0), 4 // gcd(4, rows))
        padded_length = min(-(-longest // step) * step, limit)
        stop = start + 1
        while (
            stop < start + rows
            # At 16 tokens and below, another call costs more than the padding.
            and (padded_length <= 16 or 2 * lengths[order[stop]] > padded_length)
        ):
            stop += 1
        yield order[start:stop], padded_length
        start = stop


@contextmanager
def _progress(total: int, show: bool) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("encoding", total=total)
        yield lambda done: bar.advance(task, done)
