"""Finds the encoder among a checkpoint's tensors, whatever prefix a training script put before their names.

The prefixes of torch's wrappers (`_orig_mod.`, `module.`) and the usual attribute (`model.`) are taken off each tensor
on its own. The rest of the prefix is found by fit: under it lies every tensor that the architecture needs. If several
prefixes fit (the two encoders of a retriever), the user chooses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.mapping import ArchitectureMapping, Rules, Shape, shape_fits, unmapped_error
from converter.mappings import mapping_for, supported
from converter.readers.source_files import SourceError
from mlxbert.errors import first_ten, printable
from mlxbert.models.architecture import architecture

_LEADING = ("module", "model")
# Segments that only torch's own wrappers write, also in the middle of a name: torch.compile(model.encoder).
_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Segments that PEFT writes (peft/tuners): with one of them, the weights alone are another model.
_ADAPTER = re.compile(
    r"(lora_\w+|loha_\w+|hada_\w+|lokr_\w+|ia3_\w+|vera_\w+|oft_[rR]|boft_[RS]|randlora_\w+|adaption_\w+|trainable_tokens_\w+"
    r"|base_layer|modules_to_save|original_module)"
)
# Names with more characters or segments have no rule, so they are not searched.
_MAX_NAME = 500
_MAX_SEGMENTS = 12
# From this number on, dropped tensors are listed by their common beginning.
_GROUP_FROM = 4


@dataclass(frozen=True)
class Fit:
    """A prefix under which a whole encoder lies.

    Attributes:
        prefix: the beginning of the encoder's names, without torch's wrappers.
        shown: the same beginning in the file's spelling.
        keys: names of the encoder's tensors, by target.
        right_shapes: whether the tensors have the shapes that the configuration calls for.
    """

    prefix: str
    shown: str
    keys: Mapping[str, str]
    right_shapes: bool


@dataclass(frozen=True)
class FoundEncoder:
    """A checkpoint's tensors under the names that the architecture's table knows.

    Attributes:
        names: new name -> the file's name, in the file's order.
        stripped: prefixes that were taken off names.
        prefix: the beginning of the encoder's names, without torch's wrappers.
        dropped: tensors that are left out, with the reason.
        notes: notes for the user.
    """

    names: dict[str, str]
    stripped: tuple[str, ...] = ()
    prefix: str = ""
    dropped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class SeveralEncodersError(SourceError):
    """The checkpoint holds several encoders, and the user has chosen none."""


def refuse_adapters(where: Path, keys: Iterable[str]) -> None:
    """Raise SourceError if PEFT's adapters are among the tensors: without them, it would be another model."""
    adapters = [key for key in keys if any(_ADAPTER.fullmatch(part) for part in key[:_MAX_NAME].split("."))]
    if adapters:
        count = f"{len(adapters)} tensor{'' if len(adapters) == 1 else 's'}"
        raise SourceError(
            f"{where}: {count} of a PEFT adapter (LoRA and its kin), which must be merged into the weights first; "
            "fix: in PEFT, model.merge_and_unload().save_pretrained(DIR), then convert DIR\n"
            f"{first_ten(adapters)}"
        )


