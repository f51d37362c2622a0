"""Pipelines whose answers are spans of a text.

Word pieces with scores are joined to words and entities as in transformers' token-classification pipeline.

`tag`: labels of words, by a token-classification head; names, places, parts of speech.

`answer`: the span of a context that answers a question, by an extractive question-answering head.

transformers 5 dropped its "question-answering" pipeline; this follows the last one (4.57,
`pipelines/question_answering.py`) in keys, defaults and scores, with three differences. Only possible
answers are returned (if there were too few, the old one added spans that end before they begin). A span in two windows
has the better of its two scores (the old one summed them, to more than 1). A word that a window cuts
is returned whole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.arrays import softmax
from mlxbert.models.architecture import HeadKind
from mlxbert.pipelines.texts import (
    PipelineError,
    check_positive,
    cut_out,
    padded_batches,
    require_kind,
    to_numpy,
    warn_of_cut,
    windows,
    without_limit,
)
from mlxbert.pretrained import PretrainedBert
from mlxbert.tokenization.encoding import Encoding
from mlxbert.tokenization.tokenizer import Tokenizer, check_texts

STRATEGIES = ("none", "simple", "first", "average", "max")

Join = Callable[[Sequence[str]], str]
"""Tokens to text: `Tokenizer.join`."""


@dataclass(frozen=True)
class Piece:
    """One token of a text.

    Attributes:
        token: as in the vocabulary; the text itself for one that the vocabulary does not have.
        scores: (K,), the probability of each label.
        start, end: its characters in the text.
        index: its position in the encoded text.
        continues: whether it continues the word of the piece before it.
    """

    token: str
    scores: np.ndarray
    start: int
    end: int
    index: int
    continues: bool


def aggregate(pieces: Sequence[Piece], strategy: str, id2label: Mapping[int, str], join: Join) -> list[dict[str, Any]]:
    """Return entities as transformers' pipeline does, for one of `STRATEGIES`; `join` turns tokens into text."""
    if strategy in ("none", "simple"):
        entities = [
            _entity(p.scores, id2label) | {"index": p.index, "word": p.token, "start": p.start, "end": p.end}
            for p in pieces
        ]
    else:
        entities = [_word(word, strategy, id2label, join) for word in _words(pieces)]
    return entities if strategy == "none" else [_joined(group, join) for group in _groups(entities)]


