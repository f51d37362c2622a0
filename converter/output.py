"""The files of a conversion beside its tensors: layout, `config.json` with true labels, tokenizer, sentence modules.

Two layouts place the head of the source. `encoder`, the default: `model.safetensors` holds the encoder alone, which
every package loads as one, and `heads.safetensors` the head. `full`: names and class are those of the transformers
class with the head, for packages that load rerankers and taggers: transformers' `AutoModelFor…`, mlx-vlm's
`load_reranker` and `load_token_classifier`, Swift's MLXEmbedders. Most packages that want an encoder then refuse;
`converter/card/loaders.py` says which.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.card.source_card import SourceCard
from converter.mapping import Plan, Planned
from converter.readers.safetensors import TensorEntry
from converter.readers.source_files import SourceError, read_json_object
from converter.readers.weight_files import SourceModule, read_weights
from converter.source import Source
from mlxbert.checkpoint import load_core, load_tokenizer
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.encode.modules import UnsupportedModuleError
from mlxbert.encode.sentence_modules import MODULES, both_spellings, read_sentence_plan
from mlxbert.errors import MLXBertError, printable
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.reading import parse_json
from mlxbert.files.safetensors import PlannedTensor, safetensors_bytes
from mlxbert.models.architecture import HeadKind, architecture
from mlxbert.pretrained import PROBLEM_TYPES, Labels, choose_head_class, original_architectures
from mlxbert.tokenization.build import tokenizer_names
from mlxbert.tokenization.files import SENTENCEPIECE_FILES, has_tokenizer

if TYPE_CHECKING:
    from converter.quantize.pipeline import Quantized

FORMAT_VERSION = 1
ENCODER, FULL = LAYOUTS = ("encoder", "full")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", *SENTENCEPIECE_FILES)
_TRANSFORMER = "sentence_transformers.models.Transformer"
_MODULE_WEIGHTS = re.compile(r"[^/]+/(model\.safetensors|pytorch_model\.bin)")


class OutputError(MLXBertError):
    """A source cannot be written in the requested layout, or the written files cannot be loaded."""


def with_true_labels(source: Source) -> Source:
    """Return the source with labels in its configuration that fit its classifier, and a note if they did not.

    The number of labels is that of the classifier's rows; the configuration may be wrong or have none. transformers
    takes the length of `id2label`, else `num_labels`, else 2, and refuses a head of another size, as
    `mlxbert.load_with_head` would. Without a classifier, invalid labels are left out: they must not stop the encoder.
    """
    config, notes = dict(source.config), []
    problem = config.get("problem_type")
    if problem is not None and problem not in PROBLEM_TYPES:
        del config["problem_type"]
        notes.append(
            f"problem_type {printable(repr(problem), 60)} is not known to transformers: left out of config.json"
        )
    classifier = _classifier(source)
    rows = None if classifier is None else source.entries[classifier].shape[0]
    names = config.get("id2label")
    if not _names_each_output(names, rows):
        count = config.get("num_labels", 2)
        if rows is None and names is not None:
            for field in ("id2label", "label2id"):
                config.pop(field, None)
            notes.append(
                "id2label does not name outputs 0, 1, 2, …, and there is no classifier: left out of config.json"
            )
        elif rows is not None and (names is not None or type(count) is not int or count != rows):
            labels, note = _fitted_labels(config, rows, f"{classifier} has {rows} row{'s' if rows > 1 else ''}")
            config["id2label"] = {str(i): label for i, label in enumerate(labels)}
            config["label2id"] = {label: i for i, label in enumerate(labels)}
            config.pop("num_labels", None)  # id2label says it
            notes.append(note)
    return replace(source, config=config, notes=(*source.notes, *notes)) if notes else source


def _classifier(source: Source) -> str | None:
    """Return the name of the classifier's weight, whose rows are the labels; None: there is no complete classifier."""
    heads = architecture(source.config.get("model_type")).heads
    classes = [heads[name] for name in original_architectures(source.config) if name in heads]
    if any(head.kind is HeadKind.CHOICE for head in classes):  # one score for each choice
        return None
    for path in dict.fromkeys(head.labels for head in heads.values() if head.labels is not None):
        weight, bias = source.entries.get(f"{path}.weight"), source.entries.get(f"{path}.bias")
        if weight is not None and bias is not None:
            whole = len(weight.shape) == 2 and bias.shape == weight.shape[:1] and weight.shape[0] > 0
            return f"{path}.weight" if whole else None
    return None


