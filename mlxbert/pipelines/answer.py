"""`answer`: the span of a context that answers a question, by an extractive question-answering head.

transformers 5 dropped its "question-answering" pipeline; this follows the last one (4.57,
`pipelines/question_answering.py`) in keys, defaults and scores, with three differences. Only spans that can be an
answer are ever returned (the old one, asked for more than there are, filled up with spans that end before they begin).
A span that two windows see has the better of its two scores (the old one added them up, to more than 1). A word that a
window cuts in two is returned whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxbert.pipelines.batches import (
    PipelineError,
    check_top_k,
    cut_out,
    padded_batches,
    require_class,
    to_numpy,
    windows,
    without_limit,
)
from mlxbert.pipelines.word_groups import CONTINUES
from mlxbert.pretrained.model import PretrainedBert
from mlxbert.tokenization import Tokenizer
from mlxbert.tokenization.encoding import Encoding

# transformers 4.57 takes 2 · top_k + 10 candidates: several of them are one answer when they are made whole words.
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
    """The likeliest answers to a question in a context, whole words of it.

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
        list of them, best first, where there is more than one.

    Raises:
        PipelineError: the model does not answer questions, or an argument leaves no room for an answer.
        TokenizerError: something that is not text.
    """
    require_class(model, "answer", ("BertForQuestionAnswering",))
    check_top_k(top_k)
    if isinstance(max_answer_len, bool) or not isinstance(max_answer_len, int) or max_answer_len < 1:
        raise PipelineError(f"max_answer_len must be a positive whole number, not {max_answer_len!r}")
    if isinstance(question, str) and not question.strip():
        raise PipelineError("answer: the question is empty; fix: ask something")
    limit = _window_length(tokenizer, max_seq_len)
    (row,) = without_limit(tokenizer).encode([question], [context])
    body = [i for i, kind in enumerate(row.type_ids) if kind == 1 and not row.special_tokens_mask[i]]
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
    words = _words(tokenizer, row, body)
    answers: dict[str, Answer] = {}
    null_score = 1.0
    rows = [cut_out(row, body, start, stop) for start, stop in ranges]
    firsts = iter(ranges)
    for part, batch in padded_batches(rows, tokenizer.pad_token_id, batch_size):
        output = model(**batch)
        start_logits, end_logits = to_numpy(output.start_logits), to_numpy(output.end_logits)  # (B, L)
        for i in range(len(part)):
            first, stop = next(firsts)
            # Everything before the context is in every window, so the context begins at the same place.
            columns = [0, *range(body[0], body[0] + stop - first)]
            starts, ends = (_probabilities(logits[i, columns]) for logits in (start_logits, end_logits))
            null_score = min(null_score, float(starts[0] * ends[0]))
            own: dict[str, Answer] = {}
            for s, e, score in best_spans(starts[1:], ends[1:], 2 * top_k + _SPARE, max_answer_len):
                begin, end = words[first + s][0], words[first + e][1]
                found = own.setdefault(
                    context[begin:end].lower(),
                    {"score": 0.0, "start": begin, "end": end, "answer": context[begin:end]},
                )
                found["score"] += score
            for text, found in own.items():
                if text not in answers or found["score"] > answers[text]["score"]:
                    answers[text] = found
    ranked = list(answers.values())
    if handle_impossible_answer:
        ranked.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
    ranked = sorted(ranked, key=lambda one: one["score"], reverse=True)[:top_k]
    return ranked[0] if len(ranked) == 1 else ranked


def best_spans(starts: np.ndarray, ends: np.ndarray, top_k: int, longest: int) -> list[tuple[int, int, float]]:
    """The `top_k` spans (first token, last token, score) with the largest product of probabilities, best first.

    Args:
        starts, ends: (N,), each token's probability to begin and to end the answer.
        top_k: how many; fewer where there are fewer.
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
    if isinstance(max_seq_len, bool) or not isinstance(max_seq_len, int) or max_seq_len < 1:
        raise PipelineError(f"max_seq_len must be a positive whole number, not {max_seq_len!r}")
    if tokenizer.model_limit is not None and max_seq_len > tokenizer.model_limit:
        raise PipelineError(
            f"max_seq_len={max_seq_len} is more than the model's {tokenizer.model_limit} positions; fix: lower it"
        )
    return max_seq_len


def _words(tokenizer: Tokenizer, row: Encoding, body: list[int]) -> list[tuple[int, int]]:
    """For each token of the context the characters of the whole word that it is in."""
    first: list[int] = []
    for n, i in enumerate(body):
        continues = (tokenizer.id_to_token(row.ids[i]) or "").startswith(CONTINUES)
        first.append(first[-1] if n and continues else n)
    last = {start: n for n, start in enumerate(first)}
    return [(row.offsets[body[start]][0], row.offsets[body[last[start]]][1]) for start in first]


def _probabilities(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return exponentials / exponentials.sum()
