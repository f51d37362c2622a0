"""torch.save files, zip and legacy, against what torch itself holds."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from converter.readers.source_files import SourceError
from converter.readers.weight_files import read_weights
from tests.support.checkpoint_builders import assert_same, random_model, raw

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value: Any, path: Path, zipped: bool, **options: Any) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
    return path


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_model_bit_for_bit(zipped: bool, dtype: Any, tmp_path: Path) -> None:
    state = random_model("BertForPreTraining", dtype=dtype).state_dict()
    weights = read_weights(save(state, tmp_path / "x.bin", zipped))
    assert list(weights.entries) == list(state)
    assert_same(weights.entries, state)
    assert weights.notes == ()


@FORMATS
def test_views_strides_and_shared_storages(zipped: bool, tmp_path: Path) -> None:
    base = torch.randn(8, 6, 5)
    scalar_row = torch.arange(7).expand(1, -1)
    tensors = {
        "whole": base,
        "offset": base[3:5],
        "transposed": base.transpose(0, 2),
        "column": base[:, 2, 3],
        "every other": base[::2, 1::2],
        "tied": base.view(-1)[30:60].view(5, 6),
        "same": base,
        "expanded axis": scalar_row,
        "zero-d": base[1, 1, 1],
        "empty": base[:0],
        "parameter": torch.nn.Parameter(base[2].t()),
        "bools": torch.tensor([True, False, True]),
        "long": torch.arange(5) - 2**40,
        "bytes": torch.arange(200, dtype=torch.uint8)[7:190:3],
        "u16": torch.arange(9, dtype=torch.int32).to(torch.uint16)[2:],
        "u64": torch.tensor([2**63, 5], dtype=torch.uint64),
    }
    weights = read_weights(save(tensors, tmp_path / "x.pt", zipped))
    assert_same(weights.entries, tensors)


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(zipped: bool, protocol: int, tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 4), "b": torch.nn.Parameter(torch.randn(2))}
    assert_same(read_weights(save(state, tmp_path / "x", zipped, pickle_protocol=protocol)).entries, state)


@FORMATS
def test_a_tensor_with_python_attributes_is_its_tensor(zipped: bool, tmp_path: Path) -> None:
    tensor = torch.randn(4)
    tensor.__dict__["note"] = "kept by torch as _rebuild_from_type_v2"
    parameter = torch.nn.Parameter(torch.randn(3))
    parameter.__dict__["tag"] = 5
    state = {"t": tensor, "p": parameter}
    assert_same(read_weights(save(state, tmp_path / "x", zipped)).entries, state)


def test_part_of_a_shared_storage_reads_that_part_alone(tmp_path: Path) -> None:
    """The CRC of a part cannot be checked, so damage elsewhere goes unseen: only the part is read."""
    base = torch.arange(1000, dtype=torch.float32)
    path = save({"a": base[10:20], "b": base[500:]}, tmp_path / "x.bin", True)
    data = bytearray(path.read_bytes())
    at = data.index(raw(base))
    data[at + 4 * 700] ^= 0xFF
    path.write_bytes(data)
    entries = read_weights(path).entries
    assert entries["a"].read().tobytes() == raw(base[10:20])
    assert entries["b"].read().tobytes() != raw(base[500:])


def test_a_flipped_byte_of_a_whole_tensor_is_noticed(tmp_path: Path) -> None:
    tensor = torch.randn(50)
    path = save({"a": tensor}, tmp_path / "x.bin", True)
    data = bytearray(path.read_bytes())
    data[data.index(raw(tensor)) + 17] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"x\.bin: x/data/0 is damaged \(its CRC-32 is wrong\); fix: get the file"):
        read_weights(path).entries["a"].read()


def test_files_saved_without_crcs_are_read(tmp_path: Path) -> None:
    tensor = torch.randn(50)
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"a": tensor}, tmp_path / "x.bin", True)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_weights(path).entries, {"a": tensor})


def test_a_rezipped_compressed_file_is_read(tmp_path: Path) -> None:
    base = torch.randn(40, 50)
    state = {"a": base, "b": base[7:9, 3:]}
    source = zipfile.ZipFile(save(state, tmp_path / "x.bin", True))
    with zipfile.ZipFile(tmp_path / "y.bin", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_same(read_weights(tmp_path / "y.bin").entries, state)


WRAPPERS = ["state_dict", "model_state_dict", "model", "module", "state_dict model"]


class LightningModule:
    """A class that the reader cannot know."""

    def __init__(self) -> None:
        self.value = {"nested": [1, 2, 3]}


@FORMATS
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_state_dicts(zipped: bool, wrapper: str, tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(3), "a.bias": torch.randn(2)}
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.randn(3))])
    value: Any = OrderedDict(state)
    for key in reversed(wrapper.split()):
        value = {"epoch": 3, "optimizer": optimizer.state_dict(), key: value}
    weights = read_weights(save(value, tmp_path / "x.pth", zipped))
    assert_same(weights.entries, state)
    assert not weights.lightning


@FORMATS
def test_a_lightning_checkpoint_with_unknown_classes(zipped: bool, tmp_path: Path) -> None:
    state = {"model.bert.x": torch.randn(3), "loss.weight": torch.randn(2)}
    parameter = torch.nn.Parameter(torch.randn(4))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(4)
    optimizer.step()
    checkpoint = {
        "epoch": 1,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(state),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "callbacks": {LightningModule: LightningModule(), ("a", ("b",)): {1, 2}, "c": frozenset([3])},
        "hyper_parameters": {
            "args": argparse.Namespace(lr=1e-4, path=Path("data")),
            "dtype": torch.float16,
            "size": torch.Size([1, 2]),
            "device": torch.device("cpu"),
            "module": LightningModule(),
            "bytes": b"\x00\xff",
            "complex": 1j,
            "big": 2**70,
        },
        "loops": OrderedDict(),
    }
    weights = read_weights(save(checkpoint, tmp_path / "x.ckpt", zipped))
    assert_same(weights.entries, state)
    assert weights.lightning


@FORMATS
def test_values_that_are_no_tensors_are_left_out_with_a_note(zipped: bool, tmp_path: Path) -> None:
    kept = torch.randn(3)
    state = {"a": kept, "step": 7, "b._extra_state": None}
    weights = read_weights(save(state, tmp_path / "x", zipped))
    assert_same(weights.entries, {"a": kept})
    assert weights.notes == ("no tensors, ignored: step, b._extra_state",)


def refusal(path: Path) -> str:
    with pytest.raises(SourceError) as error:
        read_weights(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "fix: " in message.splitlines()[0]
    return message


@FORMATS
def test_a_whole_pickled_model_is_refused_and_told_why(zipped: bool, tmp_path: Path) -> None:
    message = refusal(save(random_model(), tmp_path / "x.pt", zipped))
    assert "is a whole pickled model (transformers.models.bert.modeling_bert.BertModel), not a state dict" in message
    assert "fix: torch.save(model.state_dict(), FILE)" in message
    message = refusal(save({"epoch": 1, "model": torch.nn.Linear(2, 2)}, tmp_path / "y.pt", zipped))
    assert "has a whole pickled model (torch.nn.modules.linear.Linear) under model" in message


@FORMATS
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "holds an empty state dict; fix:"),
        ({"state_dict": {}}, "holds no tensors (it has state_dict); fix:"),
        ([1, 2], "holds a list, not a state dict; fix:"),
        (5, "holds a int, not a state dict; fix:"),
        (torch.ones(2), "holds a single tensor, not a state dict; fix:"),
        ({"epoch": 1, "lr": 0.1}, "holds no tensors (it has epoch, lr); fix:"),
        ({"net": {"a": torch.ones(1)}}, "under net; fix: torch.save(torch.load(FILE)['net'], NEW_FILE)"),
        (
            {"model": {"a": torch.ones(1)}, "state_dict": {"a": torch.zeros(1)}},
            "has several state dicts (state_dict, model); fix:",
        ),
        (
            {"a": torch.ones(2), "q": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
            "1 tensor of a kind that is not read (quantized, sparse or a subclass); fix:",
        ),
        ({"a": torch.eye(3).to_sparse()}, "not read (quantized, sparse or a subclass)"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "tensor a has dtype ComplexFloatStorage, which is not"),
        ({"a": torch.ones(1).expand(1000)}, "needs more elements than the 1 its storage holds"),
    ],
)  # fmt: skip
def test_what_is_no_dense_state_dict_is_refused(zipped: bool, value: Any, text: str, tmp_path: Path) -> None:
    assert text in refusal(save(value, tmp_path / "x.pt", zipped))


def test_stray_tensors_beside_a_wrapper_are_noted(tmp_path: Path) -> None:
    state = {"a": torch.ones(1)}
    weights = read_weights(save({"model": state, "ema_decay": torch.ones(1)}, tmp_path / "x", True))
    assert_same(weights.entries, state)
    assert weights.notes == ("tensors beside 'model' ignored: ema_decay",)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert "is a TorchScript program (torch.jit.save), not a state dict" in refusal(path)


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2)}, tmp_path / "x.pt", True)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "y.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name, b"big" if name.endswith("byteorder") else source.read(name))
    assert "was saved on a big-endian machine" in refusal(tmp_path / "y.pt")
    legacy = save({"a": torch.ones(2)}, tmp_path / "z.pt", False)
    data = legacy.read_bytes()
    flipped = data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")
    assert flipped != data
    legacy.write_bytes(flipped)
    assert "was saved on a big-endian machine" in refusal(legacy)


@FORMATS
@pytest.mark.parametrize("kept", [0.0005, 0.01, 0.3, 0.6, 0.99])
def test_truncated_files_are_refused(zipped: bool, kept: float, tmp_path: Path) -> None:
    path = save(random_model().state_dict(), tmp_path / "x.bin", zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    message = refusal(path)
    assert any(word in message for word in ("truncated", "damaged", "cut off")), message
    assert "fix: get the file again" in message


def test_a_storage_that_is_missing_is_said_of_its_tensor(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2), "bert.b": torch.ones(3)}, tmp_path / "x.pt", True)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "y.pt", "w") as target:
        for name in source.namelist():
            if not name.endswith("data/1"):
                target.writestr(name, source.read(name))
    assert "tensor bert.b has no data in the file" in refusal(tmp_path / "y.pt")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2)}, tmp_path / "x.pt", True)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")  # the first member of the table of contents, data.pkl
    data[at + 8] |= 1
    path.write_bytes(data)
    assert "x/data.pkl is encrypted; fix: unpack it with its password" in refusal(path)


def test_other_pickles_and_zips_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps({"a": [1.0, 2.0]}))
    assert "is a plain pickle, not a file of torch.save (nothing was run)" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "is a zip without a torch pickle or .npy arrays" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        pass
    assert "is an empty zip" in refusal(path)


def test_python_2_pickles(tmp_path: Path) -> None:
    """OrderedDict from a list of pairs, 8-bit strings, global names of Python 2: torch before 1.0."""
    path = save({"a": torch.arange(3.0)}, tmp_path / "x.pt", False)
    data = path.read_bytes()
    system_end = data.index(b"}q\x00X\x01\x00\x00\x00aq\x01")
    tensor_end = data.index(b"s.", system_end)
    tensor = data[system_end + len(b"}q\x00X\x01\x00\x00\x00aq\x01") : tensor_end]
    python2 = b"ccollections\nOrderedDict\n(](](U\x01a" + tensor + b"eetR."
    path.write_bytes(data[:system_end] + python2 + data[tensor_end + 2 :])
    assert_same(read_weights(path).entries, {"a": torch.arange(3.0)})
