"""Finds and reads the files of a source: configuration, weights, tokenizer and sentence-transformers modules.

Files are chosen by their names, so that one rule serves directories and Hub repositories. safetensors files come
before pickles, and pickles before .npz; two formats are never both downloaded or read. Weight files are then read by
their content.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from converter.mappings import supported
from converter.readers.safetensors import TensorEntry, Weights, read_safetensors, read_shards
from converter.readers.source_files import (
    FLAX_FIX,
    TENSORFLOW_FIX,
    SourceError,
    check_file,
    identify,
    read_json_object,
)
from converter.readers.torch_files import find_state_dict, is_torch_zip, read_torch_legacy, read_torch_zip
from converter.readers.zip_archive import ZipArchive, read_npz
from mlxbert.checkpoint import is_license_file
from mlxbert.encode.sentence_modules import MODULES, TRANSFORMER_CONFIGS, ModuleEntry, read_modules
from mlxbert.errors import first_ten, printable
from mlxbert.tokenization.files import TOKENIZER_FILES
from mlxbert.with_head import HEADS_FILE

# The name in transformers, then those in the architectures' own releases: ARCHITECTURE_config.json.
_CONFIG_FILES = ("config.json", *(f"{model_type}_config.json" for model_type in supported()))
_ORIGINAL = "fix: give the original, unquantized checkpoint as SRC"
_UNPACK = f"{_ORIGINAL}, or --dequantize"
_INDEX_SUFFIX = ".index.json"
CARD = "README.md"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz")
_SHARD = re.compile(r"(?P<stem>.+)-(\d+)-of-(?P<total>\d+)(?P<suffix>\.[a-z]+)")
# Files that training and other tools write beside a model, with the suffix of a weight file.
_NOT_THE_MODEL = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|adapter_model|openvino|pytorch_lora"
    r"|heads\.safetensors$|\.)"  # heads: this project's own, read beside model.safetensors
)
_STANDARD = (("model.safetensors",), ("pytorch_model.bin",), ("weights.npz", "model.npz"))
_ELSEWHERE = "fix: get the model's PyTorch or safetensors weights; these cannot be turned back"
_FOREIGN: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("TensorFlow", re.compile(r"(.*/)?([^/]*\.h5|saved_model\.pb|[^/]*\.ckpt\.(index|meta|data-.*))"), TENSORFLOW_FIX),
    ("Flax", re.compile(r"(.*/)?[^/]*\.msgpack"), FLAX_FIX),
    ("ONNX", re.compile(r"(.*/)?[^/]*\.onnx"), _ELSEWHERE),
    ("OpenVINO", re.compile(r"(.*/)?openvino[^/]*\.(xml|bin)"), _ELSEWHERE),
    ("Rust (rust-bert)", re.compile(r"(.*/)?rust_model\.ot"), _ELSEWHERE),
    ("GGUF", re.compile(r"(.*/)?[^/]*\.gguf"), _ELSEWHERE),
    ("Core ML", re.compile(r"(.*/)?[^/]*\.(mlmodel|mlpackage/.*)"), _ELSEWHERE),
)
_SENTENCE_FILES = (MODULES, "config_sentence_transformers.json")
# Files in the folder of a sentence-transformers module: 1_Pooling/config.json, 2_Dense/model.safetensors.
_MODULE_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")
_MODULE_FOLDER = re.compile(r"\d+_\w+")
_STANDARD_FOLDER = re.compile(r"\d+_\w+", re.ASCII)
# The transformer's class in sentence-transformers; before 0.3 it had the name of the architecture.
_TRANSFORMERS = ("transformer", *supported())
_TRANSFORMER = re.compile(rf"\d+_({'|'.join(_TRANSFORMERS)})", re.IGNORECASE)
_SENTENCE_CONFIGS = "sentence_*_config.json"
_ADAPTER = re.compile(r"adapter_(config\.json|model\..+)")


def has_config(directory: Path) -> bool:
    """Return whether a configuration lies in a directory."""
    return any(os.path.lexists(directory / name) for name in _CONFIG_FILES)


def read_config(
    directory: Path, config: Path | None, *, root: Path, lightning: bool = False, dequantize: bool = False
) -> tuple[dict[str, Any], Path]:
    """Return the parsed configuration and its file.

    Args:
        directory: where the weights lie.
        config: the file to read instead of the one in the directory.
        root: the directory that no link may lead out of.
        lightning: whether the weights are a PyTorch Lightning checkpoint.
        dequantize: whether the weights must be quantized, or must not be.

    Raises:
        SourceError: the file is missing, a link out of `root`, invalid, or contradicts `dequantize`.
    """
    path = config or next(filter(os.path.lexists, (directory / name for name in _CONFIG_FILES)), None)
    if path is None:
        aside = (
            " (the Lightning checkpoint's hyper_parameters belong to its training script and are no config.json)"
            if lightning
            else ""
        )
        raise SourceError(
            f"{directory}: no config.json beside the weights{aside}; "
            "fix: put the model's config.json there, or pass --config FILE"
        )
    if config is None:
        check_file(path, root)
    parsed = read_json_object(path)
    mlx, other = parsed.get("quantization"), parsed.get("quantization_config")
    if dequantize:
        if not isinstance(mlx, dict):
            raise SourceError(f'{path}: has no "quantization": nothing to unpack; fix: leave --dequantize out')
        return parsed, path
    if mlx:
        bits = mlx.get("bits") if isinstance(mlx, dict) else None
        width = f" to {bits} bits" if type(bits) is int else ""
        raise SourceError(
            f'{path}: says "quantization": this is an MLX checkpoint quantized{width} already; {_UNPACK}'
        )
    if other:
        method = other.get("quant_method") if isinstance(other, dict) else None
        by = f" by {printable(method)}" if isinstance(method, str) else ""
        raise SourceError(f'{path}: says "quantization_config": its weights are quantized{by} already; {_ORIGINAL}')
    return parsed, path


def refuse_quantized(file: Path, entries: Mapping[str, TensorEntry]) -> None:
    """Raise SourceError if there are packed MLX weights: an `x.weight` of uint32 beside `x.scales`."""
    for key, entry in entries.items():
        stem = key.removesuffix(".weight")
        if entry.dtype == "U32" and stem != key and f"{stem}.scales" in entries:
            raise SourceError(
                f"{file}: {printable(key)} is packed uint32 beside {printable(stem)}.scales: this is an MLX "
                f"checkpoint quantized already; {_UNPACK}"
            )


@dataclass(frozen=True)
class WeightChoice:
    """The file to read (a weight file, or the index of several), and notes for the user."""

    name: str
    notes: tuple[str, ...] = ()

    @property
    def is_index(self) -> bool:
        """Whether the file lists shards instead of holding tensors."""
        return self.name.endswith(_INDEX_SUFFIX)


def choose_weights(where: str, names: Collection[str]) -> WeightChoice:
    """Choose the weights among the files of a directory or repository.

    Args:
        where: the directory or repository, for messages.
        names: relative POSIX names; those in folders only help to explain a refusal.

    Raises:
        SourceError: there are no weights (the message names those of other frameworks), several candidates, or shards
            without their index.
    """
    root = {name for name in names if "/" not in name}
    formats: list[str] = []
    for standard in _STANDARD:
        # The single file comes before the index, as in transformers.
        options = [*standard, *(f"{name}{_INDEX_SUFFIX}" for name in standard)]
        formats += [name for name in options if name in root][:1]
    if not formats:
        return _choose_unusual(where, root, names)
    chosen, *ignored = formats
    if adapter := sorted(name for name in root if _ADAPTER.fullmatch(name)):
        raise SourceError(
            f"{where}: has a PEFT adapter ({adapter[0]}) beside {chosen}, and whether these weights contain it is "
            "not known; fix: merge_and_unload() it, save_pretrained(DIR), and convert DIR; if they do, give "
            f"{chosen} itself as SRC"
        )
    notes = [f"several formats present: {chosen} used, {', '.join(ignored)} ignored"] if ignored else []
    index = f"{chosen}{_INDEX_SUFFIX}"
    if index in root and any((m := _SHARD.fullmatch(n)) and _index_of(m) == index for n in root):
        notes.append(f"both one file and shards present: {chosen} used, the shards ignored")
    return WeightChoice(chosen, tuple(notes))


def select_files(names: Sequence[str], folder: str | None = None) -> list[str]:
    """Return the files of a Hub repository that a conversion needs, in the repository's order.

    These are the weights in one format, the configuration, the tokenizer and the files of sentence-transformers.

    Args:
        names: every file of the repository.
        folder: where the weights lie ("0_Transformer" in old releases of sentence-transformers); None: infer it from
            the names.

    Raises:
        SourceError: as `choose_weights`.
    """
    folder = _transformer_by_name(names) if folder is None else folder
    begin = f"{folder}/" if folder else ""
    inside = [name.removeprefix(begin) for name in names if name.startswith(begin)]
    choice = choose_weights("the repository", inside)
    wanted = {choice.name, f"{choice.name}{_INDEX_SUFFIX}", *TOKENIZER_FILES, *_SENTENCE_FILES}
    wanted |= set([name for name in _CONFIG_FILES if name in inside][:1])
    wanted |= {name for name in inside if fnmatch(name, _SENTENCE_CONFIGS)}
    if choice.is_index:
        wanted |= {name for name in inside if (m := _SHARD.fullmatch(name)) and _index_of(m) == choice.name}
    if ".safetensors" in choice.name:
        wanted.add(HEADS_FILE)  # of a model that this project converted
    wanted = {begin + name for name in wanted} | {*TOKENIZER_FILES, *_SENTENCE_FILES}
    for other in {name.split("/")[0] for name in names if name.count("/") == 1} - {folder}:
        if _MODULE_FOLDER.fullmatch(other) and not _TRANSFORMER.fullmatch(other):
            wanted |= set(_module_files(other, names))
    return [name for name in dict.fromkeys(names) if name in wanted]


def select_first_files(names: Sequence[str]) -> list[str]:
    """Return the files of a Hub repository that show, before the weights are downloaded, whether it can be converted.

    These are the configuration and `modules.json`. Without a configuration: all that `select_files` returns.

    Raises:
        SourceError: as `select_files`.
    """
    folder = _transformer_by_name(names)
    begin = f"{folder}/" if folder else ""
    config = next((begin + name for name in _CONFIG_FILES if begin + name in names), None)
    return [name for name in names if name in (config, MODULES)] if config else select_files(names)


def _transformer_by_name(names: Sequence[str]) -> str:
    """Return the transformer's folder ("0_Transformer") where the root has no weights; else "", the root itself."""
    standard = {name for option in _STANDARD for name in option}
    standard |= {f"{name}{_INDEX_SUFFIX}" for name in standard}
    parts = [name.split("/") for name in names]
    if MODULES not in names or any(part[0] in standard for part in parts if len(part) == 1):
        return ""
    folders = {part[0] for part in parts if len(part) == 2 and part[1] in standard and _TRANSFORMER.fullmatch(part[0])}
    return folders.pop() if len(folders) == 1 else ""


