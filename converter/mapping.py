"""The rule engine: which source tensor becomes which target, from a table of templates.

A table is data: every rule matches whole names, so order never matters. `plan` renames, splits or drops every source
tensor exactly once and fills every target exactly once, or says what is wrong with all of them; `hugging_face_names`
is the way back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxbert.errors import MLXBertError, first_ten

Shape = tuple[int, ...]
Dimension = str | int | None
"""A config field's name, a number, or None where any size is right (a classifier's number of labels)."""


class MappingError(MLXBertError):
    """The checkpoint's tensors and the mapping or `config.json` do not fit together."""


class UnmappedKeyError(MappingError):
    """A tensor of the checkpoint has no rule."""


class MissingKeyError(MappingError):
    """A tensor that the configuration calls for is not in the checkpoint."""


class DuplicateKeyError(MappingError):
    """Two tensors of the checkpoint would fill one target."""


class ShapeError(MappingError):
    """A tensor's shape disagrees with `config.json`."""


@dataclass(frozen=True)
class Rename:
    """One source tensor becomes one target.

    Attributes:
        target: the canonical name, which is also Hugging Face's (less the base-model prefix); `{i}` is a layer index.
        shape: the dimensions, as config fields.
        also: other names that checkpoints have used for it.
        tied_to: a target that it is a copy of in checkpoints that tie the two; such a copy is not written.
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
    """One fused source tensor becomes equal parts, along the first axis."""

    source: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Drop:
    """A source tensor that is not needed, and the reason that the user is told."""

    source: str
    why: str


@dataclass(frozen=True)
class ArchitectureMapping:
    """All that is known of one architecture's tensor names.

    Attributes:
        model_type: as in `config.json`.
        base_class: the encoder's class in transformers.
        base_prefix: what the encoder's names begin with inside a class with a head; may be absent in a source.
        encoder: tensors of the encoder, each required unless its name begins with one of `optional`.
        optional: prefixes of groups that are there whole or not at all.
        heads: tensors of heads: all optional, written under their own names.
        splits, drops: rules for fused and for unneeded tensors, encoder and heads alike.
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
    """One tensor to write: `source`, or part `part` of `parts` of it along the first axis, under the name `target`."""

    target: str
    source: str
    shape: Shape
    part: int = 0
    parts: int = 1
    tied_to: str | None = None


@dataclass(frozen=True)
class Plan:
    """What becomes of every source tensor."""

    encoder: tuple[Planned, ...]
    heads: tuple[Planned, ...]
    dropped: dict[str, str] = field(default_factory=dict)


def plan(mapping: ArchitectureMapping, config: Any, shapes: Mapping[str, Shape]) -> Plan:
    """Decide what becomes of every tensor of a checkpoint.

    Args:
        mapping: the architecture's table.
        config: has the fields that the table's shapes name, and `num_hidden_layers`.
        shapes: every source tensor's name and shape.

    Raises:
        UnmappedKeyError, DuplicateKeyError, ShapeError, MissingKeyError: listing all that are wrong in that way.
    """
    rules = _Rules(mapping)
    planned: list[Planned] = []
    dropped: dict[str, str] = {}
    unmapped: list[str] = []
    for key, shape in shapes.items():
        match = rules.find(key)
        if match is None:
            unmapped.append(f"{key} {shape}")
        elif isinstance(match, Drop):
            dropped[key] = match.why
        else:
            planned.extend(_parts(key, shape, match))
    if unmapped:
        raise UnmappedKeyError(
            f"{mapping.model_type}: {_count(unmapped, 'checkpoint tensor has', 'checkpoint tensors have')} no rule\n"
            f"{first_ten(unmapped)}\n"
            f"  fix: add a Rename or a Drop(why=…) to converter/mappings/{mapping.model_type}.py"
        )
    _check_duplicates(mapping, planned)
    expected = _expected_shapes(mapping, config)
    _check_shapes(mapping, config, planned, expected)
    _check_missing(mapping, planned, expected, shapes)
    encoder = {item.target: item for item in planned if item.target in expected}
    return Plan(
        encoder=tuple(encoder[name] for name in expected if name in encoder),
        heads=tuple(item for item in planned if item.target not in expected),
        dropped=dropped,
    )


def hugging_face_names(mapping: ArchitectureMapping, architecture: str, encoder: Iterable[str]) -> dict[str, str]:
    """The way back: canonical encoder names to those in a checkpoint of the transformers class `architecture`."""
    prefix = "" if architecture == mapping.base_class else mapping.base_prefix
    return {name: prefix + name for name in encoder}


