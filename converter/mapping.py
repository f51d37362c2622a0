"""Apply an architecture's table of tensor names: which source tensor becomes which target.

A table is data: every rule matches whole names, so their order does not matter. `plan` renames, splits or drops every
source tensor exactly once and fills every target exactly once, or raises an error that lists everything that is wrong.
`hugging_face_names` is the way back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxbert.errors import MLXBertError, first_ten, printable

Shape = tuple[int, ...]
Dimension = str | int | None
"""The name of a config field, a number, or None for any size (a classifier's number of labels)."""


# A name with more characters has no rule, and is not searched.
_MAX_NAME = 500
# A layer index has no leading zero: "layer.01" is not a second name for "layer.1".
_INDEX = re.compile(r"0|[1-9][0-9]{0,5}")


class MappingError(MLXBertError):
    """The checkpoint's tensors do not fit the mapping or `config.json`; the message lists all of them."""


@dataclass(frozen=True)
class Rename:
    """One source tensor becomes one target.

    Attributes:
        target: the canonical name: Hugging Face's without the base-model prefix; `{i}` is a layer index.
        shape: the dimensions, as config fields.
        also: other names of the tensor in checkpoints.
        tied_to: the target that it is a copy of, in checkpoints that tie the two; such a copy is not written.
    """

    target: str
    shape: tuple[Dimension, ...]
    also: tuple[str, ...] = ()
    tied_to: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.target, *self.also)


@dataclass(frozen=True)
class Split:
    """One fused source tensor becomes equal parts along the first axis."""

    source: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Drop:
    """A source tensor that is not needed, with the reason for the user."""

    source: str
    why: str


@dataclass(frozen=True)
class ArchitectureMapping:
    """The tensor names of one architecture.

    Attributes:
        model_type: `model_type` in `config.json`.
        base_class: the encoder's class in transformers.
        base_prefix: the beginning of the encoder's names in a class with a head; a source may lack it.
        encoder: tensors of the encoder; each is required unless its name begins with one of `optional`.
        optional: prefixes of groups of tensors that are either complete or absent.
        heads: tensors of heads; all are optional and keep their names.
        splits, drops: rules for fused and for unneeded tensors of encoder and heads.
    """

    model_type: str
    base_class: str
    base_prefix: str
    encoder: tuple[Rename, ...]
    optional: tuple[str, ...] = ()
    heads: tuple[Rename, ...] = ()
    splits: tuple[Split, ...] = ()
    drops: tuple[Drop, ...] = ()


@dataclass(frozen=True)
class Planned:
    """One tensor to write under the name `target`: `source`, or its part `part` of `parts` along the first axis."""

    target: str
    source: str
    shape: Shape
    part: int = 0
    parts: int = 1
    tied_to: str | None = None


@dataclass(frozen=True)
class Plan:
    """The fate of every source tensor."""

    encoder: tuple[Planned, ...]
    heads: tuple[Planned, ...]
    dropped: dict[str, str] = field(default_factory=dict)


def plan(mapping: ArchitectureMapping, config: Any, shapes: Mapping[str, Shape]) -> Plan:
    """Decide the fate of every tensor of a checkpoint.

    Args:
        mapping: the architecture's table.
        config: has the fields that the table's shapes name, and `num_hidden_layers`.
        shapes: name and shape of every source tensor.

    Raises:
        MappingError: tensors have no rule, fill one target twice, have a wrong shape, or are missing.
    """
    rules = Rules(mapping)
    planned: list[Planned] = []
    dropped: dict[str, str] = {}
    unmapped: dict[str, Shape] = {}
    for key, shape in shapes.items():
        match = rules.find(key)
        if match is None:
            unmapped[key] = shape
        elif isinstance(match, Drop):
            dropped[key] = match.why
        else:
            planned.extend(_parts(key, shape, match))
    expected = rules.expected(config)
    if unmapped:
        inside = {key: shape for key, shape in unmapped.items() if rules.in_encoder(key)}
        filled = {item.target for item in planned}
        missing = [name for name in expected if name not in filled and not name.startswith(mapping.optional)]
        raise unmapped_error(mapping, inside or unmapped, inside=bool(inside), missing=missing)
    _check_duplicates(mapping, planned)
    _check_shapes(mapping, config, planned, expected)
    _check_missing(mapping, planned, expected, shapes)
    encoder = {item.target: item for item in planned if item.target in expected}
    return Plan(
        encoder=tuple(encoder[name] for name in expected if name in encoder),
        heads=tuple(item for item in planned if item.target not in expected),
        dropped=dropped,
    )


