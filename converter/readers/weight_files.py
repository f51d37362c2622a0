"""A source's config.json, and what in a source says that it is quantized already.

Which files of a directory or repository hold the model: chosen by name, so that one rule serves both.

safetensors come before pickles, which come before .npz; two formats are never both fetched or read.

The files that go with the weights: tokenizer, sentence-transformers modules, and the rights to all of it.

Reads one weight file, or the shards of an index, whatever its format; names are still the file's own.
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
from converter.readers.safetensors import TensorEntry, read_safetensors, read_shards
from converter.readers.source_files import TF_FIX, SourceError, check_file, identify, read_json_object
from converter.readers.torch_files import TorchFile, find_state_dict, is_torch_zip, read_torch_legacy, read_torch_zip
from converter.readers.zip_archive import ZipArchive, read_npz
from mlxbert.checkpoint import is_license_file
from mlxbert.encode.sentence_modules import MODULES, TRANSFORMER_CONFIGS, ModuleEntry, read_modules
from mlxbert.errors import first_ten, printable

# Transformers' name, then those of the architectures' own releases: bert_config.json
CONFIG_FILES = ("config.json", *(f"{model_type}_config.json" for model_type in supported()))
_ORIGINAL = "fix: give the original, unquantized checkpoint as SRC"
_UNPACK = f"{_ORIGINAL}, or --dequantize"


def read_config(
    directory: Path, config: Path | None, *, root: Path, lightning: bool = False, dequantize: bool = False
) -> tuple[dict[str, Any], Path]:
    """The parsed configuration, and the file: `config`, or one of CONFIG_FILES in the directory.

    Raises:
        SourceError: it is missing, a link out of `root`, invalid, or says that the weights are quantized (with
            `dequantize`: that they are not).
    """
    beside = (directory / name for name in CONFIG_FILES)
    path = config or next(filter(os.path.lexists, beside), None)
    if path is None:
        aside = (
            " (the Lightning checkpoint's hyper_parameters belong to its training script and are no BERT config)"
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
        to = f" to {bits} bits" if type(bits) is int else ""
        raise SourceError(f'{path}: says "quantization": this is an MLX checkpoint quantized{to} already; {_UNPACK}')
    if other:
        method = other.get("quant_method") if isinstance(other, dict) else None
        by = f" by {printable(method)}" if isinstance(method, str) else ""
        raise SourceError(f'{path}: says "quantization_config": its weights are quantized{by} already; {_ORIGINAL}')
    return parsed, path


def refuse_quantized(where: Path, entries: Mapping[str, TensorEntry]) -> None:
    """Raise SourceError for MLX's packed weights: `x.weight` of uint32 beside `x.scales`."""
    for key, entry in entries.items():
        stem = key.removesuffix(".weight")
        if entry.dtype == "U32" and stem != key and f"{stem}.scales" in entries:
            raise SourceError(
                f"{where}: {printable(key)} is packed uint32 beside {printable(stem)}.scales: this is an MLX "
                f"checkpoint quantized already; {_UNPACK}"
            )


