"""The facts behind the reviewed cards in `model_cards/`; `python -m tests.support.card_samples` renders them anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from converter.card.card import LOAD, LOAD_WITH_HEAD, SENTENCES, TRAINED, CardFacts, Scores, Usage, render_card
from converter.card.loaders import Trait, readings
from converter.card.source_card import SourceCard
from converter.parity.report import OWN_HEAD, PRECISION, SENTENCE, TRAINED_HEAD, ParityReport, Part

FOLDER = Path(__file__).parents[2] / "model_cards"
DATA = Path(__file__).parent / "data"
REVISION = "0123456789abcdef0123456789abcdef01234567"

# The real conversion of all-MiniLM-L6-v2, with every number that was measured.
MINILM_PARITY = ParityReport.from_value(json.loads((DATA / "minilm_parity.json").read_text("utf-8")))


def parity(
    source: str, *more: Part, revision: str | None = None, limit: float = 1e-6, error: float = 0.0
) -> ParityReport:
    """Those numbers as another model's, its precision gate with this limit and this error, more parts compared."""
    points = [
        replace(point, limit=limit, max_rel=error) if point.gate == PRECISION else point
        for point in MINILM_PARITY.points
        if point.name != SENTENCE
    ]
    provenance = replace(MINILM_PARITY.provenance, source=source, revision=revision)
    scope = (*MINILM_PARITY.scope[:2], *more)
    return replace(MINILM_PARITY, points=tuple(points), provenance=provenance, scope=scope)


HEAD = Part(OWN_HEAD, True, "its logits, as BertForPreTraining")
MINILM = CardFacts(
    name="all-MiniLM-L6-v2-fp32",
    model_type="bert",
    place="mlx-community/all-MiniLM-L6-v2-fp32",
    source="all-MiniLM-L6-v2",
    revision=None,
    original_class="BertModel",
    dtype="float32",
    parameters=22_713_216,
    has_pooler=True,
    converter_version="0.1.0",
    dropped={"embeddings.position_ids": "a constant: 0, 1, 2, …"},
    parity=MINILM_PARITY,
    source_card=SourceCard(("apache-2.0",), ("en",), ("s2orc", "ms_marco", "embedding-data/QQP")),
    weights=MINILM_PARITY.provenance.weights,
    max_length=256,
    sentence_modules=True,
    readings=readings({Trait.SENTENCE}, "bert"),
    usage=Usage((LOAD, SENTENCES)),
)


def layer(path: str, bits: int, error: float, size: int) -> dict[str, Any]:
    return {
        "path": path,
        "mode": "affine",
        "bits": bits,
        "group_size": 64,
        "bytes": size,
        "error": error,
        "limit": 0.16,
    }