def hugging_face_names(mapping: ArchitectureMapping, architecture: str, encoder: Iterable[str]) -> dict[str, str]:
    """Return canonical encoder names -> names in a checkpoint of the transformers class `architecture`."""
    prefix = "" if architecture == mapping.base_class else mapping.base_prefix
    return {name: prefix + name for name in encoder}


class Rules:
    """An architecture's table, indexed by source names."""

    def __init__(self, mapping: ArchitectureMapping):
        self.mapping = mapping
        self.base_prefix = mapping.base_prefix
        self.optional = mapping.optional
        self._encoder: dict[str, Rename | Split | Drop] = {
            **{source: rename for rename in mapping.encoder for source in rename.sources},
            **{split.source: split for split in mapping.splits},
            **{drop.source: drop for drop in mapping.drops},
        }
        self._heads = {source: rename for rename in mapping.heads for source in rename.sources}
        self._first_segments = {source.partition(".")[0] for source in self._encoder}

    def find(self, key: str) -> tuple[tuple[str, ...], str | None] | Drop | None:
        """Return the targets of a source name and what they are tied to, or a `Drop`; None if there is no rule."""
        for table, name in ((self._encoder, key.removeprefix(self.base_prefix)), (self._heads, key)):
            for template, index in _templates(name):
                rule = table.get(template)
                if rule is None:
                    continue
                if isinstance(rule, Drop):
                    return rule
                if isinstance(rule, Split):
                    return tuple(_fill(target, index) for target in rule.targets), None
                return (_fill(rule.target, index),), rule.tied_to
        return None

    def encoder_targets(self, name: str) -> tuple[str, ...]:
        """Return the encoder's tensors that a source name without the base prefix fills."""
        for template, index in _templates(name):
            rule = self._encoder.get(template)
            if isinstance(rule, Rename):
                return (_fill(rule.target, index),)
            if isinstance(rule, Split):
                return tuple(_fill(target, index) for target in rule.targets)
        return ()

    def is_head(self, name: str) -> bool:
        """Return whether there is a rule for a head's tensor of this name."""
        return any(template in self._heads for template, _ in _templates(name))

    def in_encoder(self, name: str) -> bool:
        """Return whether the first part of a name is one of the encoder's; there may be no rule for the name."""
        return name.removeprefix(self.base_prefix).partition(".")[0] in self._first_segments

    def expected(self, config: Any) -> dict[str, tuple[Dimension, ...]]:
        """Return every encoder tensor that the configuration calls for, with its shape in the table."""
        expected = {rule.target: rule.shape for rule in self.mapping.encoder if "{i}" not in rule.target}
        layered = [rule for rule in self.mapping.encoder if "{i}" in rule.target]
        for index in range(config.num_hidden_layers):
            expected.update({_fill(rule.target, index): rule.shape for rule in layered})
        return expected


def _templates(name: str) -> Iterator[tuple[str, str | None]]:
    """Yield the name, then the name with each part that can be a layer index replaced by `{i}`, and that index."""
    if len(name) > _MAX_NAME or "{" in name:
        return
    yield name, None
    parts = name.split(".")
    for at, part in enumerate(parts):
        if _INDEX.fullmatch(part):
            yield ".".join((*parts[:at], "{i}", *parts[at + 1 :])), part


