"""Read a converted checkpoint: the directory that `mlxbert-convert` writes.

The layout is in the README of every converted model: `config.json`, `model*.safetensors` with canonical names, an
index, tokenizer files, `manifest.json`. Loading is strict: the tensors must be exactly those that the
configuration calls for. Checkpoints of other MLX tools (mlx-embeddings, mlx-lm's quantizer) are read too: they have
neither an "mlxbert" block nor a manifest.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxbert.adapters.files import (
    ADAPTER_FILE,
    SETTINGS_FILE,
    Base,
    add_saved,
    is_adapter_directory,
    read_adapter,
)
from mlxbert.adapters.settings import AdapterError
from mlxbert.errors import MLXBertError, first_ten, printable, shown
from mlxbert.files.reading import expand_home, read_json, sha256_hex
from mlxbert.files.safetensors import read_safetensors
from mlxbert.model_arrays import named_parameters, tensor_problems
from mlxbert.models.architecture import architecture, config_from_hf, supported
from mlxbert.models.base import Encoder
from mlxbert.models.config_fields import ConfigError, EncoderConfig
from mlxbert.quantization import QuantizationError, split_quantized
from mlxbert.tokenization.files import SENTENCEPIECE_FILES, TOKENIZER_FILES
from mlxbert.tokenization.tokenizer import Tokenizer

INDEX = "model.safetensors.index.json"
SIDE_FILES = (
    *(name for name in TOKENIZER_FILES if name not in SENTENCEPIECE_FILES),
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
"""Files that loading needs besides the configuration and the weights; see `side_files`."""
_LICENSE_FILE = re.compile(
    r"(licen[cs]e|notice|copying|copyright)s?([-._][\w.-]{0,60})?(\.(txt|md|rst))?", re.IGNORECASE | re.ASCII
)


class CheckpointError(MLXBertError):
    """A directory that is not a converted checkpoint, or a damaged one."""


def load(
    path_or_hub_id: str | Path,
    revision: str | None = None,
    *,
    dtype: mx.Dtype | None = None,
    dequantize: bool | None = None,
    base: str | Path | None = None,
) -> tuple[Encoder, Tokenizer]:
    """Load a converted encoder and its tokenizer, in evaluation mode.

    Args:
        path_or_hub_id: a converted directory, or the id of a converted repository on the Hub.
        revision: a branch, tag or commit of that repository.
        dtype: dtype of the computation; None: the stored dtype on a GPU, and float32 on a CPU, where MLX multiplies
            half precision 40 times slower.
        dequantize: compute with the unpacked weights of a quantized checkpoint (`save` still writes them packed);
            None: only on a CPU, where MLX multiplies packed weights 40 times slower.
        base: the base of an adapter, a directory or an id on the Hub; None: where it was when the adapter was saved.

    Raises:
        CheckpointError: never converted (the message has the command to run), or damaged.
    """
    directory = resolve(path_or_hub_id, revision)
    core = load_core(directory, dtype=dtype, dequantize=dequantize, base=base)
    return core, load_tokenizer(directory, core.config)


def load_tokenizer(
    directory: Path,
    config: EncoderConfig,
    *,
    max_length: int | None = None,
    hf_config: Mapping[str, Any] | None = None,
) -> Tokenizer:
    """Return the tokenizer of a converted directory.

    Args:
        directory: the directory.
        config: the model's configuration.
        max_length: the longest input; None: as many tokens as the model takes.
        hf_config: the content of `config.json`, where that file is not written yet.

    Raises:
        CheckpointError: it has more ids than the model.
        TokenizerError: it is missing or damaged.
    """
    tokenizer = Tokenizer.from_directory(
        directory,
        max_length=max_length or config.max_length,
        model_limit=max_length or config.longest_input,
        type_limit=config.table_rows.get("token_type_ids", 0),
        hf_config=hf_config,
    )
    # MLX reads beyond the end of an embedding without an error, so an id outside of it must never occur.
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} ids and the model {config.vocab_size}; "
            "fix: put the tokenizer there that belongs to this model"
        )
    return tokenizer


def resolve(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """Return the local directory of a converted checkpoint.

    From the Hub, only the needed files are downloaded into its cache; they are compared with the manifest.
    """
    path = expand_home(path_or_hub_id)
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(f"{path} is a directory: revision={revision!r} is for a Hub id")
        read_config(path, other_tools=True)
        return path
    from mlxbert.hub import check_snapshot, is_repo_id, snapshot  # a local directory needs no Hub

    repo_id = str(path_or_hub_id)
    if path.exists() or not is_repo_id(repo_id):
        raise CheckpointError(
            f"{path_or_hub_id}: no such directory, and not a Hub id such as mlx-community/NAME; "
            "fix: check the path, or make one with mlxbert-convert SRC -o DIRECTORY"
        )
    # The small files first: they show whether the repository is converted before half a gigabyte is downloaded.
    told_by = ("config.json", INDEX)
    peek = snapshot(repo_id, revision=revision, select=lambda names: [n for n in names if n in told_by])
    read_config(peek.path, named=repo_id, other_tools=True)
    cached = snapshot(repo_id, revision=peek.revision, select=_needed)
    check_snapshot(cached, _needed)
    return cached.path


def read_config(directory: Path, named: str | None = None, *, other_tools: bool = False) -> dict[str, Any]:
    """Return the parsed `config.json` of a converted directory; with `other_tools`, also of one by mlx-embeddings.

    Raises:
        CheckpointError: there is none, it is not JSON, or the directory was never converted.
    """
    named = named or str(directory)
    config = read_json(directory / "config.json", CheckpointError)
    if config is None:
        member = next(iter(sorted(directory.glob("members/*/config.json"))), None)
        if member is not None:
            raise CheckpointError(f"{named} is a run, not one model; fix: one of its models, such as {member.parent}")
        raise CheckpointError(f"{named}: no config.json, so not a model; fix: mlxbert-convert SRC -o {named}")
    if isinstance(config.get("mlxbert"), dict):
        return config
    # Every tool quantizes in MLX's format and gives an encoder's tensors the same names.
    theirs = isinstance(config.get("quantization"), dict) or _written_by_mlx_tool(directory, config)
    if not (other_tools and theirs):
        output = f"mlx_models/{Path(named).name}"
        raise CheckpointError(f"{named} was never converted; run: mlxbert-convert {named} -o {output}")
    return config


def has_trained_head(config: Mapping[str, Any]) -> bool:
    """Return whether the head is one that mlxbert trained, whatever its tensors are called: its settings are there."""
    block = config.get("mlxbert")
    return isinstance(block, dict) and isinstance(block.get("head"), dict)


def is_full_layout(config: Mapping[str, Any]) -> bool:
    """Return whether `model.safetensors` holds the head too, under the names of transformers' class with that head.

    Raises:
        CheckpointError: the layout is one that this version does not know.
    """
    block = config.get("mlxbert")
    layout = block.get("layout", "encoder") if isinstance(block, dict) else "encoder"
    if layout not in ("encoder", "full"):
        raise CheckpointError(
            f"config.json: layout {layout!r} is unknown to this version; fix: install the newest mlxbert"
        )
    return bool(layout == "full")


def encoder_layout(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config.json` for the same model with its head in a separate file, the layout of saved models."""
    if not is_full_layout(config):
        return dict(config)
    block = {name: value for name, value in config["mlxbert"].items() if name != "layout"}
    return {**config, "architectures": [architecture(config.get("model_type")).encoder_class], "mlxbert": block}