def _names_each_output(names: Any, rows: int | None) -> bool:
    """Return whether `id2label` names the outputs 0, 1, 2, … by texts: `rows` outputs, unless that is None."""
    if not isinstance(names, Mapping):
        return False
    try:
        indexes = {int(index) for index in names}
    except (TypeError, ValueError):
        return False
    texts = all(isinstance(name, str) for name in names.values())
    return texts and 0 < len(names) == len(indexes) and indexes == set(range(len(names) if rows is None else rows))


def _fitted_labels(config: Mapping[str, Any], rows: int, has_rows: str) -> tuple[list[str], str]:
    """Return a name for each row and a note; `has_rows` says in words how many rows there are."""
    names = config.get("id2label")
    generic = [f"LABEL_{i}" for i in range(rows)]
    called = f"labels are LABEL_0 to LABEL_{rows - 1}" if rows > 1 else "its label is LABEL_0"
    if not isinstance(names, Mapping):
        stated = "no number of labels (2 is then meant)"
        if "num_labels" in config:
            stated = f"num_labels {printable(repr(config['num_labels']), 60)}"
        elif names is not None:
            stated = "no readable labels (id2label is not an object)"
        return generic, f"config.json says {stated}, and {has_rows}: {called}"
    known = {str(index): str(name) for index, name in names.items() if type(name) in (str, int, float)}
    fits = set(known) <= {str(i) for i in range(rows)} and str(rows - 1) in known
    if len(names) != rows and not fits:
        count = f"{len(names)} label{'s' if len(names) != 1 else ''}"
        return generic, (
            f"config.json names {count}, and {has_rows}: which is which is not known, so {called}; "
            "fix: put the right id2label into the source's config.json, and convert again"
        )
    labels = [known.get(str(i), label) for i, label in enumerate(generic)]
    labels = labels if len(set(labels)) == rows else generic
    keys, shown = printable(", ".join(map(str, names)), 80), printable(", ".join(labels), 160)
    return labels, (
        f"id2label does not name each output once by a text (its keys: {keys}), and {has_rows}: labels are {shown}"
    )


@dataclass(frozen=True)
class Layout:
    """The names and the files of a directory's tensors.

    Attributes:
        architecture: the class in `config.json`; None: the encoder's.
        prefix: the beginning of the encoder's names in that class.
        labels: whether the class has labels.
    """

    architecture: str | None = None
    prefix: str = ""
    labels: bool = False

    @property
    def is_full(self) -> bool:
        """Whether the head lies in `model.safetensors`."""
        return self.architecture is not None

    def weights(
        self, encoder: Iterable[PlannedTensor], heads: Sequence[PlannedTensor]
    ) -> tuple[list[PlannedTensor], list[PlannedTensor]]:
        """Return the tensors of `model.safetensors` and those of `heads.safetensors`."""
        if not self.is_full:
            return list(encoder), list(heads)
        return [*(replace(tensor, name=self.prefix + tensor.name) for tensor in encoder), *heads], []

    def other_bytes(self, encoder: Sequence[Planned], heads: Sequence[PlannedTensor]) -> int:
        """Return the most bytes that this layout adds to the encoder's tensors and their header."""
        longer = 3 * len(self.prefix) * len(encoder) if self.is_full else 0  # a packed matrix has three names
        return longer + (safetensors_bytes(heads) if heads else 0)

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a conversion's `config.json` with the changes of this layout."""
        if not self.is_full:
            return config
        config = {**config, "architectures": [self.architecture], "mlxbert": {**config["mlxbert"], "layout": FULL}}
        if self.labels:
            # transformers leaves out the two labels that it assumes by default; other packages then assume one.
            names = Labels.from_hf(config).id2label
            config.setdefault("id2label", {str(index): name for index, name in names.items()})
            config.setdefault("label2id", {name: index for index, name in names.items()})
        return config


