"""The places where hostile input enters: how an input is made from a seed, and what the product then does with it.

A target is a function of (samples, place, rng): it makes one input below `place/in` and returns what to do with it.
`place/out` and `place/tmp` may be written to; `place/outside` holds a secret.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz import hub_answers
from tests.fuzz.damage import (
    damage_directory,
    damaged_bytes,
    damaged_json,
    damaged_safetensors,
    link_folder,
    make_special,
)
from tests.fuzz.guards import WrongResultError
from tests.fuzz.samples import CONVERTED, FORMS, TABLES, copy_sample, use_of

Use = Callable[[], object]
Target = Callable[[Path, Path, random.Random], Use]


def checkpoint(samples: Path, place: Path, rng: random.Random) -> Use:
    """A damaged source of one of nine forms is converted; what was converted without an error loads."""
    source = copy_sample(samples / "forms" / rng.choice(FORMS), place)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        damage_directory(source, place / "outside", rng)
    return lambda: _convert_and_load(source, place / "out" / "model")


def _convert_and_load(source: Path, out: Path, base: Path | None = None) -> None:
    import mlxbert
    from converter.convert import convert
    from mlxbert.checkpoint import load_core
    from mlxbert.errors import MLXBertError

    convert(source, out, verify=False, base=base)
    try:
        if not any((out / name).is_file() for name in ("tokenizer.json", "vocab.txt")):  # which a conversion says
            load_core(out)
            return
        model, tokenizer = mlxbert.load(out)
        use_of(model(**tokenizer(["word1 abc", "b"])).last_hidden_state)
    except MLXBertError as error:
        raise WrongResultError(f"converted, and does not load: {error}") from error


def adapter(samples: Path, place: Path, rng: random.Random) -> Use:
    """A damaged adapter in PEFT's format is merged into its base, or kept beside it; the result loads."""
    from converter.peft.keep import keep_adapter

    source = copy_sample(samples / "adapter", place)
    config, weights = source / "adapter_config.json", source / "adapter_model.safetensors"
    chance = rng.random()
    if chance < 0.4:
        config.write_text(json.dumps(damaged_json(json.loads(config.read_text()), rng)))
    elif chance < 0.7:
        weights.write_bytes(damaged_safetensors(weights.read_bytes(), rng))
    else:
        damage_directory(source, place / "outside", rng)
    base, out = samples / "converted" / "float32", place / "out" / "model"
    uses: list[Use] = [lambda: _convert_and_load(source, out, base=base), lambda: keep_adapter(source, base, out)]
    return rng.choice(uses)


def converted(samples: Path, place: Path, rng: random.Random) -> Use:
    """A damaged converted directory is loaded, encoded with, exported, and its publication planned."""
    import mlxbert
    from converter.export.checkpoint import export
    from converter.publish.push import push
    from mlxbert.encode.encoder import SentenceEncoder

    name = rng.choice(CONVERTED)
    directory = copy_sample(samples / "converted" / name, place)
    damage_directory(directory, place / "outside", rng)
    _list_anew(directory, rng)

    def load() -> None:
        model, tokenizer = mlxbert.load(directory)
        use_of(model(**tokenizer(["word1 abc", "b"])).last_hidden_state)

    def head() -> None:
        model, tokenizer = mlxbert.load_with_head(directory)
        model(**tokenizer(["word1"]))

    uses: list[Use] = [
        load,
        lambda: use_of(SentenceEncoder.from_pretrained(directory).encode(["word1 abc", "b"])),
        lambda: export(directory, place / "out" / "exported"),
        lambda: push(directory, "team/name", dry_run=True, allow_unverified=True, progress=False),
        lambda: _convert_and_load(directory, place / "out" / "again"),
    ]
    return head if name == "classifier" and rng.random() < 0.5 else rng.choice(uses)


def _list_anew(directory: Path, rng: random.Random) -> None:
    """In half of the cases the attacker wrote the manifest too."""
    from mlxbert.files.output_file import FileRecord, manifest_bytes

    manifest = directory / "manifest.json"
    if rng.random() < 0.5 and manifest.is_file() and not manifest.is_symlink():
        files = [one for one in directory.rglob("*") if one.is_file() and not one.is_symlink() and one != manifest]
        records = {one.relative_to(directory).as_posix(): FileRecord.of(one.read_bytes()) for one in files}
        manifest.write_bytes(manifest_bytes(records))


def run(samples: Path, place: Path, rng: random.Random) -> Use:
    """A damaged run is reported, predicted with, resumed, blended, exported."""
    from converter.export.run import export_directory
    from mlxbert.report import write_report
    from mlxbert.runs import resume
    from mlxbert.runs.blend import blend, open_predictor
    from mlxbert.runs.predict import write_submission

    directory = copy_sample(samples / "runs" / "a", place)
    chance = rng.random()
    if chance < 0.4:
        info = directory / "run.json"
        info.write_text(json.dumps(damaged_json(json.loads(info.read_text()), rng)))
    elif chance < 0.5:
        link_folder(rng.choice([one for one in directory.iterdir() if one.is_dir()]), place / "outside")
    else:
        damage_directory(directory, place / "outside", rng)
    other = samples / "runs" / "a"
    test = copy_sample(samples / "test.csv", place)
    uses: list[Use] = [
        lambda: write_report(directory),
        lambda: write_submission(open_predictor(directory), test, out=place / "out" / "submission.csv"),
        lambda: resume(directory, progress=False),
        lambda: blend([other, directory], out=place / "out" / "blend"),
        lambda: export_directory(directory, place / "out" / "exported"),
    ]
    return rng.choice(uses)