def _written_by_mlx_tool(directory: Path, config: Mapping[str, Any]) -> bool:
    """Return whether the index lists exactly an encoder under its canonical names, as other MLX tools write it.

    PyTorch's tools write an index only for shards, mostly with a prefix before the encoder's names, or with a head.

    Raises:
        CheckpointError: the index is not JSON.
    """
    weight_map = (read_json(directory / INDEX, CheckpointError) or {}).get("weight_map")
    if config.get("model_type") not in supported() or not isinstance(weight_map, dict):
        return False
    declared = architecture(config["model_type"])
    return declared.word_embeddings in weight_map and all(
        name.startswith(declared.parts) and not name.endswith((".gamma", ".beta", "position_ids"))
        for name in weight_map
    )


def load_core(
    directory: Path,
    *,
    config: dict[str, Any] | None = None,
    dtype: mx.Dtype | None = None,
    dequantize: bool | None = None,
    lazy: bool = False,
    base: str | Path | None = None,
) -> Encoder:
    """Return the encoder of a converted directory, in evaluation mode; `config` replaces its `config.json`.

    With `lazy`, a tensor is read from its file when it is first used, as in mlx-lm. Of a directory with adapters it is
    their base, at its recorded place or at `base`, with the adapters on it.

    Raises:
        CheckpointError: a file is missing or damaged, or names or shapes are not what the configuration calls for.
        AdapterError: the base of adapters is not there, or is another one.
    """
    if is_adapter_directory(directory):
        saved = read_adapter(directory)
        below = _base_directory(directory, saved.base, base)
        core = load_core(below, dtype=dtype, dequantize=dequantize, lazy=lazy)
        _check_same_config(directory, read_config(directory) if config is None else config, below, core.config)
        add_saved(core, saved, place=str(directory))
        return core
    if base is not None:
        raise CheckpointError(f"{directory} is a whole model, no adapter; fix: leave out base={str(base)!r}")
    config = read_config(directory, other_tools=True) if config is None else config
    tensors, _ = read_weights(directory, config)
    try:
        packed = split_quantized(config, tensors)
        core = new_encoder(config_from_hf(config), tensors)
    except (ConfigError, QuantizationError) as error:
        raise CheckpointError(f"{directory}: {error}") from error
    expected = {name: array.shape for name, array in named_parameters(core).items()}
    problems = tensor_problems(tensors, expected) if packed is None else packed.problems(expected)
    if problems:
        raise CheckpointError(
            f"{directory}: the tensors are not those that config.json calls for; fix: convert again\n"
            + first_ten(problems)
        )
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    if dtype is None and on_cpu:
        dtype = mx.float32
    core.packed = packed
    if packed is None:
        core.load_weights([(name, t if dtype is None else t.astype(dtype)) for name, t in tensors.items()])
    elif dequantize or (dequantize is None and on_cpu):
        core.load_weights(list(packed.dequantized(dtype or getattr(mx, packed.dtype))))
    else:
        packed.install(core, dtype)
    core.eval()
    if not lazy:
        mx.eval(core.parameters())
    return core