INDEX_SUFFIX = ".index.json"
CARD = "README.md"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz")
SHARD = re.compile(r"(?P<stem>.+)-(\d+)-of-(?P<total>\d+)(?P<suffix>\.[a-z]+)")
# what training and other tools write beside a model under a weight file's suffix
_NOT_THE_MODEL = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|adapter_model|openvino|pytorch_lora"
    r"|heads\.safetensors$|\.)"  # heads: this project's own, read beside model.safetensors
)
_STANDARD = (
    ("model.safetensors",),
    ("pytorch_model.bin",),
    ("weights.npz", "model.npz"),
)
_TENSORFLOW = TF_FIX.format(label="TensorFlow", flag="from_tf")
_FLAX = TF_FIX.format(label="Flax", flag="from_flax")
_ELSEWHERE = "fix: get the model's PyTorch or safetensors weights; these cannot be turned back"
_FOREIGN: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (
        "TensorFlow",
        re.compile(r"(.*/)?([^/]*\.h5|saved_model\.pb|[^/]*\.ckpt\.(index|meta|data-.*))"),
        _TENSORFLOW,
    ),
    ("Flax", re.compile(r"(.*/)?[^/]*\.msgpack"), _FLAX),
    ("ONNX", re.compile(r"(.*/)?[^/]*\.onnx"), _ELSEWHERE),
    ("OpenVINO", re.compile(r"(.*/)?openvino[^/]*\.(xml|bin)"), _ELSEWHERE),
    ("Rust (rust-bert)", re.compile(r"(.*/)?rust_model\.ot"), _ELSEWHERE),
    ("GGUF", re.compile(r"(.*/)?[^/]*\.gguf"), _ELSEWHERE),
    ("Core ML", re.compile(r"(.*/)?[^/]*\.(mlmodel|mlpackage/.*)"), _ELSEWHERE),
)
TOKENIZER_SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "added_tokens.json",
)
SIDE_FILES = (
    *TOKENIZER_SIDE_FILES,
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
# what a sentence-transformers module's folder may have: 1_Pooling/config.json, 2_Dense/model.safetensors
MODULE_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")
_MODULE_FOLDER = re.compile(r"\d+_\w+")
_TRANSFORMER = re.compile(r"\d+_(Transformer|BERT)")
SENTENCE_CONFIGS = "sentence_*_config.json"
_ADAPTER = re.compile(r"adapter_(config\.json|model\..+)")


@dataclass(frozen=True)
class WeightChoice:
    """The file to read (a weight file, or the index of several) and what to tell the user about it."""

    name: str
    notes: tuple[str, ...] = ()

    @property
    def is_index(self) -> bool:
        """Whether it lists shards instead of holding tensors."""
        return self.name.endswith(INDEX_SUFFIX)


def choose_weights(where: str, names: Collection[str]) -> WeightChoice:
    """Choose among relative POSIX names (folders' files included, which only help to explain a refusal).

    Raises SourceError: no weights (and which other framework's are there), several candidates, shards
    without their index.
    """
    root = {name for name in names if "/" not in name}
    found: list[str] = []
    for standard in _STANDARD:
        # as transformers: the single file comes before the index
        options = [*standard, *(f"{name}{INDEX_SUFFIX}" for name in standard)]
        found += [name for name in options if name in root][:1]
    if not found:
        return _unusual(where, root, names)
    if adapter := sorted(name for name in root if _ADAPTER.fullmatch(name)):
        raise SourceError(
            f"{where}: has a PEFT adapter ({adapter[0]}) beside {found[0]}, and whether these weights contain it is "
            "not known; fix: merge_and_unload() it, save_pretrained(DIR), and convert DIR; if they do, give "
            f"{found[0]} itself as SRC"
        )
    chosen, notes = found[0], []
    if len(found) > 1:
        notes.append(f"several formats present: {chosen} used, {', '.join(found[1:])} ignored")
    index = f"{chosen}{INDEX_SUFFIX}"
    if index in root and any((m := SHARD.fullmatch(n)) and _index_of(m) == index for n in root):
        notes.append(f"both one file and shards present: {chosen} used, the shards ignored")
    return WeightChoice(chosen, tuple(notes))


def select_files(names: Sequence[str], folder: str | None = None) -> list[str]:
    """The files of a Hub repository that a conversion needs, in the repository's order.

    One format of weights alone (safetensors before pickles), the configuration, tokenizer and sentence-transformers
    files. `folder` is where the weights are ("0_Transformer" in old releases of sentence-transformers); None: as the
    names suggest. Raises SourceError as `choose_weights` does, before anything is downloaded.
    """
    folder = _transformer_by_name(names) if folder is None else folder
    begin = f"{folder}/" if folder else ""
    inside = [name.removeprefix(begin) for name in names if name.startswith(begin)]
    choice = choose_weights("the repository", inside)
    wanted = {choice.name, f"{choice.name}{INDEX_SUFFIX}", *SIDE_FILES}
    wanted |= set([name for name in CONFIG_FILES if name in inside][:1])
    wanted |= {name for name in inside if fnmatch(name, SENTENCE_CONFIGS)}
    if choice.is_index:
        wanted |= {name for name in inside if (m := SHARD.fullmatch(name)) and _index_of(m) == choice.name}
    if ".safetensors" in choice.name:
        wanted.add("heads.safetensors")  # of a model that this project converted
    wanted = {begin + name for name in wanted} | ({*SIDE_FILES} if folder else set())
    for other in {name.split("/")[0] for name in names if name.count("/") == 1} - {folder}:
        if _MODULE_FOLDER.fullmatch(other) and not _TRANSFORMER.fullmatch(other):
            wanted |= set(module_files(other, names))
    return [name for name in dict.fromkeys(names) if name in wanted]


def _transformer_by_name(names: Sequence[str]) -> str:
    """The folder of the transformer where the root has no weights: "0_Transformer"; "" for the root itself."""
    standard = {name for option in _STANDARD for name in option}
    standard |= {f"{name}{INDEX_SUFFIX}" for name in standard}
    parts = [name.split("/") for name in names]
    if "modules.json" not in names or any(part[0] in standard for part in parts if len(part) == 1):
        return ""
    folders = {part[0] for part in parts if len(part) == 2 and part[1] in standard and _TRANSFORMER.fullmatch(part[0])}
    return folders.pop() if len(folders) == 1 else ""


def module_files(folder: str, names: Collection[str]) -> list[str]:
    """A sentence-transformers module's files among `names`: its config, and one format of its weights."""
    there = [f"{folder}/{name}" for name in MODULE_FILES if f"{folder}/{name}" in names]
    if f"{folder}/model.safetensors" in there:
        there = [name for name in there if not name.endswith(".bin")]
    return there


def refuse_lone_shard(where: str, name: str) -> None:
    """Raise SourceError when a single file's name says that it is one of several shards."""
    match = SHARD.fullmatch(name)
    if match and int(match["total"]) > 1:
        raise SourceError(
            f"{where}: is one of {int(match['total'])} shards; fix: give the directory, with {_index_of(match)} in it"
        )


def _index_of(match: re.Match[str]) -> str:
    return f"{match['stem']}{match['suffix']}{INDEX_SUFFIX}"


def _unusual(where: str, root: set[str], names: Collection[str]) -> WeightChoice:
    """One weight file of any other name, when it is the only one."""
    indexes = sorted(n for n in root if n.endswith(tuple(f"{suffix}{INDEX_SUFFIX}" for suffix in WEIGHT_SUFFIXES)))
    files = sorted(n for n in root if n.endswith(WEIGHT_SUFFIXES) and not _NOT_THE_MODEL.match(n))
    shards = [n for n in files if (m := SHARD.fullmatch(n)) and int(m["total"]) > 1]
    candidates = indexes + [n for n in files if n not in shards]
    if len(candidates) > 1:
        # one model in two formats: model.v2.safetensors beside model.v2.bin
        stems = {n.removesuffix(INDEX_SUFFIX).rsplit(".", 1)[0] for n in candidates}
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
        match = SHARD.fullmatch(shards[0])
        assert match
        raise SourceError(
            f"{where}: has shards but not their index {_index_of(match)}; fix: put it beside them\n{first_ten(shards)}"
        )
    raise _no_weights(where, root, names)


def _no_weights(where: str, root: set[str], names: Collection[str]) -> SourceError:
    if any(name.startswith("adapter_model.") for name in root):
        return SourceError(
            f"{where}: has a PEFT adapter only, not a whole model; "
            "fix: merge_and_unload() it into its base model, save_pretrained() that, and convert the result"
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


# The transformer's class in sentence-transformers; before 0.3 it was called after the architecture.
_TRANSFORMERS = ("Transformer", "BERT")
_STANDARD_FOLDER = re.compile(r"\d+_\w+", re.ASCII)


@dataclass(frozen=True)
class SourceModule:
    """A sentence-transformers module of a source.

    Attributes:
        entry: as the source's `modules.json` has it.
        folder: where its files go; "" for the transformer, whose files are the checkpoint's own.
    """

    entry: ModuleEntry
    folder: str


def source_modules(root: Path) -> tuple[SourceModule, ...]:
    """The modules of a directory's `modules.json`; none where it has no such file.

    Raises:
        SourceError: a link that leads out, or what is no regular file.
        SentenceModuleError: it is malformed.
    """
    path = root / MODULES
    if not os.path.lexists(path):
        return ()
    check_file(path, root)
    entries = read_modules(root) or ()
    transformer = next((entry for entry in entries if entry.kind in _TRANSFORMERS), None)
    return tuple(
        SourceModule(
            entry,
            ""
            if entry is transformer
            else entry.folder
            if _STANDARD_FOLDER.fullmatch(entry.folder)
            else f"{index}_{entry.kind}",
        )
        for index, entry in enumerate(entries)
    )


def transformer_folder(modules: Sequence[SourceModule]) -> str:
    """Where the transformer's files are: "0_Transformer" in old releases; "": beside modules.json."""
    return next((module.entry.folder for module in modules if not module.folder), "")


def collect_side_files(root: Path, folder: str = "", modules: Sequence[SourceModule] = ()) -> dict[str, Path]:
    """Name in the output -> file, for those that exist.

    Args:
        root: the directory that is converted.
        folder: of the transformer in it.
        modules: what its `modules.json` lists.

    Raises:
        SourceError: a link that leads out of `root`, a pipe or device, a Git-LFS pointer or a web page among them.
    """
    model = root / folder
    found = {name: model / name for name in (*SIDE_FILES, *TRANSFORMER_CONFIGS)}
    if folder:
        found |= {
            name: root / name for name in SIDE_FILES if name not in (*TOKENIZER_SIDE_FILES, *TRANSFORMER_CONFIGS)
        }
    for module in modules:
        if module.folder:
            beside = root / module.entry.folder
            there = [f"{module.folder}/{name}" for name in MODULE_FILES if os.path.lexists(beside / name)]
            found |= {name: beside / name.rpartition("/")[2] for name in module_files(module.folder, there)}
    found |= {file.name: file for file in sorted(root.iterdir()) if is_license_file(file.name) and not file.is_dir()}
    found = {name: path for name, path in found.items() if os.path.lexists(path)}
    for path in found.values():
        check_file(path, root)
    return found


def has_tokenizer(side_files: dict[str, Path]) -> bool:
    """Whether there is anything to tokenize with."""
    return any(name in side_files for name in ("tokenizer.json", "vocab.txt"))


@dataclass(frozen=True)
class Weights:
    """The tensors of a file or of all shards."""

    format: str  # "safetensors" | "pytorch" | "npz"
    entries: dict[str, TensorEntry]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    lightning: bool = False  # a PyTorch Lightning checkpoint, which has hyper-parameters but no config


def read_weights(path: Path) -> Weights:
    """Parse a weight file by its contents, not its name; SourceError if it cannot be read or is empty."""
    kind = identify(path)
    if kind == "safetensors":
        weights = Weights("safetensors", read_safetensors(path), (path,))
    elif kind == "pickle":
        weights = _torch(read_torch_legacy(path))
    else:
        archive = ZipArchive(path)
        if is_torch_zip(archive):
            weights = _torch(read_torch_zip(archive))
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
    """Parse every shard that an index names; none may be a link out of `root`."""
    parts: list[Weights] = []

    def read(shard: Path) -> dict[str, TensorEntry]:
        parts.append(read_weights(shard))
        return parts[-1].entries

    entries = read_shards(index, root, read)
    formats = {part.format for part in parts}
    if len(formats) > 1:
        raise SourceError(f"{index}: names shards of different formats; fix: get the shards and their index again")
    files = tuple(file for part in parts for file in part.files)
    return Weights(formats.pop(), entries, files, tuple(note for part in parts for note in part.notes))


def _torch(file: TorchFile) -> Weights:
    found = find_state_dict(file)
    return Weights("pytorch", found.entries, (file.path,), found.notes, found.lightning)