QUANTIZATION: dict[str, Any] = {
    "recipe": "mixed",
    "calibrated": True,
    "bytes": 14_182_400,
    "parameters": 22_713_216,
    "bits_per_weight": 4.995,
    "layers": [
        layer("embeddings.word_embeddings", 4, 9.1e-2, 6_593_184),
        layer("encoder.layer.0.attention.self.query", 5, 3.4e-2, 96_768),
        layer("encoder.layer.0.intermediate.dense", 5, 4.4e-2, 387_072),
        layer("pooler.dense", 8, 4.1e-3, 156_672),
    ],
    "skipped": [{"path": "embeddings.token_type_embeddings", "reason": "2 rows: nothing to gain"}],
    "kept": {"name": "pooler.dense.bias", "error": 2e-4, "limit": 1e-3},
    "limits": {"name": "mixed", "cosine_mean": 0.993, "cosine_min": 0.988, "rank_correlation": 0.98},
    "quality": [
        {
            "text": "held-out encyclopedia",
            "sentences": 48,
            "cosine_mean": 0.9944,
            "cosine_min": 0.9912,
            "rank_correlation": 0.9961,
            "logit_agreement": None,
            "logit_kl": None,
        }
    ],
}
# The real conversion with `--quantize 4bit`, that is, rounded and not calibrated, with every number that was measured.
FOUR_BIT_PARITY = ParityReport.from_value(json.loads((DATA / "minilm_4bit_parity.json").read_text("utf-8")))
QUANTIZED = replace(
    MINILM,
    name="all-MiniLM-L6-v2-4bit",
    place="mlx-community/all-MiniLM-L6-v2-4bit",
    dtype="float16",
    parity=FOUR_BIT_PARITY,
    quantized=True,
    quantization=FOUR_BIT_PARITY.quantization,
    readings=readings({Trait.SENTENCE, Trait.QUANTIZED}, "bert"),
    weights=FOUR_BIT_PARITY.provenance.weights,
)
WITH_HEAD = replace(
    MINILM,
    name="bert-base-uncased-bf16",
    place="mlx-community/bert-base-uncased-bf16",
    source="google-bert/bert-base-uncased",
    revision=REVISION,
    parity=parity("google-bert/bert-base-uncased", HEAD, revision=REVISION, limit=2.5e-1, error=3.8e-2),
    original_class="BertForPreTraining",
    dtype="bfloat16",
    parameters=109_482_240,
    max_length=512,
    heads=tuple(
        f"cls.{name}" for name in ("predictions.bias", "predictions.transform.dense.weight", "seq_relationship.bias")
    ),
    source_card=SourceCard(("apache-2.0",), ("en",), ("bookcorpus", "wikipedia")),
    weights={"heads.safetensors": "12" * 32, "model.safetensors": "cd" * 32},
    sentence_modules=False,
    usage=Usage((LOAD, LOAD_WITH_HEAD)),
    dropped={"embeddings.position_ids": "a constant: 0, 1, 2, …"},
    readings=readings({Trait.HEAD, Trait.BESIDE}, "bert"),
)
RERANKER = replace(
    WITH_HEAD,
    name="ms-marco-reranker-fp32",
    place="alice/ms-marco-reranker-fp32",
    source="team/ms-marco-reranker",
    parity=parity("team/ms-marco-reranker", HEAD, revision=REVISION),
    original_class="BertForSequenceClassification",
    dtype="float32",
    heads=("classifier.weight", "classifier.bias"),
    full_layout=True,
    source_card=SourceCard(
        ("other",), ("no", "en"), ("ms_marco",), license_name="research-only-1.0", license_link="LICENSE"
    ),
    license_files=("LICENSE",),
    weights={"model.safetensors": "ab" * 32},
    readings=readings({Trait.HEAD, Trait.FULL, Trait.FULL_UNKNOWN, Trait.RERANKER}, "bert"),
)
EXPORTED = parity("tweets", Part(TRAINED_HEAD, True, "its logits, as BertModel with a binary head"))
FINE_TUNED = replace(
    MINILM,
    name="disaster-tweets-minilm",
    place="alice/disaster-tweets-minilm",
    heads=("head.weight", "head.bias"),
    max_length=512,
    trained_head="binary",
    classes=("0", "1"),
    scores=Scores(
        task="binary",
        metric="f1",
        pooled={"f1": 0.8012, "accuracy": 0.8351, "roc_auc": 0.8967},
        folds=5,
        data_rows=7613,
        models=5,
        own={"f1": 0.8087, "accuracy": 0.8411, "roc_auc": 0.9002},
        own_rows=1523,
    ),
    parity=replace(
        EXPORTED, provenance=replace(EXPORTED.provenance, source="tweets/seed0-fold0", revision=None, own_export=True)
    ),
    source_card=SourceCard(),
    weights={"heads.safetensors": "34" * 32, "model.safetensors": "ef" * 32},
    sentence_modules=False,
    usage=Usage((LOAD, TRAINED)),
    dropped={},
    readings=readings((), "bert"),
)
SAMPLES = {facts.name: facts for facts in (MINILM, QUANTIZED, WITH_HEAD, RERANKER, FINE_TUNED)}


def main() -> None:
    """Write the rendered cards; whoever does so reads the difference."""
    for name, facts in SAMPLES.items():
        (FOLDER / f"{name}.md").write_text(render_card(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