def unmapped_error(
    mapping: ArchitectureMapping, unmapped: Mapping[str, Shape], *, inside: bool, missing: Sequence[str] = ()
) -> MappingError:
    """Return the error for tensors without a rule: a head may be left out, a part of the encoder may not.

    If tensors of the encoder are `missing`, those without a rule may be these, and must not be left out.
    """
    listed = [f"{printable(key)} {shape}" for key, shape in unmapped.items()]
    fix = (
        f"  fix: inside the encoder, they make it another model than {mapping.model_type}: give a plain "
        f"{mapping.model_type} checkpoint, or add its architecture (CONTRIBUTING.md)"
        if inside
        else "  fix: --encoder-only converts the encoder alone and leaves them out (a head that is not known here)"
    )
    if missing and not inside:
        lacks = _count(missing, "tensor of the encoder is", "tensors of the encoder are")
        fix = (
            f"  and {lacks} missing, such as {missing[0]}\n"
            "  fix: give the encoder's tensors one prefix and their names in transformers, or the right config.json"
        )
    return MappingError(
        f"{mapping.model_type}: {_count(listed, 'checkpoint tensor has', 'checkpoint tensors have')} no rule\n"
        f"{first_ten(listed)}\n{fix}"
    )


def _fill(template: str, index: str | int | None) -> str:
    return template if index is None else template.replace("{i}", str(index))


def _parts(key: str, shape: Shape, match: tuple[tuple[str, ...], str | None]) -> list[Planned]:
    targets, tied_to = match
    parts = len(targets)
    if parts == 1:
        return [Planned(targets[0], key, shape, tied_to=tied_to)]
    if not shape or shape[0] % parts:
        raise MappingError(f"{key} {shape} cannot be split into {parts} equal parts for {', '.join(targets)}")
    part_shape = (shape[0] // parts, *shape[1:])
    return [Planned(target, key, part_shape, part, parts) for part, target in enumerate(targets)]


def _check_duplicates(mapping: ArchitectureMapping, planned: Sequence[Planned]) -> None:
    sources: dict[str, list[str]] = {}
    for item in planned:
        sources.setdefault(item.target, []).append(item.source)
    twice = [f"{target} from {' and '.join(keys)}" for target, keys in sources.items() if len(keys) > 1]
    if twice:
        raise MappingError(
            f"{mapping.model_type}: {_count(twice, 'target is', 'targets are')} filled more than once\n"
            f"{first_ten(twice)}\n  fix: remove one of them from the checkpoint"
        )


def _check_shapes(
    mapping: ArchitectureMapping,
    config: Any,
    planned: Sequence[Planned],
    expected: Mapping[str, tuple[Dimension, ...]],
) -> None:
    heads = {rule.target: rule.shape for rule in mapping.heads}
    wrong = []
    for item in planned:
        shape = expected.get(item.target, heads.get(item.target))
        if shape is None:
            wrong.append(f"{item.source}: config.json says num_hidden_layers={config.num_hidden_layers}")
            continue
        if not shape_fits(config, shape, item.shape):
            fields = ", ".join(
                f"{size}={getattr(config, size)}" for size in dict.fromkeys(shape) if isinstance(size, str)
            )
            wrong.append(f"{item.source} is {item.shape}; config.json says {fields}")
    if wrong:
        raise MappingError(
            f"{mapping.model_type}: {_count(wrong, 'tensor disagrees', 'tensors disagree')} with config.json\n"
            f"{first_ten(wrong)}\n  fix: correct config.json, or pass the right one with --config"
        )


def shape_fits(config: Any, wanted: Sequence[Dimension], shape: Shape) -> bool:
    """Return whether a tensor has the shape that the table wants."""
    sizes = [getattr(config, size) if isinstance(size, str) else size for size in wanted]
    return len(sizes) == len(shape) and all(
        want is None or want == have for want, have in zip(sizes, shape, strict=True)
    )


def _check_missing(
    mapping: ArchitectureMapping,
    planned: Sequence[Planned],
    expected: Mapping[str, tuple[Dimension, ...]],
    shapes: Mapping[str, Shape],
) -> None:
    filled = {item.target for item in planned}
    absent = {prefix for prefix in mapping.optional if not any(target.startswith(prefix) for target in filled)}
    missing = [target for target in expected if target not in filled and not any(map(target.startswith, absent))]
    if missing:
        raise MappingError(
            f"{mapping.model_type}: {_count(missing, 'tensor is', 'tensors are')} missing from the checkpoint "
            f"({len(shapes)} tensors read)\n{first_ten(missing)}\n"
            "  fix: pass a complete checkpoint, or the config.json that belongs to this one with --config"
        )


def _count(items: Sequence[str], singular: str, plural: str) -> str:
    return f"1 {singular}" if len(items) == 1 else f"{len(items)} {plural}"