def _module_files(folder: str, names: Collection[str]) -> list[str]:
    """Return a sentence-transformers module's files among `names`: its configuration and one format of its weights."""
    there = [f"{folder}/{name}" for name in _MODULE_FILES if f"{folder}/{name}" in names]
    if f"{folder}/model.safetensors" in there:
        there = [name for name in there if not name.endswith(".bin")]
    return there


def refuse_lone_shard(where: str, name: str) -> None:
    """Raise SourceError if the name of a file says that it is one of several shards."""
    match = _SHARD.fullmatch(name)
    if match and int(match["total"]) > 1:
        raise SourceError(
            f"{where}: is one of {int(match['total'])} shards; fix: give the directory, with {_index_of(match)} in it"
        )


def _index_of(match: re.Match[str]) -> str:
    return f"{match['stem']}{match['suffix']}{_INDEX_SUFFIX}"


def _choose_unusual(where: str, root: set[str], names: Collection[str]) -> WeightChoice:
    """Return the only weight file if none has a usual name."""
    indexes = sorted(n for n in root if n.endswith(tuple(f"{suffix}{_INDEX_SUFFIX}" for suffix in WEIGHT_SUFFIXES)))
    files = sorted(n for n in root if n.endswith(WEIGHT_SUFFIXES) and not _NOT_THE_MODEL.match(n))
    shards = [n for n in files if (m := _SHARD.fullmatch(n)) and int(m["total"]) > 1]
    candidates = indexes + [n for n in files if n not in shards]
    if len(candidates) > 1:
        # One model in two formats: model.v2.safetensors beside model.v2.bin.
        stems = {n.removesuffix(_INDEX_SUFFIX).rsplit(".", 1)[0] for n in candidates}
        safe = [n for n in candidates if ".safetensors" in n]
        if len(stems) == 1 and len(safe) == 1:
            others = ", ".join(n for n in candidates if n != safe[0])
            return WeightChoice(safe[0], (f"several formats present: {safe[0]} used, {others} ignored",))
        raise SourceError(
            f"{where}: has {len(candidates)} files that could be the model; "
            f"fix: give the one you mean as SRC\n{first_ten(candidates)}"
        )
    if candidates:
        return WeightChoice(candidates[0])
    if shards:
        match = _SHARD.fullmatch(shards[0])
        assert match
        raise SourceError(
            f"{where}: has shards but not their index {_index_of(match)}; fix: put it beside them\n{first_ten(shards)}"
        )
    raise _no_weights(where, root, names)