def without_overlaps(entities: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the longer of two overlapping entities from different windows; of equally long ones, the more probable."""
    kept: list[dict[str, Any]] = []
    for entity in sorted(entities, key=lambda e: e["start"]):
        if kept and entity["start"] < kept[-1]["end"]:
            if _weight(entity) > _weight(kept[-1]):
                kept[-1] = entity
        else:
            kept.append(entity)
    return kept


def _weight(entity: Mapping[str, Any]) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _entity(scores: np.ndarray, id2label: Mapping[int, str]) -> dict[str, Any]:
    best = int(scores.argmax())
    return {"entity": id2label[best], "score": float(scores[best])}


def _words(pieces: Sequence[Piece]) -> list[list[Piece]]:
    words: list[list[Piece]] = []
    for piece in pieces:
        if words and piece.continues:
            words[-1].append(piece)
        else:
            words.append([piece])
    return words


def _word(pieces: Sequence[Piece], strategy: str, id2label: Mapping[int, str], join: Join) -> dict[str, Any]:
    if strategy == "first":
        scores = pieces[0].scores
    elif strategy == "max":
        scores = max(pieces, key=lambda piece: piece.scores.max()).scores
    else:
        scores = np.mean([piece.scores for piece in pieces], axis=0)
    word = join([piece.token for piece in pieces])
    return _entity(scores, id2label) | {"word": word, "start": pieces[0].start, "end": pieces[-1].end}


def _groups(entities: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return groups of neighbors with one label; a B- label begins another entity, others continue their kind."""
    groups: list[list[dict[str, Any]]] = []
    for entity in entities:
        begins = entity["entity"].startswith("B-")
        if groups and not begins and _kind(entity["entity"]) == _kind(groups[-1][-1]["entity"]):
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return groups


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _joined(entities: Sequence[dict[str, Any]], join: Join) -> dict[str, Any]:
    return {
        # Like transformers, remove any prefix before a hyphen, also "E-" and "S-" of other schemes.
        "entity_group": entities[0]["entity"].split("-", 1)[-1],
        "score": float(np.mean([entity["score"] for entity in entities])),
        "word": join([entity["word"] for entity in entities]),
        "start": entities[0]["start"],
        "end": entities[-1]["end"],
    }


Entities = list[dict[str, Any]]


def tag(
    model: PretrainedBert,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    aggregation_strategy: str = "first",
    *,
    ignore_labels: Collection[str] | None = ("O",),
    stride: int | None = None,
    batch_size: int = 16,
) -> Entities | list[Entities]:
    """Return the labelled words of texts; transformers' pipeline "token-classification".

    Words are those of the tokenizer's pre-tokenizer, and their later pieces begin with "##". If the tokenizer does not
    mark pieces, words end at blanks.

    Args:
        model, tokenizer: from `mlxbert.load_with_head`.
        texts: one text or several.
        aggregation_strategy: "none": every word piece by itself. The others join neighbours of one label (B- begins
            another entity): "simple" pieces as they are; the next three whole words, labelled by their "first" piece,
            by the "average" of their pieces' probabilities, or by the piece with the highest probability ("max").
        ignore_labels: labels left out; one string is one label; None: "O", as in transformers.
        stride: tokens that windows over a text longer than the model overlap by; None: cut it, with a warning.
        batch_size: texts computed at once.

    Returns:
        For each text a list of dicts in the order of the text: `entity` and `index` (of the token) with "none",
        `entity_group` otherwise, with `score`, `word`, `start` and `end` (characters). For one string its list alone.

    Raises:
        PipelineError: the model is no token classifier, or an argument is not understood.
        TokenizerError: something that is not text.

    Warns:
        TruncationWarning: without a stride, texts were cut to the model's longest input.
    """
    require_kind(model, "tag", HeadKind.TOKEN)
    if aggregation_strategy not in STRATEGIES:
        raise PipelineError(
            f"tag: aggregation_strategy {aggregation_strategy!r} is not known; known are {', '.join(STRATEGIES)}"
        )
    if stride is not None and aggregation_strategy == "none":
        raise PipelineError('tag: with a stride, pieces seen twice are joined; fix: aggregation_strategy="simple"')
    ignored = (
        {ignore_labels} if isinstance(ignore_labels, str) else {"O"} if ignore_labels is None else set(ignore_labels)
    )
    items = check_texts(texts)
    if stride is None:
        rows = tokenizer.encode(items)
        warn_of_cut(rows, tokenizer, stacklevel=2)
        owners = list(range(len(rows)))
    else:
        parts = [_in_windows(row, tokenizer, stride) for row in without_limit(tokenizer).encode(items)]
        rows = [row for part in parts for row in part]
        owners = [i for i, part in enumerate(parts) for _ in part]
    found: list[Entities] = [[]] * len(rows)
    for numbers, batch in padded_batches(rows, tokenizer.pad_token_id, batch_size):
        scores = softmax(to_numpy(model(**batch).logits))  # (B, L, K)
        for number, row_scores in zip(numbers, scores, strict=True):
            pieces = _pieces(tokenizer, items[owners[number]], rows[number], row_scores)
            entities = aggregate(pieces, aggregation_strategy, model.labels.id2label, tokenizer.join)
            found[number] = [e for e in entities if e.get("entity", e.get("entity_group")) not in ignored]
    tagged: list[list[Entities]] = [[] for _ in items]
    for owner, entities in zip(owners, found, strict=True):
        tagged[owner].append(entities)
    results = [
        parts[0] if len(parts) == 1 else without_overlaps([e for part in parts for e in part]) for parts in tagged
    ]
    return results[0] if isinstance(texts, str) else results


def _in_windows(row: Encoding, tokenizer: Tokenizer, stride: int) -> list[Encoding]:
    body = [index for index, special in enumerate(row.special_tokens_mask) if not special]
    if tokenizer.max_length is None:
        return [row]
    room = tokenizer.max_length - (len(row) - len(body))
    return [cut_out(row, body, start, stop) for start, stop in windows(len(body), room, stride)]


def _pieces(tokenizer: Tokenizer, text: str, row: Encoding, scores: Any) -> list[Piece]:
    pieces = []
    for index, (token_id, (start, end)) in enumerate(zip(row.ids, row.offsets, strict=True)):
        if row.special_tokens_mask[index]:
            continue
        token = tokenizer.id_to_token(token_id) or ""
        if tokenizer.continuing_prefix:
            continues = token.startswith(tokenizer.continuing_prefix)
        else:  # transformers' rule for tokenizers that do not mark how a word goes on
            continues = start > 0 and " " not in text[start - 1 : start + 1]
        if token_id == tokenizer.unk_token_id:
            token, continues = text[start:end], False
        pieces.append(Piece(token, scores[index], start, end, index, continues))
    return pieces


# transformers 4.57 takes 2 · top_k + 10 candidates, because several may become one answer of whole words.
_SPARE = 10

Answer = dict[str, Any]


def answer(
    model: PretrainedBert,
    tokenizer: Tokenizer,
    question: str,
    context: str,
    top_k: int = 1,
    doc_stride: int | None = None,
    max_answer_len: int = 15,
    *,
    max_seq_len: int | None = None,
    handle_impossible_answer: bool = False,
    batch_size: int = 8,
) -> Answer | list[Answer]:
    """Return the likeliest answers to a question in a context, in whole words.

    Args:
        model, tokenizer: from `mlxbert.load_with_head`.
        question, context: texts; a context of any length is read in windows.
        top_k: how many answers; there may be fewer.
        doc_stride: tokens that two windows overlap by; None: 128, or half a window if that is less.
        max_answer_len: the longest answer, in tokens.
        max_seq_len: tokens of a window, question included; None: 384, or what the model takes if that is less.
        handle_impossible_answer: also offer the empty answer, with the score that the first token has in the window
            that is least sure of it.
        batch_size: windows computed at once.

    Returns:
        A dict with `score` (start's times end's probability in its window, both over the window's context and the
        first token; summed over spans of one text), `start` and `end` (characters of the context) and `answer`; a
        list of them, best first, if there are several.

    Raises:
        PipelineError: the model does not answer questions, or an argument leaves no room for an answer.
        TokenizerError: something that is not text.
    """
    require_kind(model, "answer", HeadKind.SPAN)
    check_positive("top_k", top_k)
    check_positive("max_answer_len", max_answer_len)
    if isinstance(question, str) and not question.strip():
        raise PipelineError("answer: the question is empty; fix: ask something")
    limit = _window_length(tokenizer, max_seq_len)
    (row,) = without_limit(tokenizer).encode([question], [context])
    body = [i for i, text in enumerate(row.sequences) if text == 1]
    if not body:
        raise PipelineError("answer: the context is empty; fix: pass the text to search")
    room = limit - (len(row) - len(body))
    if room < 1:
        raise PipelineError(
            f"answer: the question takes {len(row) - len(body)} tokens of a window of {limit}; "
            "fix: shorten it, or raise max_seq_len"
        )
    stride = min(limit // 2, 128) if doc_stride is None else doc_stride
    if doc_stride is None:
        stride = min(stride, room - 1)  # a long question leaves less room than the default overlap
    ranges = windows(len(body), room, stride, name="doc_stride")
    words = _answer_words(tokenizer, context, row, body)
    answers: dict[str, Answer] = {}
    null_score = 1.0
    rows = [cut_out(row, body, start, stop) for start, stop in ranges]
    for numbers, batch in padded_batches(rows, tokenizer.pad_token_id, batch_size):
        output = model(**batch)
        start_logits, end_logits = to_numpy(output.start_logits), to_numpy(output.end_logits)  # (B, L)
        for i, number in enumerate(numbers):
            first, stop = ranges[number]
            # Each window repeats the tokens before the context, so the context begins at the same place.
            columns = [0, *range(body[0], body[0] + stop - first)]
            starts, ends = (softmax(logits[i, columns].astype(np.float64)) for logits in (start_logits, end_logits))
            null_score = min(null_score, float(starts[0] * ends[0]))
            by_text: dict[str, Answer] = {}
            for s, e, score in best_spans(starts[1:], ends[1:], 2 * top_k + _SPARE, max_answer_len):
                begin, end = words[first + s][0], words[first + e][1]
                best = by_text.setdefault(
                    context[begin:end].lower(),
                    {"score": 0.0, "start": begin, "end": end, "answer": context[begin:end]},
                )
                best["score"] += score
            for text, best in by_text.items():
                if text not in answers or best["score"] > answers[text]["score"]:
                    answers[text] = best
    ranked = list(answers.values())
    if handle_impossible_answer:
        ranked.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
    ranked = sorted(ranked, key=lambda candidate: candidate["score"], reverse=True)[:top_k]
    return ranked[0] if len(ranked) == 1 else ranked


def best_spans(starts: np.ndarray, ends: np.ndarray, top_k: int, longest: int) -> list[tuple[int, int, float]]:
    """Return the `top_k` spans (first token, last token, score) with the largest product of probabilities, best first.

    Args:
        starts, ends: (N,), each token's probability to begin and to end the answer.
        top_k: the largest number of spans.
        longest: the most tokens that a span may have.
    """
    n = len(starts)
    # np.tri(n, k=k)[i, j] is j <= i + k: not before the first token, and not too far after it.
    first, last = np.nonzero(np.tri(n, k=longest - 1, dtype=bool) & ~np.tri(n, k=-1, dtype=bool))
    scores = starts[first] * ends[last]
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [(int(first[i]), int(last[i]), float(scores[i])) for i in best]


def _window_length(tokenizer: Tokenizer, max_seq_len: int | None) -> int:
    if max_seq_len is None:
        return 384 if tokenizer.max_length is None else min(tokenizer.max_length, 384)
    check_positive("max_seq_len", max_seq_len)
    if tokenizer.model_limit is not None and max_seq_len > tokenizer.model_limit:
        raise PipelineError(
            f"max_seq_len={max_seq_len} is more than the model's {tokenizer.model_limit} positions; fix: lower it"
        )
    return max_seq_len


def _answer_words(tokenizer: Tokenizer, context: str, row: Encoding, body: list[int]) -> list[tuple[int, int]]:
    """Return for each token of the context the characters of the whole word that it is in."""
    prefix = tokenizer.continuing_prefix
    starts = [] if prefix else tokenizer.word_starts(context)
    first: list[int] = []
    word = None
    for n, i in enumerate(body):
        if prefix:
            continues = (tokenizer.id_to_token(row.ids[i]) or "").startswith(prefix)
        else:
            before, word = word, bisect_right(starts, row.offsets[i][0])
            continues = word == before
        first.append(first[-1] if n and continues else n)
    last = {start: n for n, start in enumerate(first)}
    return [(row.offsets[body[start]][0], row.offsets[body[last[start]]][1]) for start in first]