class _Rules:
    """The table's templates, compiled to look a source name up."""

    def __init__(self, mapping: ArchitectureMapping):
        self._prefix = mapping.base_prefix
        self._encoder: list[tuple[re.Pattern[str], Rename | Split | Drop]] = []
        self._heads: list[tuple[re.Pattern[str], Rename]] = []
        for rename in mapping.encoder:
            self._encoder += [(_compile(source), rename) for source in rename.sources]
        self._encoder += [(_compile(split.source), split) for split in mapping.splits]
        self._encoder += [(_compile(drop.source), drop) for drop in mapping.drops]
        for rename in mapping.heads:
            self._heads += [(_compile(source), rename) for source in rename.sources]

    def find(self, key: str) -> tuple[tuple[str, ...], str | None] | Drop | None:
        """The targets of a source name (and what the target is tied to), a reason to drop it, or None: no rule."""
        for table, name in ((self._encoder, key.removeprefix(self._prefix)), (self._heads, key)):
            for pattern, rule in table:
                match = pattern.fullmatch(name)
                if match is None:
                    continue
                if isinstance(rule, Drop):
                    return rule
                index = match.groupdict().get("i")
                if isinstance(rule, Split):
                    return tuple(_fill(target, index) for target in rule.targets), None
                return (_fill(rule.target, index),), rule.tied_to
        return None


def _compile(template: str) -> re.Pattern[str]:
    # A layer index has no leading zero: "layer.01" is not a second name for "layer.1".
    return re.compile(re.escape(template).replace(r"\{i\}", r"(?P<i>0|[1-9][0-9]{0,5})"))


def _fill(template: str, index: str | int | None) -> str:
    return template if index is None else template.replace("{i}", str(index))


def _parts(key: str, shape: Shape, match: tuple[tuple[str, ...], str | None]) -> list[Planned]:
    targets, tied_to = match
    parts = len(targets)
    if parts == 1:
        return [Planned(targets[0], key, shape, tied_to=tied_to)]
    if not shape or shape[0] % parts:
        raise ShapeError(f"{key} {shape} cannot be split into {parts} equal parts for {', '.join(targets)}")
    part_shape = (shape[0] // parts, *shape[1:])
    return [Planned(target, key, part_shape, part, parts) for part, target in enumerate(targets)]


def _expected_shapes(mapping: ArchitectureMapping, config: Any) -> dict[str, tuple[Dimension, ...]]:
    """Every encoder tensor that the configuration calls for, with its shape as the table writes it."""
    expected: dict[str, tuple[Dimension, ...]] = {
        rule.target: rule.shape for rule in mapping.encoder if "{i}" not in rule.target
    }
    layered = [rule for rule in mapping.encoder if "{i}" in rule.target]
    for index in range(config.num_hidden_layers):
        expected.update({_fill(rule.target, index): rule.shape for rule in layered})
    return expected


def _check_duplicates(mapping: ArchitectureMapping, planned: Sequence[Planned]) -> None:
    sources: dict[str, list[str]] = {}
    for item in planned:
        sources.setdefault(item.target, []).append(item.source)
    twice = [f"{target} from {' and '.join(keys)}" for target, keys in sources.items() if len(keys) > 1]
    if twice:
        raise DuplicateKeyError(
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
        sizes = tuple(getattr(config, size) if isinstance(size, str) else size for size in shape)
        fits = len(sizes) == len(item.shape) and all(
            want is None or want == have for want, have in zip(sizes, item.shape, strict=True)
        )
        if not fits:
            fields = ", ".join(
                f"{size}={getattr(config, size)}" for size in dict.fromkeys(shape) if isinstance(size, str)
            )
            wrong.append(f"{item.source} is {item.shape}; config.json says {fields}")
    if wrong:
        raise ShapeError(
            f"{mapping.model_type}: {_count(wrong, 'tensor disagrees', 'tensors disagree')} with config.json\n"
            f"{first_ten(wrong)}\n  fix: correct config.json, or pass the right one with --config"
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
        raise MissingKeyError(
            f"{mapping.model_type}: {_count(missing, 'tensor is', 'tensors are')} missing from the checkpoint "
            f"({len(shapes)} tensors read)\n{first_ten(missing)}\n"
            "  fix: pass a complete checkpoint, or the config.json that belongs to this one with --config"
        )


def _count(items: Sequence[str], one: str, many: str) -> str:
    return f"1 {one}" if len(items) == 1 else f"{len(items)} {many}"