def _no_weights(where: str, root: set[str], names: Collection[str]) -> SourceError:
    """Return the error that says what is there instead of weights."""
    if any(name.startswith("adapter_model.") for name in root):
        return SourceError(
            f"{where}: has a PEFT adapter only, not a whole model; fix: --base with the model that it was trained on"
        )
    below = sorted(name for name in names if name.count("/") == 1 and name.endswith(WEIGHT_SUFFIXES))
    folders = sorted(
        {n.split("/")[0] for n in below if n.split("/")[1] in ("model.safetensors", "pytorch_model.bin")}
        - {n.split("/")[0] for n in names if re.match(r"\d+_(Dense|WeightedLayerPooling|LSTM|CNN)/", n)}
    )
    if folders:
        return SourceError(
            f"{where}: has no weights itself, but folders in it do; fix: give one of them as SRC\n{first_ten(folders)}"
        )
    foreign = [(label, fix) for label, pattern, fix in _FOREIGN if any(pattern.fullmatch(n) for n in names)]
    if foreign:
        labels = "/".join(label for label, _ in foreign)
        return SourceError(f"{where}: has {labels} weights only, which are not read; {foreign[0][1]}")
    there = ", ".join(printable(name) for name in sorted(root)[:10]) or "nothing"
    return SourceError(
        f"{where}: has no weights (model.safetensors, pytorch_model.bin, *.npz …; there is: {there}); "
        "fix: check the path, or download the model whole"
    )