def choose_layout(source: Source, name: str) -> Layout:
    """Return the layout `name` for this source.

    Raises:
        OutputError: there is no such layout, or the source has no complete head of a transformers class.
        HeadClassError: the source does not tell the class of its head.
    """
    if name not in LAYOUTS:
        raise OutputError(f"layout {name!r} is unknown; fix: one of {', '.join(LAYOUTS)}")
    if name == ENCODER:
        return Layout()
    declared = architecture(source.config.get("model_type"))
    if source.own_head:
        raise OutputError(
            f"{source.location}: its head was trained by mlxbert, which no class of transformers has; fix: "
            f"mlxbert-export {source.location} -o OUT, and if that writes a {declared.head_of(HeadKind.SEQUENCE)}, "
            "mlxbert-convert OUT --layout full"
        )
    heads = [key for key in source.entries if declared.is_head_tensor(key)]
    if not heads:
        raise OutputError(
            f"{source.location}: no head is read from it, so it has no full layout; fix: leave --layout full out"
        )
    has_pooler = any(map(declared.is_pooler, source.entries))
    choice = choose_head_class(source.config, heads, has_pooler=has_pooler, place=source.location)
    return Layout(choice.name, declared.prefix, declared.heads[choice.name].labels is not None)


def output_config(
    source: Source, planned: Plan, dtype: str, card: SourceCard, quantized: Quantized | None
) -> dict[str, Any]:
    """Return the source's `config.json` with true `dtype` and `architectures`, and our own block."""
    declared = architecture(source.config.get("model_type"))
    config = declared.written_config({**source.config, "architectures": [declared.encoder_class], "dtype": dtype})
    if "torch_dtype" in config:  # what transformers < 4.56 reads
        config["torch_dtype"] = dtype
    config = without_places(config)
    # SRC may be our own output; its "layout" and "quantization" are no longer valid.
    block = source.config.get("mlxbert")
    earlier = block if isinstance(block, dict) else {}
    origin, revision = source.name, source.revision
    if source.revision is None and earlier.get("source") and "head" not in earlier:
        # A model that is converted again keeps its first source, which a comparison must prove (converter/publish);
        # a trained one is not.
        origin, revision = earlier["source"], earlier.get("revision")
    options = ["prefix", "encoder_only"]  # a comparison with the first source needs the same options
    config["mlxbert"] = {
        "format_version": FORMAT_VERSION,
        "source": origin,
        "revision": revision,
        "converter_version": converter_version(),
        "original_architectures": earlier.get("original_architectures") or source.config.get("architectures"),
        "dropped": planned.dropped,
        "source_card": card.as_block(),
        **{key: earlier[key] for key in options if key in earlier},
        **source.choices,
        **{key: earlier[key] for key in ("head", "trained") if source.own_head and key in earlier},
    }
    ours = {"architectures", "dtype", "mlxbert"}
    if added := [*added_fields(earlier), *(key for key in config if key not in source.config and key not in ours)]:
        config["mlxbert"]["added"] = added
    if quantized is not None:
        config["quantization"] = quantized.config.to_mlx(declared)
        config["quantization_config"] = quantized.config.to_mlx(declared)
        config["mlxbert"]["quantization"] = dict(quantized.facts)
    return config


def added_fields(block: Mapping[str, Any]) -> list[str]:
    """Return the fields that a conversion added to `config.json`: other spellings of the source's fields."""
    added = block.get("added")
    return [name for name in added if isinstance(name, str)] if isinstance(added, list) else []