def find_encoder(
    where: Path,
    shapes: Mapping[str, Shape],
    mapping: ArchitectureMapping | None,
    config: Any,
    *,
    prefix: str | None = None,
    encoder_only: bool = False,
) -> FoundEncoder:
    """Rename a checkpoint's tensors to what the architecture's table knows.

    Args:
        where: the file, for messages.
        shapes: every tensor's name and shape.
        mapping: the architecture's table; None if it is not known, then only torch's wrappers are taken off.
        config: has the fields that the table's shapes name.
        prefix: the beginning of the encoder's names, if there are several encoders.
        encoder_only: leave out every tensor that is no part of the encoder.

    Raises:
        SeveralEncodersError: there are several encoders, and no `prefix`.
        SourceError: there is none under `prefix`, or two tensors get the same name.
    """
    plain, stripped, collisions = _without_torch_wrappers(shapes)
    rules = None if mapping is None else Rules(mapping)
    fits = [] if rules is None else _fits(rules, config, plain, shapes)
    if collisions and not fits:
        raise SourceError(
            f"{where}: two tensors have one name once wrapper prefixes are taken off (two models in one file?); "
            f"fix: save the state_dict() of the one you mean\n{first_ten(collisions)}"
        )
    fit = _choose(where, fits, prefix)
    if rules is None or fit is None:
        return FoundEncoder(plain, stripped)
    names: dict[str, str] = {}
    outside: dict[str, str] = {}
    dropped: list[str] = []
    is_base = fit.prefix == rules.base_prefix or fit.prefix.endswith(f".{rules.base_prefix}")
    base = fit.prefix.removesuffix(rules.base_prefix) if is_base else fit.prefix
    others = [other for other in fits if other is not fit]
    in_others = {name for other in others for name in other.keys.values()}
    other_prefixes = tuple(other.prefix for other in others if other.prefix and not base.startswith(other.prefix))
    for name, key in plain.items():
        inside = name.startswith(base)
        short = name[len(base) :] if inside else name
        # The user chose one of several encoders: every tensor outside its prefix belongs to another one.
        of_another = bool(others) and (not inside or name in in_others or name.startswith(other_prefixes))
        if of_another or (encoder_only and not (inside and rules.in_encoder(short))):
            dropped.append(key)
        elif short in names:
            raise SourceError(
                f"{where}: {printable(key)} and {printable(names[short])} would both be {printable(short)}; "
                "fix: --encoder-only, or save the state_dict() of the one you mean"
            )
        else:
            names[short] = key
            if not inside:
                outside[short] = key
    if unknown := {key: shapes[key] for name, key in outside.items() if not rules.is_head(name)}:
        raise unmapped_error(rules.mapping, unknown, inside=False)
    notes: list[str] = []
    prefixes = {name: architecture(name).prefix for name in supported()}
    # A prefix that wrappers write too, `model.`, tells no architecture.
    usual = [name for name, its in prefixes.items() if base.endswith(its) and its.rstrip(".") not in _LEADING]
    if usual:
        notes.append(
            f"{fit.shown} is the usual prefix of model_type {' or '.join(map(repr, usual))}, but config.json says "
            f"'{rules.mapping.model_type}', and the model computes as that; if it is wrong, fix config.json"
        )
    if outside:
        first, *more = map(printable, outside.values())
        heads = f"{first} and {len(more)} more" if more else first
        notes.append(f"{heads} beside {fit.shown}: taken for transformers' own head; --encoder-only leaves it out")
    why = f"not of the encoder{f' under {fit.shown}' if others else ''}{' (--encoder-only)' if encoder_only else ''}"
    return FoundEncoder(
        {_with_base_prefix(rules, name, key): key for name, key in names.items()},
        (*(part for part in stripped if part != rules.base_prefix), *([base] if base else [])),
        base,
        grouped(dropped, names.values(), why),
        tuple(notes),
    )


def _with_base_prefix(rules: Rules, name: str, key: str) -> str:
    """Return the name as a class of transformers has it, if wrappers write that class's prefix too (`model.`).

    The file's name has it before a tensor of the encoder, and it was taken off with the wrappers.
    """
    plain = ".".join(part for part in key.split(".") if part not in _ANYWHERE)
    whole = rules.base_prefix + name
    is_whole = plain == whole or plain.endswith(f".{whole}")
    return whole if is_whole and rules.base_prefix.rstrip(".") in _LEADING and rules.in_encoder(name) else name


def assumed_model_type(config: Mapping[str, Any], path: Path, shapes: Mapping[str, Shape]) -> str | None:
    """Return the architecture that the tensors fit, for a configuration without a `model_type`; None if there is none.

    The files of an architecture's own release have no `model_type`, and neither have many files made from them. The
    classes in the configuration must be those of the architecture, which also says what it is never taken for.
    """
    classes = config.get("architectures")
    for model_type in supported():
        declared = architecture(model_type)
        if not declared.assumed(config):
            continue
        family = re.compile(declared.encoder_class.removesuffix("Model") + r"[A-Z]\w*")
        if isinstance(classes, list) and not all(family.fullmatch(str(name)) for name in classes):
            continue
        if path.name == f"{model_type}_config.json":
            return model_type
        parsed = declared.config.from_hf({**config, "model_type": model_type})
        if _fits(Rules(mapping_for({"model_type": model_type})), parsed, _without_torch_wrappers(shapes)[0], shapes):
            return model_type
    return None