def table(samples: Path, place: Path, rng: random.Random) -> Use:
    """A damaged table is read, its texts made and its task inferred."""
    from mlxbert.data.infer_task import infer_task
    from mlxbert.data.reading import read_data
    from mlxbert.factory import from_dataframe

    name = rng.choice(TABLES)
    file = copy_sample(samples / "tables" / name, place)
    if rng.random() < 0.12:
        make_special(file, place / "outside", rng)
    else:
        for _ in range(rng.choice((1, 1, 2, 4))):
            file.write_bytes(damaged_bytes(file.read_bytes(), rng))
    model = samples / "converted" / "float32"

    def use() -> None:
        frame = read_data(file).frame
        target = "y" if "y" in frame.columns else str(frame.columns[-1])
        infer_task(frame[target])
        made = from_dataframe(frame, target=target, checkpoint=model)
        made.tokenizer(list(made.texts(frame).texts)[:4], max_length=16)

    return use


def cells(samples: Path, place: Path, rng: random.Random) -> Use:
    """A table of odd cells, written as csv.writer does or without any quoting, is read back as it is, or refused."""
    import csv

    from mlxbert.data.reading import read_data

    pieces = ['"', "''", "a", "b c", "é", "x,y", ";", "'", "#", "5", "-", '""', "\\", "word"]
    rows = [[str(i), "".join(rng.choices(pieces, k=rng.randrange(1, 6))) + f" {i}", "ab"[i % 2]] for i in range(12)]
    quoted = rng.random() < 0.5
    file = place / "in" / "train.tsv"
    with file.open("w", newline="", encoding="utf-8") as out:
        if quoted:
            csv.writer(out, delimiter="\t").writerows([["id", "text", "y"], *rows])
        else:
            out.writelines("\t".join(row) + "\n" for row in [["id", "text", "y"], *rows])

    def use() -> None:
        read = read_data(file).frame
        found = [str(one).strip() for one in read["text"]]
        if found != [row[1].strip() for row in rows]:
            form = "quoted" if quoted else "unquoted"
            raise WrongResultError(f"{len(found)} of {len(rows)} rows, or other cells ({form}): {found}")

    return use


def output(samples: Path, place: Path, rng: random.Random) -> Use:
    """Something that is no regular file stands where a command writes: it stays what it is."""
    from mlxbert.files import output_file
    from mlxbert.report import write_report
    from mlxbert.runs.blend import open_predictor
    from mlxbert.runs.predict import write_submission

    out = place / "out" / "file.csv"
    out.write_text("old")
    # Whoever names a link as the output means the file that it leads to, so that links out of the place are no fault.
    kind = make_special(out, place / "outside", rng, leave_out=("a link to a file outside", "a link to nothing"))
    if out.is_fifo():  # somebody reads it to the end, so that a writer is not blocked
        reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
        threading.Thread(target=_drain, args=(reader,), daemon=True).start()
    before = stat.S_IFMT(out.lstat().st_mode)
    test, finished = samples / "test.csv", samples / "runs" / "a"
    uses: list[Use] = [
        lambda: output_file.replace_file(out, b"new"),
        lambda: write_submission(open_predictor(finished), test, out=out),
        lambda: write_report(finished, out, place / "out" / "plots"),
    ]
    chosen = rng.choice(uses)

    def use() -> None:
        try:
            chosen()
        finally:
            if stat.S_IFMT(out.lstat().st_mode) != before:
                raise WrongResultError(f"{kind}, and was replaced")

    return use


def _drain(reader: int) -> None:
    while True:
        with contextlib.suppress(BlockingIOError):  # somebody writes, and nothing is there yet
            os.read(reader, 1 << 16)
        time.sleep(0.01)


def header(samples: Path, place: Path, rng: random.Random) -> Use:
    """A safetensors header, an index or a configuration whose values are hostile, the file otherwise whole."""
    source = copy_sample(samples / "forms" / rng.choice(("safetensors", "shards", "sentence-transformers")), place)
    file = rng.choice(sorted(one for one in source.rglob("*") if one.suffix in (".json", ".safetensors")))
    if file.suffix == ".json":
        value = json.loads(file.read_text())
        for _ in range(rng.choice((1, 1, 2))):
            value = damaged_json(value, rng)
        file.write_text(json.dumps(value))
    else:
        file.write_bytes(damaged_safetensors(file.read_bytes(), rng))
    return lambda: _convert_and_load(source, place / "out" / "model")


TARGETS: dict[str, Target] = {
    "checkpoint": checkpoint,
    "header": header,
    "adapter": adapter,
    "converted": converted,
    "run": run,
    "table": table,
    "cells": cells,
    "output": output,
    "hub": hub_answers.target,
}

# Of the worker. MLX would compile its kernels by g++ in each fork anew, seconds in which the fork itself only waits.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MLX_DISABLE_COMPILE": "1"}


def clean(place: Path) -> None:
    """Make `place` empty, with a secret outside of what may be written to."""
    from tests.fuzz.guards import SECRET

    shutil.rmtree(place, ignore_errors=True)
    for name in ("in", "out", "tmp", "outside"):
        (place / name).mkdir(parents=True)
    (place / "outside" / "secret.txt").write_text(SECRET)
