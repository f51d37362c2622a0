"""Builds sources of every form by torch, transformers or by hand; shares nothing with the readers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


def random_model(kind: str = "BertModel", seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A small transformers model, every parameter and buffer of which is random."""
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(transformers.BertConfig(**CONFIG)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.to(dtype)


def write_config(directory: Path, **more: Any) -> Path:
    """A config.json in the directory, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    path.write_text(json.dumps(CONFIG | more))
    return path


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's elements in row-major order."""
    flat = tensor.detach().contiguous().reshape(-1)
    return b"" if flat.numel() == 0 else flat.view(torch.uint8).numpy().tobytes()


def assert_same(entries: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Every tensor is there, bit for bit, and no other."""
    assert list(entries) == list(tensors) or set(entries) == set(tensors)
    for key, tensor in tensors.items():
        array = entries[key].read()
        assert entries[key].key == key
        assert array.shape == entries[key].shape == tuple(tensor.shape), key
        assert array.dtype.name == str(tensor.dtype).removeprefix("torch."), key
        assert array.flags.c_contiguous
        assert array.tobytes() == raw(tensor), key


def safetensors_bytes(
    tensors: dict[str, np.ndarray], header: dict[str, Any] | None = None, tail: bytes = b""
) -> bytes:
    """A safetensors file by hand; `header` overrides entries of the honest one."""
    names = {"float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8", "uint32": "U32"}
    honest: dict[str, Any] = {}
    at = 0
    for key, array in tensors.items():
        offsets = [at, at + array.nbytes]
        honest[key] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(honest | (header or {})).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values()) + tail
