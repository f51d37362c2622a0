"""Finds the encoder among a checkpoint's tensors, whatever training wrappers put before its parameters' names.

torch's own wrappers (`_orig_mod.`, `module.`) and the attribute that nearly everybody uses (`model.`) are taken off
each tensor alone. What is left before the encoder's names is found by fit: it is the prefix under which every tensor
that the architecture needs is there. Where there are several (the two encoders of a retriever), the user chooses.
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
from mlxbert.models.base import architecture

LEADING = ("module", "model")
# segments that only torch's own wrappers write, and also in the middle: torch.compile(model.bert)
ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# PEFT's own names (peft/tuners), each a segment: with one of them, the weights alone are another model.
_ADAPTER = re.compile(
    r"(lora_\w+|loha_\w+|hada_\w+|lokr_\w+|ia3_\w+|vera_\w+|oft_[rR]|boft_[RS]|randlora_\w+|adaption_\w+|trainable_tokens_\w+"
    r"|base_layer|modules_to_save|original_module)"
)
# A longer name has no rule: nothing is searched in it.
_MAX_NAME = 500
_MAX_SEGMENTS = 12
# From this many on, tensors that were left out are told by their common beginning.
_GROUP_FROM = 4


@dataclass(frozen=True)
class Fit:
    """A prefix under which a whole encoder lies.

    Attributes:
        prefix: what its names begin with, as the wrappers of torch left it.
        shown: the same as the file has it.
        keys: the names of its tensors, by target.
        right_shapes: whether they have the shapes that the configuration calls for.
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
        stripped: what was taken off names.
        prefix: what lay before the encoder's names, beside torch's wrappers.
        dropped: what is left out, and why.
        notes: what the user should know.
    """

    names: dict[str, str]
    stripped: tuple[str, ...] = ()
    prefix: str = ""
    dropped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class SeveralEncodersError(SourceError):
    """The checkpoint holds several encoders, and nobody has said which one is meant."""


def refuse_adapters(where: Path, keys: Iterable[str]) -> None:
    """Raise SourceError where PEFT's adapters are among the tensors: without them, it would be another model."""
    adapters = [key for key in keys if any(_ADAPTER.fullmatch(part) for part in key[:_MAX_NAME].split("."))]
    if adapters:
        raise SourceError(
            f"{where}: {_count(len(adapters), 'tensor')} of a PEFT adapter (LoRA and its kin), which must be merged "
            "into the weights first; fix: in PEFT, model.merge_and_unload().save_pretrained(DIR), then convert DIR\n"
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
        mapping: the architecture's table; None where it is not known: torch's wrappers alone are taken off.
        config: has the fields that the table's shapes name.
        prefix: which encoder is meant, where there are several.
        encoder_only: leave out what is no part of the encoder.

    Raises:
        SeveralEncodersError: there are several encoders, and no `prefix`.
        SourceError: there is none under `prefix`, or two tensors have one name without their wrappers' prefixes.
    """
    plain, stripped, collisions = _without_torch_wrappers(shapes)
    if mapping is None:
        fits, rules = [], None
    else:
        rules = Rules(mapping)
        fits = _fits(rules, config, plain, shapes)
    if collisions and not fits:
        raise SourceError(
            f"{where}: two tensors have one name once wrapper prefixes are taken off (two models in one file?); "
            f"fix: save the state_dict() of the one you mean\n{first_ten(collisions)}"
        )
    fit = _chosen(where, fits, prefix)
    if rules is None or fit is None:
        return FoundEncoder(plain, stripped)
    names: dict[str, str] = {}
    outside: dict[str, str] = {}
    dropped: list[str] = []
    base = fit.prefix.removesuffix(rules.base_prefix) if _is_base(fit.prefix, rules.base_prefix) else fit.prefix
    others = [other for other in fits if other is not fit]
    theirs = {key for other in others for key in other.keys.values()}
    begins = tuple(other.prefix for other in others if other.prefix and not base.startswith(other.prefix))
    for name, key in plain.items():
        inside = name.startswith(base)
        short = name[len(base) :] if inside else name
        # Of several encoders the user chose one: what is not under its prefix is not its.
        of_another = bool(others) and (not inside or name in theirs or name.startswith(begins))
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
    why = f"not of the encoder{f' under {fit.shown}' if others else ''}{' (--encoder-only)' if encoder_only else ''}"
    return FoundEncoder(
        names,
        (*stripped, *([base] if base else [])),
        base,
        grouped(dropped, names.values(), why),
        _note_on(outside.values(), fit.shown),
    )


def assumed_model_type(config: Mapping[str, Any], path: Path, shapes: Mapping[str, Shape]) -> str | None:
    """The architecture of a configuration without a `model_type`: the one that fits the tensors; None: none does.

    The files of an architecture's own release have none, nor have many that were made from them. Classes that the
    configuration names must be that architecture's, and the architecture says itself what it is not taken for.
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
    """Dropped names -> `why`; many with a beginning that no kept name has are told by it: "crf.* (5 tensors)"."""
    taken = {begin for name in kept for begin in _beginnings(name)}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(next((begin for begin in _beginnings(name) if begin not in taken), name), []).append(name)
    told: dict[str, str] = {}
    for begin, members in groups.items():
        labels = [f"{begin}.* ({len(members)} tensors)"] if len(members) >= _GROUP_FROM else members
        told.update(dict.fromkeys(labels, why))
    return told


def _beginnings(name: str) -> Iterator[str]:
    """`a`, `a.b`, `a.b.c` of the name a.b.c."""
    parts = name.split(".", _MAX_SEGMENTS)
    return (".".join(parts[: count + 1]) for count in range(len(parts)))


def _without_torch_wrappers(keys: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...], list[str]]:
    """New name -> the file's name; what was taken off; and, where that makes names collide, them, and nothing off.

    The rule is for each tensor on its own, not only where all share a prefix: a LightningModule holds `model.bert.…`
    beside `loss.weight`, and the loss must not decide how the encoder is named.
    """
    names: dict[str, str] = {}
    whole: dict[str, str] = {}
    stripped: dict[str, None] = {}
    collisions = []
    for key in keys:
        segments = [part for part in key.split(".") if part not in ANYWHERE]
        whole[".".join(segments) or key] = key
        taken = [part for part in key.split(".") if part in ANYWHERE]
        while len(segments) > 1 and segments[0] in LEADING:
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
    """Every prefix with a whole encoder.

    Where there is none, the one that lacks least, if it has most of the tensors: the plan then says what is missing.
    """
    expected = rules.expected(config)
    needed = {target for target in expected if not target.startswith(rules.optional)}
    found: dict[str, dict[str, str]] = {}
    for name in plain:
        if len(name) > _MAX_NAME:
            continue
        segments = name.split(".")
        for at in range(min(len(segments), _MAX_SEGMENTS)):
            for target in rules.encoder_targets(".".join(segments[at:])):
                if target in expected:
                    found.setdefault("".join(f"{part}." for part in segments[:at]), {})[target] = name
    whole = {prefix: keys for prefix, keys in found.items() if needed <= set(keys)}
    if not whole and found:
        best = max(found, key=lambda prefix: len(found[prefix]))
        whole = {best: found[best]} if 2 * len(needed & set(found[best])) > len(needed) else {}
    return [
        Fit(
            prefix,
            _shown(prefix, keys, plain),
            keys,
            all(shape_fits(config, expected[target], shapes[plain[key]]) for target, key in keys.items()),
        )
        for prefix, keys in whole.items()
    ]


def _shown(prefix: str, keys: Mapping[str, str], plain: Mapping[str, str]) -> str:
    """The prefix as the file has it."""
    name = next(iter(keys.values()))
    key, rest = plain[name], name[len(prefix) :]
    return key.removesuffix(rest) if key.endswith(rest) else prefix


def _chosen(where: Path, fits: list[Fit], prefix: str | None) -> Fit | None:
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


def _note_on(heads: Iterable[str], prefix: str) -> tuple[str, ...]:
    """What the user should know of heads outside of the encoder's prefix."""
    names = [printable(name) for name in heads]
    if not names:
        return ()
    listed = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    return (f"{listed} beside {prefix}: taken for transformers' own head; --encoder-only leaves it out",)


def _is_base(prefix: str, base_prefix: str) -> bool:
    return prefix == base_prefix or prefix.endswith(f".{base_prefix}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
