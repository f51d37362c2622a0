"""Make the `tokenizer.json` of a source that has a SentencePiece model instead, by transformers' own converter.

The `tokenizers` package, which gives the ids at run time, does not read SentencePiece models. transformers does; so
the ids of the converted directory are those that it gives for the source.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from converter.readers.source_files import SourceError
from converter.source import Source
from heads.command_line import install_fix
from mlxbert.errors import reason
from mlxbert.files.output_file import replace_file
from mlxbert.files.reading import read_bytes
from mlxbert.tokenization.build import kind_of
from mlxbert.tokenization.encoding import refuse_stop
from mlxbert.tokenization.files import SENTENCEPIECE_FILES, TOKENIZER_FILES, read_tokenizer_files

_PACKAGES = ("transformers", "sentencepiece", "google.protobuf")
_UNIGRAM = 1  # `TrainerSpec.ModelType` in sentencepiece_model.proto


@contextmanager
def with_tokenizer_json(source: Source) -> Iterator[Source]:
    """Yield the source with a `tokenizer.json`, which exists until the block ends; unchanged if it needs none.

    Raises:
        SourceError: the SentencePiece model is damaged, or has another name than the tokenizer's class reads, or a
            package that converts it is not installed.
    """
    models = [name for name in SENTENCEPIECE_FILES if name in source.side_files]
    if not models or "tokenizer.json" in source.side_files:
        yield source
        return
    directory = source.side_files[models[0]].parent
    class_name = read_tokenizer_files(directory, source.config).class_name
    kind = kind_of(class_name)
    if kind is None or not kind.is_sentencepiece:
        yield source  # a note says that there is no tokenizer
        return
    (name,) = kind.vocabulary
    if name not in models:
        raise SourceError(
            f"{source.location}: {class_name} reads {name}, and there is {models[0]}; fix: rename it, if it is the one"
        )
    if absent := [package.rpartition(".")[2] for package in _PACKAGES if not _is_installed(package)]:
        verb = "is" if len(absent) == 1 else "are"
        raise SourceError(
            f"{source.location}: its tokenizer is the SentencePiece model {name}, which becomes tokenizer.json by "
            f"transformers, and {' and '.join(absent)} {verb} not installed; fix: {install_fix('torch')}, or put the "
            f"model's tokenizer.json beside it; without {name}, {source.name} converts to an encoder alone"
        )
    _check_model(source.side_files[name])
    with TemporaryDirectory(prefix="mlxbert-tokenizer-") as folder:
        place = Path(folder)
        fields = {"model_type": source.config.get("model_type"), "tokenizer_class": class_name}
        replace_file(place / "config.json", json.dumps(fields).encode())
        for file in TOKENIZER_FILES:
            if file in source.side_files:
                replace_file(place / file, read_bytes(source.side_files[file], SourceError) or b"")
        made = _converted(place, str(class_name), source.side_files[name])
        replace_file(place / "tokenizer.json", made.encode())
        note = f"tokenizer.json is made of {name} by transformers"
        side_files = {**source.side_files, "tokenizer.json": place / "tokenizer.json"}
        yield replace(source, side_files=side_files, notes=(*source.notes, note))


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # `google`
        return False


def _check_model(path: Path) -> None:
    """Check that the file is a whole unigram model: transformers takes what it does not understand for another format.

    Raises:
        SourceError: it is not.
    """
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(read_bytes(path, SourceError) or b"")
        pieces = [piece.piece for piece in model.pieces]
    except SourceError:
        raise
    except Exception as error:  # protobuf's own, or a text that is not UTF-8
        raise SourceError(f"{path}: not a SentencePiece model ({reason(error)}); fix: fetch the file again") from error
    if not pieces or not model.HasField("trainer_spec") or not model.HasField("normalizer_spec"):
        raise SourceError(f"{path}: not a whole SentencePiece model; fix: fetch the file again")
    if model.trainer_spec.model_type != _UNIGRAM:
        kind = sentencepiece_model_pb2.TrainerSpec.ModelType.Name(model.trainer_spec.model_type)
        raise SourceError(
            f"{path}: a SentencePiece model of type {kind}, which transformers would read as one of type UNIGRAM; "
            "fix: fetch the model's own file"
        )


def _converted(directory: Path, class_name: str, path: Path) -> str:
    """Return the `tokenizer.json` that transformers makes of the files in `directory`; `path` is for messages."""
    from transformers import AutoTokenizer

    from converter.parity.reference import quiet_transformers

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        made = str(tokenizer.backend_tokenizer.to_str())
    except BaseException as error:  # transformers raises anything, and tokenizers panics
        refuse_stop(error)
        text = reason(error) if isinstance(error, Exception) else str(error)
        raise SourceError(
            f"{path}: transformers cannot make tokenizer.json of it ({text}); fix: fetch the file again"
        ) from error
    if type(tokenizer).__name__ != class_name:
        raise SourceError(f"{path}: transformers reads it with {type(tokenizer).__name__}, not with {class_name}")
    return made