@dataclass(frozen=True)
class SourceModule:
    """A sentence-transformers module of a source.

    Attributes:
        entry: its entry in the source's `modules.json`.
        folder: its folder in the output; "" for the transformer, whose files are those of the checkpoint.
    """

    entry: ModuleEntry
    folder: str


def source_modules(root: Path) -> tuple[SourceModule, ...]:
    """Return the modules in a directory's `modules.json`; none without such a file.

    Raises:
        SourceError: the file is no regular file, or a link that leads out of the directory.
        SentenceModuleError: it is malformed.
    """
    path = root / MODULES
    if not os.path.lexists(path):
        return ()
    check_file(path, root)
    entries = read_modules(root) or ()
    transformer = next((entry for entry in entries if entry.kind.lower() in _TRANSFORMERS), None)
    modules = []
    for index, entry in enumerate(entries):
        folder = entry.folder if _STANDARD_FOLDER.fullmatch(entry.folder) else f"{index}_{entry.kind}"
        modules.append(SourceModule(entry, "" if entry is transformer else folder))
    return tuple(modules)


def transformer_folder(modules: Sequence[SourceModule]) -> str:
    """Return the folder of the transformer's files: "0_Transformer" in old releases; "": beside `modules.json`."""
    return next((module.entry.folder for module in modules if not module.folder), "")


def collect_side_files(root: Path, folder: str = "", modules: Sequence[SourceModule] = ()) -> dict[str, Path]:
    """Return the files that go with the weights, by their names in the output.

    Args:
        root: the directory that is converted.
        folder: the transformer's folder in it.
        modules: the modules in its `modules.json`.

    Raises:
        SourceError: one of them is a link that leads out of `root`, a pipe or device, a Git-LFS pointer or a web page.
    """
    model_files = (*TOKENIZER_FILES, *TRANSFORMER_CONFIGS)
    files = {name: root / folder / name for name in model_files} | {name: root / name for name in _SENTENCE_FILES}
    for module in modules:
        if module.folder:
            place = root / module.entry.folder
            names = [f"{module.folder}/{name}" for name in _MODULE_FILES if os.path.lexists(place / name)]
            files |= {name: place / name.rpartition("/")[2] for name in _module_files(module.folder, names)}
    files |= {file.name: file for file in sorted(root.iterdir()) if is_license_file(file.name) and not file.is_dir()}
    files = {name: path for name, path in files.items() if os.path.lexists(path)}
    for path in files.values():
        check_file(path, root)
    return files


def read_weights(path: Path) -> Weights:
    """Read a weight file by its content, whatever its name; raise SourceError if it is unreadable or empty."""
    kind = identify(path)
    if kind == "safetensors":
        weights = Weights("safetensors", read_safetensors(path), (path,))
    elif kind == "pickle":
        weights = find_state_dict(read_torch_legacy(path))
    else:
        archive = ZipArchive(path)
        if is_torch_zip(archive):
            weights = find_state_dict(read_torch_zip(archive))
        elif any(name.endswith(".npy") for name in archive.names):
            weights = Weights("npz", read_npz(archive), (path,))
        else:
            raise SourceError(
                f"{path}: is a zip without a torch pickle or .npy arrays; fix: unpack it and give the directory"
            )
    if not weights.entries:
        raise SourceError(f"{path}: holds no tensors; fix: save the model's state_dict() into it")
    return weights


def read_sharded(index: Path, root: Path) -> Weights:
    """Read every shard that an index names; none may be a link out of `root`."""
    shards: list[Weights] = []

    def read(shard: Path) -> dict[str, TensorEntry]:
        shards.append(read_weights(shard))
        return shards[-1].entries

    entries = read_shards(index, root, read)
    formats = {shard.format for shard in shards}
    if len(formats) > 1:
        raise SourceError(f"{index}: names shards of different formats; fix: get the shards and their index again")
    files = tuple(file for shard in shards for file in shard.files)
    return Weights(formats.pop(), entries, files, tuple(note for shard in shards for note in shard.notes))
