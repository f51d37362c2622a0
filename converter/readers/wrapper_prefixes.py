"""Takes off what training wrappers put before a parameter's name.

`module.` is DataParallel's and DistributedDataParallel's, `model.` what people call the attribute of a
LightningModule, `_orig_mod.` torch.compile's. The rule is for each tensor on its own, not only where all
share a prefix: a LightningModule holds `model.bert.…` beside `loss.weight`, and the loss must not decide how
the encoder is named (it keeps its own, and the mapping then says that it has no rule). Two tensors that would
get one name are an error, never a silent choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from converter.readers.source_error import SourceError
from mlxbert.errors import first_ten, printable

LEADING = ("module", "model")
# segments that only torch's own wrappers write, and also in the middle: torch.compile(model.bert)
ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def strip_prefixes(where: Path, keys: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """New name -> the file's name, in order, and the prefixes taken off; SourceError on a collision."""
    names: dict[str, str] = {}
    stripped: dict[str, None] = {}
    collisions = []
    for key in keys:
        segments = [part for part in key.split(".") if part not in ANYWHERE]
        stripped.update(dict.fromkeys(part for part in key.split(".") if part in ANYWHERE))
        while len(segments) > 1 and segments[0] in LEADING:
            stripped[segments.pop(0)] = None
        name = ".".join(segments) or key
        if name in names:
            collisions.append(f"{printable(names[name])} and {printable(key)} would both be {printable(name)}")
        names[name] = key
    if collisions:
        raise SourceError(
            f"{where}: two tensors have one name once wrapper prefixes are taken off (two models in one file?); "
            f"fix: save the state_dict() of the one you mean\n{first_ten(collisions)}"
        )
    return names, tuple(f"{part}." for part in stripped)
