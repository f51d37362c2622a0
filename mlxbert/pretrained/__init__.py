"""A checkpoint with the head that it was published with."""

from mlxbert.pretrained.model import PretrainedBert, PretrainedOutput, load_with_head

__all__ = ["PretrainedBert", "PretrainedOutput", "load_with_head"]
