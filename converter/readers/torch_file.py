"""What both of torch.save's containers give: one object, and where the bytes of its storages lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.readers.regular_file import ByteRange
from converter.readers.source_error import SourceError
from converter.readers.tensor_entry import StridedTensor, TensorEntry, tensor_entry
from converter.readers.torch_pickle import TensorRef
from mlxbert.errors import printable


@dataclass(frozen=True)
class TorchFile:
    """A parsed torch.save file; `data` by storage key."""

    path: Path
    top: Any
    data: dict[str, ByteRange]

    def entry(self, key: str, ref: TensorRef) -> TensorEntry:
        """A tensor of this file, as `key`; SourceError when it claims bytes that are not there."""
        data = self.data.get(ref.storage.key)
        if data is None:
            raise SourceError(f"{self.path}: tensor {printable(key)} has no data in the file; fix: get the file again")
        offset = ref.offset
        if ref.storage.offset and type(offset) is int:
            if ref.dtype != ref.storage.dtype:
                raise SourceError(
                    f"{self.path}: tensor {printable(key)} reads a storage view as another dtype; "
                    "fix: torch.load and torch.save it with a current torch"
                )
            offset += ref.storage.offset
        return tensor_entry(self.path, key, StridedTensor(data, ref.dtype, ref.shape, ref.strides, offset))
