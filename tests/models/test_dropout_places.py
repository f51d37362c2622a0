"""Where transformers drops values in training, we drop them, with the probability of the same field.

On both sides dropout multiplies by 1 − p, so that the outputs in training mode can be compared. Every field that is a
probability has a value of its own.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from heads.pretrained import Dropout
from mlxbert.model_arrays import named_parameters
from mlxbert.models.architecture import Architecture, HeadKind, config_from_hf
from mlxbert.models.config_fields import optional_probability, probability
from mlxbert.pretrained import Labels, PretrainedBert
from tests.support.encoder_pairs import filled
from tests.support.tiny import ALL_CLASSES, declared_of, in_config, tiny_model

torch = pytest.importorskip("torch", reason="the reference is transformers")

LIMIT = 2e-5


def probabilities(declared: Architecture) -> dict[str, Any]:
    """Each field that is a probability, with a value of its own."""
    checks = declared.config.CHECKS
    fields = [name for name, check in checks.items() if check in (probability, optional_probability)]
    assert fields
    return in_config(declared, {name: 0.1 + 0.07 * i for i, name in enumerate(fields)})


def with_head(theirs: Any, name: str) -> PretrainedBert:
    """Our model with the same weights."""
    declared = declared_of(name)
    config = theirs.config.to_dict()
    tensors = {key: mx.array(value.detach().numpy()) for key, value in theirs.state_dict().items()}
    rest = {key: value for key, value in tensors.items() if not key.startswith(declared.prefix)}
    labels = Labels.from_hf(config)
    tied = {key for key in theirs.all_tied_weights_keys if key in rest}
    own = [key for key in rest if key not in tied]
    built = declared.heads[name].build(config_from_hf(config), labels.num_labels, own)
    wanted = named_parameters(built)
    built.load_weights([(key, value) for key, value in rest.items() if key in wanted])
    return PretrainedBert(filled(theirs.base_model), built, name, labels)


@pytest.mark.parametrize("name", ALL_CLASSES)
def test_dropout_is_in_the_same_places(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = declared_of(name)
    fields = probabilities(declared)
    theirs = tiny_model(name, attn_implementation="eager", num_hidden_layers=2, **fields)
    is_encoder = name == declared.encoder_class
    ours: Any = filled(theirs) if is_encoder else with_head(theirs, name)
    monkeypatch.setattr(
        torch.nn.functional, "dropout", lambda x, p=0.5, training=True, inplace=False: x * (1 - p) if training else x
    )
    monkeypatch.setattr(Dropout, "__call__", lambda self, x: x * self._p_1 if self.training else x)
    theirs.train()
    ours.train()
    kind = None if is_encoder else declared.heads[name].kind
    ids = np.random.default_rng(0).integers(5, 90, (2, 2, 7) if kind is HeadKind.CHOICE else (3, 7))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids))
        theirs.eval()
        without = theirs(torch.tensor(ids))
    output = ours(ids)
    for field in (field for field in expected if field.endswith(("last_hidden_state", "logits", "pooler_output"))):
        reference = expected[field].numpy()
        scale = np.maximum(1, np.abs(reference))
        assert np.abs(reference - without[field].numpy()).max() > 1e-2
        assert (np.abs(np.array(getattr(output, field)) - reference) / scale).max() < LIMIT, field