def grouped(names: Iterable[str], kept: Iterable[str], why: str) -> dict[str, str]:
    """Return dropped names -> `why`; many names with a beginning that no kept name has become "crf.* (5 tensors)"."""
    kept_beginnings = {beginning for name in kept for beginning in _beginnings(name)}
    groups: dict[str, list[str]] = {}
    for name in names:
        own = next((beginning for beginning in _beginnings(name) if beginning not in kept_beginnings), name)
        groups.setdefault(own, []).append(name)
    dropped: dict[str, str] = {}
    for beginning, members in groups.items():
        labels = [f"{beginning}.* ({len(members)} tensors)"] if len(members) >= _GROUP_FROM else members
        dropped.update(dict.fromkeys(labels, why))
    return dropped


def _beginnings(name: str) -> Iterator[str]:
    """Return `a`, `a.b` and `a.b.c` of the name a.b.c."""
    parts = name.split(".", _MAX_SEGMENTS)
    return (".".join(parts[: count + 1]) for count in range(len(parts)))


def _without_torch_wrappers(keys: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...], list[str]]:
    """Return new name -> the file's name, the prefixes taken off, and the names that collide.

    If names collide, leading prefixes stay on. Each tensor is treated on its own, because not all need to share a
    prefix: a LightningModule holds `model.encoder.…` beside `loss.weight`.
    """
    names: dict[str, str] = {}
    whole: dict[str, str] = {}
    stripped: dict[str, None] = {}
    collisions = []
    for key in keys:
        segments = [part for part in key.split(".") if part not in _ANYWHERE]
        whole[".".join(segments) or key] = key
        taken = [part for part in key.split(".") if part in _ANYWHERE]
        while len(segments) > 1 and segments[0] in _LEADING:
            taken.append(segments.pop(0))
        name = ".".join(segments) or key
        if name in names:
            collisions.append(f"{printable(names[name])} and {printable(key)} would both be {printable(name)}")
        names[name] = key
        stripped.update(dict.fromkeys(taken))
    if collisions:
        return whole, (), collisions
    return names, tuple(f"{part}." for part in stripped), []


def _fits(rules: Rules, config: Any, plain: Mapping[str, str], shapes: Mapping[str, Shape]) -> list[Fit]:
    """Return every prefix with a whole encoder.

    If there is none, return the prefix with the most tensors if these are more than half of the encoder's: the plan
    then says which are missing.
    """
    expected = rules.expected(config)
    needed = {target for target in expected if not target.startswith(rules.optional)}
    by_prefix: dict[str, dict[str, str]] = {}
    for name in plain:
        if len(name) > _MAX_NAME:
            continue
        segments = name.split(".")
        for at in range(min(len(segments), _MAX_SEGMENTS)):
            for target in rules.encoder_targets(".".join(segments[at:])):
                if target in expected:
                    by_prefix.setdefault("".join(f"{part}." for part in segments[:at]), {})[target] = name
    whole = {prefix: keys for prefix, keys in by_prefix.items() if needed <= set(keys)}
    if not whole and by_prefix:
        best = max(by_prefix, key=lambda prefix: len(by_prefix[prefix]))
        whole = {best: by_prefix[best]} if 2 * len(needed & set(by_prefix[best])) > len(needed) else {}
    return [
        Fit(
            prefix,
            _in_file(prefix, keys, plain),
            keys,
            all(shape_fits(config, expected[target], shapes[plain[key]]) for target, key in keys.items()),
        )
        for prefix, keys in whole.items()
    ]


def _in_file(prefix: str, keys: Mapping[str, str], plain: Mapping[str, str]) -> str:
    """Return the prefix in the file's spelling."""
    name = next(iter(keys.values()))
    key, rest = plain[name], name[len(prefix) :]
    return key.removesuffix(rest) if key.endswith(rest) else prefix


def _choose(where: Path, fits: list[Fit], prefix: str | None) -> Fit | None:
    listed = " and ".join(repr(printable(fit.shown)) for fit in fits[:10]) or "none"
    if prefix is not None:
        wanted = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
        fit = next((fit for fit in fits if wanted in (fit.prefix, fit.shown)), None)
        if fit is None:
            raise SourceError(
                f"{where}: no encoder under the prefix {printable(prefix)!r}; fix: one of those that there are "
                f"({listed}), or leave --prefix out"
            )
        return fit
    fits = [fit for fit in fits if fit.right_shapes] or fits
    if len(fits) > 1:
        raise SeveralEncodersError(
            f"{where}: has {len(fits)} encoders, under the prefixes {listed}; fix: choose one, as in "
            f"--prefix {printable(fits[0].shown) or repr('')}"
        )
    return fits[0] if fits else None
