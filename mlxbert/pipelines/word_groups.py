"""Word pieces with their scores to words and entities, as transformers' token-classification pipeline joins them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import decoders

STRATEGIES = ("none", "simple", "first", "average", "max")

CONTINUES = "##"
"""What a WordPiece token begins with that goes on with a word."""

_DECODER = decoders.WordPiece(prefix=CONTINUES)


@dataclass(frozen=True)
class Piece:
    """One token of a text.

    Attributes:
        token: as in the vocabulary; the text itself for one that the vocabulary does not have.
        scores: (K,), the probability of each label.
        start, end: its characters in the text.
        index: its position in the encoded text.
        continues: whether it goes on with the word of the piece before it.
    """

    token: str
    scores: np.ndarray
    start: int
    end: int
    index: int
    continues: bool


def aggregate(pieces: Sequence[Piece], strategy: str, id2label: Mapping[int, str]) -> list[dict[str, Any]]:
    """Entities as the pipeline returns them, for one of `STRATEGIES`."""
    if strategy in ("none", "simple"):
        entities = [
            _entity(p.scores, id2label) | {"index": p.index, "word": p.token, "start": p.start, "end": p.end}
            for p in pieces
        ]
    else:
        entities = [_word(word, strategy, id2label) for word in _words(pieces)]
    return entities if strategy == "none" else [_joined(group) for group in _groups(entities)]


def without_overlaps(entities: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of entities that windows over one text saw twice, the longer; of equally long ones, the more probable."""
    kept: list[dict[str, Any]] = []
    for entity in sorted(entities, key=lambda one: one["start"]):
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


def _word(pieces: Sequence[Piece], strategy: str, id2label: Mapping[int, str]) -> dict[str, Any]:
    if strategy == "first":
        scores = pieces[0].scores
    elif strategy == "max":
        scores = max(pieces, key=lambda piece: piece.scores.max()).scores
    else:
        scores = np.mean([piece.scores for piece in pieces], axis=0)
    word = _DECODER.decode([piece.token for piece in pieces])
    return _entity(scores, id2label) | {"word": word, "start": pieces[0].start, "end": pieces[-1].end}


def _groups(entities: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Neighbours of one label; a B- label begins another entity, any other continues one of its kind."""
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


def _joined(entities: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        # transformers takes off whatever stands before a hyphen here, "E-" and "S-" of other schemes included.
        "entity_group": entities[0]["entity"].split("-", 1)[-1],
        "score": float(np.mean([entity["score"] for entity in entities])),
        "word": _DECODER.decode([entity["word"] for entity in entities]),
        "start": entities[0]["start"],
        "end": entities[-1]["end"],
    }