def base_of(directory: Path) -> Base:
    """Return how adapters on the encoder of a directory name it; a directory of adapters has its own base.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    if is_adapter_directory(directory):
        return read_adapter(directory).base
    return Base(str(directory), weights_sha256(directory))


def _base_directory(directory: Path, recorded: Base, given: str | Path | None) -> Path:
    """Return the directory of the base, after comparing its digest with the recorded one."""
    if given is not None:
        place = resolve(given)
    elif recorded.path is not None and os.path.isdir(recorded.path):  # noqa: PTH112 - any text, also a hostile one
        place = Path(recorded.path)
    else:
        where = "of a model without a directory" if recorded.path is None else f"at {printable(recorded.path)}"
        link = "" if recorded.path is None else "put it, or a link to it, there, or "
        raise AdapterError(
            f"{directory}: the base of this adapter was {where} (sha256 {shown(recorded.sha256)}), and is not there; "
            f"fix: {link}name it: --base DIRECTORY (Python: base=)"
        )
    if is_adapter_directory(place):
        raise AdapterError(f"{place} is an adapter itself, not the base of {directory}; fix: base= its own base")
    if recorded.sha256 is None:
        return place
    found = weights_sha256(place)
    if found != recorded.sha256:
        raise AdapterError(
            f"{directory}: the adapter belongs to a base whose weights have the sha256 {printable(recorded.sha256)}, "
            f"and those of {place} have {found}; fix: name its own base: --base DIRECTORY (Python: base=)"
        )
    return place


def _check_same_config(directory: Path, config: Mapping[str, Any], below: Path, found: Any) -> None:
    """Compare the configuration beside adapters with their base's, which the digest of the weights does not cover.

    Raises:
        AdapterError: they differ, so that the base computes other numbers than in training.
        CheckpointError: the configuration beside the adapters is damaged.
    """
    try:
        recorded: Any = config_from_hf(config)
    except ConfigError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    saved, now = asdict(recorded), asdict(found)
    names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    lines = [f"{name}: {shown(saved.get(name))} there, {shown(now.get(name))} in the base" for name in names]
    if lines:
        raise AdapterError(
            f"{directory}: its config.json differs from that of its base {below}; fix: restore the one that was "
            f"changed\n{first_ten(lines)}"
        )


def weights_sha256(directory: Path) -> str:
    """Return the SHA-256, in hex, of a checkpoint's weights, config.json not included.

    Of one file it is that file's, as `sha256sum model.safetensors` prints it. Of several files it is the digest of
    those lines: `sha256sum model-*.safetensors | sha256sum`.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    files = weight_files(directory)
    if missing := [file for file in files if not file.is_file()]:
        raise CheckpointError(f"{missing[0]} is missing; fix: convert or download again")
    stats = [file.stat() for file in files]
    digests = [
        _sha256(file, stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True)
    ]
    if len(files) == 1:
        return digests[0]
    lines = (f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@cache
def _sha256(file: Path, *_state: int) -> str:
    """Return the digest of a file; the same file in the same state is read once."""
    digest = sha256_hex(file, CheckpointError)
    if digest is None:
        raise CheckpointError(f"{file} is gone; fix: convert or download the checkpoint again")
    return digest


def new_encoder(config: EncoderConfig, tensors: Iterable[str]) -> Encoder:
    """Return an encoder with random weights; it has a pooler if `tensors`, names of a checkpoint's, have one."""
    declared = architecture(config.model_type)
    return declared.encoder(config, add_pooling_layer=any(map(declared.is_pooler, tensors)))


def side_files(names: Sequence[str]) -> list[str]:
    """Return those files of a converted directory that loading needs besides the configuration and the weights."""
    return [
        name
        for name in names
        if name in SIDE_FILES
        or fnmatch(name, "sentence_*_config.json")
        or (name[:1].isdigit() and name.count("/") == 1 and name.endswith(("/config.json", "/model.safetensors")))
    ]


def is_license_file(name: str) -> bool:
    """Return whether a file of this name is the license of a model, which must accompany the weights."""
    suffix = Path(name).suffix.lower()
    is_text = suffix in ("", ".txt", ".md", ".rst") or suffix[1:].isdigit()
    return is_text and _LICENSE_FILE.fullmatch(name) is not None


def _needed(names: Sequence[str]) -> list[str]:
    """Return those files of a converted repository that loading reads."""
    wanted = {"config.json", "manifest.json", INDEX, "heads.safetensors", SETTINGS_FILE, ADAPTER_FILE}
    wanted |= {*side_files(names)}
    return [
        name
        for name in names
        if name in wanted or (name.startswith("model") and name.endswith(".safetensors") and "/" not in name)
    ]


def read_weights(directory: Path, config: Mapping[str, Any]) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """Return the tensors of `model*.safetensors`, lazily: the encoder's under their canonical names, and the head's.

    The head's are empty unless `config` says that they lie there too.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    tensors = _read_tensors(directory)
    if not is_full_layout(config):
        return tensors, {}
    try:
        prefix = architecture(config.get("model_type")).prefix
    except ConfigError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    encoder = {name for name in tensors if name.startswith(prefix)}
    heads = {name: tensor for name, tensor in tensors.items() if name not in encoder}
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name in encoder}, heads


def weight_files(directory: Path) -> list[Path]:
    """Return the files of the weights that the index names, in the order of their names.

    Raises:
        CheckpointError: there is no index, or it names something else.
    """
    return [directory / shard for shard in sorted(set(_weight_map(directory).values()))]


def _weight_map(directory: Path) -> dict[str, str]:
    """Return the index: name of a tensor -> name of its file, which is a safetensors file beside it."""
    index = directory / INDEX
    parsed = read_json(index, CheckpointError)
    if parsed is None:
        raise CheckpointError(f"{directory}: {INDEX} is missing; fix: convert again")
    weight_map = parsed.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no usable weight_map; fix: convert again")
    for shard in sorted(set(weight_map.values())):
        # MLX chooses the format by the suffix, and other formats have other rules.
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names {printable(shard)!r}, which is no safetensors file beside it; "
                "fix: do not trust this checkpoint, or convert again"
            )
    return weight_map


def _read_tensors(directory: Path) -> dict[str, mx.array]:
    """Return every tensor of `model*.safetensors`, by the index."""
    weight_map = _weight_map(directory)
    tensors: dict[str, mx.array] = {}
    for shard in sorted(set(weight_map.values())):
        contents = read_safetensors(directory / shard, CheckpointError)
        if contents is None:
            raise CheckpointError(f"{directory}: {printable(shard)} is missing; fix: convert or download again")
        tensors.update(contents[0])
    if set(tensors) != set(weight_map):
        index = directory / INDEX
        difference = first_ten(sorted(set(tensors) ^ set(weight_map)))
        raise CheckpointError(f"{index} and the files it names disagree; fix: convert again\n{difference}")
    return tensors
