"""Apply an architecture's table of tensor names: which source tensor becomes which target.

A table is data: every rule matches whole names, so their order does not matter. `plan` renames, splits or drops every
source tensor exactly once and fills every target exactly once, or raises an error that lists everything that is wrong.
`hugging_face_names` is the way back.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

from mlxbert.errors import MLXBertError, first_ten, printable

Shape = tuple[int, ...]
Dimension = str | int | None
"""The name of a config field, a number, or None for any size (a classifier's number of labels)."""


# A name with more characters has no rule, and is not searched.
_MAX_NAME = 500
# A name with more indices has no rule either: the number of templates grows with them.
_MAX_INDICES = 5
# A layer index has no leading zero: "layer.01" is not a second name for "layer.1".
_INDEX = re.compile(r"0|[1-9][0-9]{0,5}")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class MappingError(MLXBertError):
    """The checkpoint's tensors do not fit the mapping or `config.json`; the message lists all of them."""


@dataclass(frozen=True)
class Rename:
    """One source tensor becomes one target.

    Attributes:
        target: the canonical name: Hugging Face's without the base-model prefix; `{i}` is a layer index, other
            placeholders are those of `ArchitectureMapping.counts`.
        shape: the dimensions, as config fields.
        also: other names of the tensor in checkpoints.
        tied_to: the target that it is a copy of, in checkpoints that tie the two; such a copy is not written.
        when: from (configuration, each index of the name): whether the configuration calls for this tensor of the
            encoder; None: always.
        otherwise: why it is dropped if it is there although the configuration does not call for it; "": it is refused.
    """

    target: str
    shape: tuple[Dimension, ...]
    also: tuple[str, ...] = ()
    tied_to: str | None = None
    when: Callable[..., bool] | None = None
    otherwise: str = ""

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
class Refuse:
    """A source tensor of a model that is not computed, with the reason and the fix for the user."""

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
        refused: tensors that make it a model that is not computed.
        counts: placeholder in a name -> the config field that counts its indices.
    """

    model_type: str
    base_class: str
    base_prefix: str
    encoder: tuple[Rename, ...]
    optional: tuple[str, ...] = ()
    heads: tuple[Rename, ...] = ()
    splits: tuple[Split, ...] = ()
    drops: tuple[Drop, ...] = ()
    refused: tuple[Refuse, ...] = ()
    counts: Mapping[str, str] = field(default_factory=lambda: {"i": "num_hidden_layers"})


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
        config: has the fields that the table's shapes and counts name.
        shapes: name and shape of every source tensor.

    Raises:
        MappingError: tensors have no rule, fill one target twice, have a wrong shape, or are missing.
    """
    rules = Rules(mapping)
    planned: list[Planned] = []
    dropped: dict[str, str] = {}
    unmapped: dict[str, Shape] = {}
    expected = rules.expected(config)
    _check_refused(mapping, rules, shapes)
    for key, shape in shapes.items():
        match = rules.find(key)
        if match is None:
            unmapped[key] = shape
        elif isinstance(match, Drop):
            dropped[key] = match.why
        elif (why := rules.left_out(config, match)) is not None:
            dropped[key] = why
        else:
            planned.extend(_parts(key, shape, match))
    if unmapped:
        inside = {key: shape for key, shape in unmapped.items() if rules.in_encoder(key)}
        filled = {item.target for item in planned}
        missing = [name for name in expected if name not in filled and not name.startswith(mapping.optional)]
        raise unmapped_error(mapping, inside or unmapped, inside=bool(inside), missing=missing)
    _check_duplicates(mapping, planned)
    _check_shapes(rules, config, planned, expected)
    _check_missing(rules, config, planned, expected, shapes)
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
        self._refused = {refuse.source: refuse.why for refuse in mapping.refused}
        self._first_segments = {source.partition(".")[0] for source in (*self._encoder, *self._refused)}
        names = (*self._encoder, *self._heads, *self._refused)
        # The placeholders that names have, in their order: ("i",), ("g", "j").
        self._placeholders = sorted(
            {tuple(_PLACEHOLDER.findall(name)) for name in names}, key=lambda held: (len(held), held)
        )

    def find(self, key: str) -> Match | Drop | None:
        """Return the targets of a source name, or a `Drop`; None if there is no rule."""
        for table, name in ((self._encoder, key.removeprefix(self.base_prefix)), (self._heads, key)):
            for template, indices in self._templates(name):
                rule = table.get(template)
                if rule is not None:
                    return rule if isinstance(rule, Drop) else _matched(rule, indices)
        return None

    def refusal(self, key: str) -> str | None:
        """Return why a source name is refused; None: it is not."""
        for template, _ in self._templates(key.removeprefix(self.base_prefix)):
            if template in self._refused:
                return self._refused[template]
        return None

    def left_out(self, config: Any, match: Match) -> str | None:
        """Return why a tensor is dropped that this configuration does not call for; None: it is not dropped."""
        rule = match.rule
        if rule is None or rule.when is None or not rule.otherwise:
            return None
        indices = map(int, match.indices.values())
        return rule.otherwise if self._is_counted(config, match) and not rule.when(config, *indices) else None

    def asked_fields(self, config: Any, names: Iterable[str]) -> str:
        """Return the config fields that decide whether tensors of these names exist, as "name=value, …"."""
        asked = _Asked(config)
        for name in names:
            match = self.find(name)
            if not isinstance(match, Match) or match.rule is None or match.rule.when is None:
                continue
            if self._is_counted(config, match):
                match.rule.when(asked, *map(int, match.indices.values()))
        return ", ".join(f"{name}={value!r}" for name, value in asked.fields.items())

    def _is_counted(self, config: Any, match: Match) -> bool:
        """Return whether each index of a name is below its count in the configuration."""
        return all(int(index) < getattr(config, self.mapping.counts[held]) for held, index in match.indices.items())

    def encoder_targets(self, name: str) -> tuple[str, ...]:
        """Return the encoder's tensors that a source name without the base prefix fills."""
        for template, indices in self._templates(name):
            rule = self._encoder.get(template)
            if rule is not None and not isinstance(rule, Drop):
                return _matched(rule, indices).targets
        return ()

    def is_head(self, name: str) -> bool:
        """Return whether there is a rule for a head's tensor of this name."""
        return any(template in self._heads for template, _ in self._templates(name))

    def in_encoder(self, name: str) -> bool:
        """Return whether the first part of a name is one of the encoder's; there may be no rule for the name."""
        return name.removeprefix(self.base_prefix).partition(".")[0] in self._first_segments

    def expected(self, config: Any) -> dict[str, tuple[Dimension, ...]]:
        """Return every encoder tensor that the configuration calls for, with its shape in the table.

        Tensors without an index come first, then the others, index by index.
        """
        groups: dict[tuple[str, ...], list[Rename]] = {}
        for rule in self.mapping.encoder:
            groups.setdefault(tuple(_PLACEHOLDER.findall(rule.target)), []).append(rule)
        expected: dict[str, tuple[Dimension, ...]] = {}
        for held in sorted(groups, key=lambda held: (len(held), held)):
            counts = [range(getattr(config, self.mapping.counts[placeholder])) for placeholder in held]
            for indices in product(*counts):
                for rule in groups[held]:
                    if rule.when is None or rule.when(config, *indices):
                        expected[_fill(rule.target, dict(zip(held, map(str, indices), strict=True)))] = rule.shape
        return expected

    def _templates(self, name: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield each template that a name can match, with the index of each of its placeholders."""
        if len(name) > _MAX_NAME or "{" in name:
            return
        parts = name.split(".")
        places = [at for at, part in enumerate(parts) if _INDEX.fullmatch(part)]
        if len(places) > _MAX_INDICES:
            return
        for held in self._placeholders:
            for chosen in combinations(places, len(held)):
                template = list(parts)
                for at, placeholder in zip(chosen, held, strict=True):
                    template[at] = f"{{{placeholder}}}"
                yield ".".join(template), {p: parts[at] for p, at in zip(held, chosen, strict=True)}


@dataclass(frozen=True)
class Match:
    """What a rule says of a source tensor.

    Attributes:
        targets: the tensors that it fills.
        indices: placeholder of the rule -> its index in the name.
        rule: the rule; None: a `Split`.
    """

    targets: tuple[str, ...]
    indices: Mapping[str, str]
    rule: Rename | None = None


class _Asked:
    """A configuration that notes which of its fields are read, also inside of its properties and methods."""

    def __init__(self, config: Any):
        self._config = config
        self.fields: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        found = inspect.getattr_static(type(self._config), name, None)
        if isinstance(found, property) and found.fget is not None:
            return found.fget(self)
        if inspect.isfunction(found):
            return found.__get__(self)
        return self.fields.setdefault(name, getattr(self._config, name))


def _matched(rule: Rename | Split, indices: Mapping[str, str]) -> Match:
    if isinstance(rule, Split):
        return Match(tuple(_fill(target, indices) for target in rule.targets), indices)
    return Match((_fill(rule.target, indices),), indices, rule)


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


def _fill(template: str, indices: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: indices[match[1]], template)


def _parts(key: str, shape: Shape, match: Match) -> list[Planned]:
    targets = match.targets
    parts = len(targets)
    if parts == 1:
        return [Planned(targets[0], key, shape, tied_to=match.rule.tied_to if match.rule else None)]
    if not shape or shape[0] % parts:
        raise MappingError(f"{key} {shape} cannot be split into {parts} equal parts for {', '.join(targets)}")
    part_shape = (shape[0] // parts, *shape[1:])
    return [Planned(target, key, part_shape, part, parts) for part, target in enumerate(targets)]


def _check_refused(mapping: ArchitectureMapping, rules: Rules, shapes: Mapping[str, Shape]) -> None:
    refused: dict[str, list[str]] = {}
    for key in shapes if mapping.refused else ():
        if (why := rules.refusal(key)) is not None:
            refused.setdefault(why, []).append(f"{printable(key)} {shapes[key]}")
    for why, listed in refused.items():
        raise MappingError(
            f"{mapping.model_type}: {_count(listed, 'tensor belongs', 'tensors belong')} to a model that is not "
            f"computed here: {why}\n{first_ten(listed)}"
        )


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
    rules: Rules,
    config: Any,
    planned: Sequence[Planned],
    expected: Mapping[str, tuple[Dimension, ...]],
) -> None:
    mapping = rules.mapping
    heads = {rule.target: rule.shape for rule in mapping.heads}
    wrong = []
    for item in planned:
        shape = expected.get(item.target, heads.get(item.target))
        if shape is None:
            counts = ", ".join(f"{name}={getattr(config, name)}" for name in mapping.counts.values())
            by = rules.asked_fields(config, [item.source]) or counts
            wrong.append(f"{item.source}: config.json, with {by}, calls for no such tensor")
            continue
        if not shape_fits(config, shape, item.shape):
            asked = _Asked(config)
            for size in shape:
                if isinstance(size, str):
                    getattr(asked, size)
            fields = ", ".join(f"{name}={value}" for name, value in asked.fields.items())
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
    rules: Rules,
    config: Any,
    planned: Sequence[Planned],
    expected: Mapping[str, tuple[Dimension, ...]],
    shapes: Mapping[str, Shape],
) -> None:
    mapping = rules.mapping
    filled = {item.target for item in planned}
    absent = {prefix for prefix in mapping.optional if not any(target.startswith(prefix) for target in filled)}
    missing = [target for target in expected if target not in filled and not any(map(target.startswith, absent))]
    if missing:
        asked = rules.asked_fields(config, missing)
        called = f"  config.json calls for them by {asked}\n" if asked else ""
        raise MappingError(
            f"{mapping.model_type}: {_count(missing, 'tensor is', 'tensors are')} missing from the checkpoint "
            f"({len(shapes)} tensors read)\n{first_ten(missing)}\n{called}"
            "  fix: pass a complete checkpoint, or the config.json that belongs to this one with --config"
        )


def _count(items: Sequence[str], singular: str, plural: str) -> str:
    return f"1 {singular}" if len(items) == 1 else f"{len(items)} {plural}"