def without_places(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a source's JSON file with paths of the machine that wrote it cut to their last part.

    A path tells who trained the model, and where; transformers leaves some in `config.json` ("_name_or_path") and in
    `tokenizer_config.json` ("name_or_path", "special_tokens_map_file", "tokenizer_file").
    """
    return {
        name: PurePath(value.replace("\\", "/")).name if _is_place(name, value) else value
        for name, value in values.items()
    }


def _is_place(name: str, value: object) -> bool:
    named = name.endswith(("name_or_path", "_file"))
    return named and isinstance(value, str) and re.match(r"/|~|\.\.|file:|[A-Za-z]:|.*\\", value) is not None


def notes_on(source: Source, planned: Plan, dtype: str) -> list[str]:
    """Return notes for the user on dtypes, pooler and tokenizer."""
    notes = []
    kinds = Counter(source.entries[item.source].dtype for item in planned.encoder)
    if "F64" in kinds and dtype == "float32":
        notes.append(f"{kinds['F64']} float64 tensors become float32: MLX has no float64 on a GPU")
    elif len(kinds) > 1:
        notes.append(f"the source mixes {', '.join(sorted(kinds))}: all become {dtype}")
    declared = architecture(source.config.get("model_type"))
    if declared.has_pooler and not any(declared.is_pooler(item.target) for item in planned.encoder):
        notes.append("the source has no pooler, so neither has the output")
    if not has_tokenizer(source.side_files):
        names = tokenizer_names(source.directory, source.config)
        notes.append(f"the source has no tokenizer ({names}): put one there, and convert again, to encode text")
    return notes


def converter_version() -> str:
    """Return the installed version of mlxbert."""
    try:
        return version("mlxbert")
    except PackageNotFoundError:
        return "0+uninstalled"


def write_side_files(output: OutputDirectory, source: Source, hidden_size: int) -> None:
    """Write the files of the tokenizer and of sentence-transformers, changed only where the output needs it.

    `modules.json` names the folders of the output; a Pooling module has the keys of old and new releases; weights of
    modules become safetensors; the tokenizer's configuration loses paths of the machine that wrote it.

    Raises:
        SourceError, SentenceModuleError, WriteError: a file is damaged, or cannot be written.
    """
    poolings = {module.folder: module for module in source.modules if module.entry.kind == "Pooling"}
    for name, file in source.side_files.items():
        folder, _, last = name.rpartition("/")
        changed: Any = None
        if _MODULE_WEIGHTS.fullmatch(name):
            _write_module_weights(output, name, file)
            continue
        if name == MODULES:
            changed = _modules_in_output(file, source.modules)
        elif folder in poolings and last == "config.json":
            changed = _pooling_in_both_spellings(file, hidden_size)
        elif name == "tokenizer_config.json":
            changed = _tokenizer_config(file)
        if changed is None:
            output.copy(name, file)
        else:
            output.write_json(name, changed)


def check_staged(directory: Path, config: Mapping[str, Any], source: Source) -> None:
    """Load the written files as a user does, without the weights: headers, tokenizer and sentence modules.

    A sentence-transformers module that mlxbert does not compute is allowed; the model card names it.

    Args:
        directory: the output without its `config.json`.
        config: the content of that file.
        source: the source, for messages.

    Raises:
        OutputError: a file cannot be loaded.
    """
    core = load_core(directory, config=dict(config), lazy=True)
    try:
        part = " and ".join(name for name in _TOKENIZERS if name in source.side_files)
        tokenizer = None
        if has_tokenizer(source.side_files):
            tokenizer = load_tokenizer(directory, core.config, hf_config=config)
        part = MODULES
        plan = read_sentence_plan(directory, config)
        if plan is not None and tokenizer is not None:
            SentenceEncoder(core, tokenizer, plan)
    except UnsupportedModuleError:
        return
    except MLXBertError as error:
        message = str(error).replace(str(directory), str(source.directory))
        raise OutputError(
            f"{message}; nothing was written; without {part}, {source.name} converts to an encoder alone"
        ) from error


def _modules_in_output(file: Path, modules: tuple[SourceModule, ...]) -> list[dict[str, Any]] | None:
    """Return `modules.json` with the output's folders; None if these are the source's."""
    if all(module.entry.folder == module.folder for module in modules):
        return None
    entries = [dict(entry) for entry in parse_json(file, SourceError)]
    for entry, module in zip(entries, modules, strict=True):
        entry["path"] = module.folder
        if not module.folder:
            entry["type"] = _TRANSFORMER
    return entries


def _pooling_in_both_spellings(file: Path, hidden_size: int) -> dict[str, Any] | None:
    try:
        return both_spellings(read_json_object(file), file.parent, hidden_size)
    except UnsupportedModuleError:  # `check_staged` reports it for the whole output
        return None


def _tokenizer_config(file: Path) -> dict[str, Any] | None:
    """Return the tokenizer's configuration without paths of the machine that wrote it; None if it has no paths."""
    try:
        values = read_json_object(file)
    except SourceError:  # the tokenizer's own reader reports it in `check_staged`
        return None
    cleaned = without_places(values)
    return None if cleaned == values else cleaned


def _write_module_weights(output: OutputDirectory, name: str, file: Path) -> None:
    """Write a module's weights as safetensors that MLX can read: no pickles, no float64."""
    entries = read_weights(file).entries
    if file.suffix == ".safetensors" and all(entry.dtype != "F64" for entry in entries.values()):
        output.copy(name, file)
        return
    target = str(PurePosixPath(name).with_name("model.safetensors"))
    output.write_safetensors(target, [_without_float64(key, entry) for key, entry in entries.items()])


def _without_float64(name: str, entry: TensorEntry) -> PlannedTensor:
    if entry.dtype != "F64":
        return PlannedTensor(name, entry.shape, entry.dtype, entry.read)
    return PlannedTensor(name, entry.shape, "F32", lambda: entry.read().astype(np.float32))
