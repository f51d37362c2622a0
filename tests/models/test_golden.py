"""PyTorch's numbers for a small random BERT, recorded, so that parity is tested where torch is not installed.

`python -m tests.models.test_golden` records them again, with the torch and transformers that are installed.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxbert.models.bert import BertConfig, BertCore

FILE = Path(__file__).parents[1] / "support" / "data" / "golden_bert.npz"
SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}
LIMIT = 2e-5


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(FILE, allow_pickle=False) as file:
        return dict(file)


def test_every_hidden_state_and_the_pooler(golden: dict[str, np.ndarray]) -> None:
    core = BertCore(BertConfig.from_hf({"model_type": "bert", **SIZES}))
    weights = {name.removeprefix("weight:"): mx.array(a) for name, a in golden.items() if name.startswith("weight:")}
    core.load_weights(list(weights.items()))
    core.eval()
    keep = golden["attention_mask"] == 1
    output = core(golden["input_ids"], golden["attention_mask"], golden["token_type_ids"], output_hidden_states=True)
    assert output.hidden_states is not None
    assert output.pooler_output is not None
    for index, ours in enumerate(output.hidden_states):
        theirs = golden[f"hidden_state_{index}"]
        assert (np.abs(np.array(ours) - theirs) / np.maximum(1, np.abs(theirs)))[keep].max() < LIMIT, index
    assert np.abs(np.array(output.pooler_output) - golden["pooler_output"]).max() < LIMIT


def record() -> None:
    """Write `FILE` from PyTorch."""
    import torch

    from tests.support.tiny import tiny_model

    model = tiny_model(**SIZES)
    random = np.random.default_rng(0)
    inputs = {
        "input_ids": random.integers(0, 31, (3, 12)),
        "token_type_ids": random.integers(0, 2, (3, 12)),
        "attention_mask": (np.arange(12) < np.array([[12], [7], [1]])).astype(np.int64),
    }
    with torch.no_grad():
        output = model(**{name: torch.tensor(array) for name, array in inputs.items()}, output_hidden_states=True)
    np.savez_compressed(
        FILE,
        **inputs,
        **{f"weight:{name}": tensor.numpy() for name, tensor in model.state_dict().items()},
        **{f"hidden_state_{index}": state.numpy() for index, state in enumerate(output.hidden_states)},
        pooler_output=output.pooler_output.numpy(),
    )


if __name__ == "__main__":
    record()
