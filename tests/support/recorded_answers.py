"""What the last question-answering pipeline of transformers (4.57) answers, recorded in `data/answers_4_57.json`.

transformers 5 has no such pipeline. To record again, install the old release beside the project's packages:

    pip install --no-deps --target old "transformers==4.57.6" "huggingface_hub<1" "tokenizers<0.23"
    PYTHONPATH=old:. python -m tests.support.recorded_answers

The model's weights are drawn by NumPy, so that the test builds the same ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.support.tiny import write_vocab

FILE = Path(__file__).parent / "data" / "answers_4_57.json"
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForQuestionAnswering"],
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 160,
    "type_vocab_size": 2,
}


def write_checkpoint(directory: Path) -> Path:
    """Write a random `BertForQuestionAnswering` with a vocabulary of letters: long words have many tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(457)
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (CONFIG["vocab_size"], width),
        "bert.embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], width),
        "bert.embeddings.token_type_embeddings.weight": (CONFIG["type_vocab_size"], width),
        "bert.embeddings.LayerNorm.weight": (width,),
        "bert.embeddings.LayerNorm.bias": (width,),
        "qa_outputs.weight": (2, width),
        "qa_outputs.bias": (2,),
    }
    linears = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
    }
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{i}."
        for name, shape in linears.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}{norm}.weight": (width,), f"{layer}{norm}.bias": (width,)}
    tensors = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) == 1 or "embeddings" in name else shape[1] ** -0.5
        centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        tensors[name] = (centre + scale * rng.standard_normal(shape)).astype(np.float32)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    write_vocab(directory / "vocab.txt", CONFIG["vocab_size"])
    return directory


def calls() -> list[dict[str, Any]]:
    """56 calls of the pipeline: contexts of 4 to 29 words in one window, and 12 longer ones in several."""
    rng = np.random.default_rng(1)
    made = []
    for i in range(56):
        words = int(rng.integers(4, 30)) if i < 44 else 120
        text = " ".join(_word(rng) for _ in range(words))
        options: dict[str, Any] = {"top_k": (1, 1, 3, 8)[i % 4], "max_answer_len": (15, 4)[i % 3 == 0]}
        if i >= 44:
            options |= {"max_seq_len": 80, "doc_stride": 0}  # where windows overlap, ours differs, as documented
        question = " ".join(_word(rng) for _ in range(1 + i % 5)) + "?"
        made.append({"question": question, "context": text, "max_seq_len": 160, **options})
    return made


def _word(rng: np.random.Generator) -> str:
    return "".join(chr(97 + int(letter)) for letter in rng.integers(0, 26, int(rng.integers(1, 7))))


def main() -> None:
    """Record."""
    import tempfile

    import transformers

    with tempfile.TemporaryDirectory() as directory:
        source = str(write_checkpoint(Path(directory)))
        pipeline = transformers.pipeline("question-answering", model=source, tokenizer=source, device="cpu")
        answers = []
        for call in calls():
            found = pipeline(**call)
            answers.append(found if isinstance(found, list) else [found])
    FILE.write_text(
        json.dumps(
            {"transformers": transformers.__version__, "answers": answers},
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
