"""Reads what the names in a torch.save pickle stand for, without torch.

The formats are those of torch/serialization.py and torch/_utils.py (`_rebuild_*`). A name that is not listed here
becomes a Placeholder. A pickle that names something whose only use is to run code or to reach the system is refused,
although nothing would run: no training framework writes such a name, so it is an attack.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from converter.readers.pickle_machine import Global, MalformedPickle, PickleMachine, Placeholder, safe_key
from converter.readers.source_files import AGAIN, SourceError
from mlxbert.errors import printable

# safetensors' dtype: torch's storage class and torch's names of the dtype.
_DTYPES = {
    "F64": ("DoubleStorage", "float64", "double"),
    "F32": ("FloatStorage", "float32", "float"),
    "F16": ("HalfStorage", "float16", "half"),
    "BF16": ("BFloat16Storage", "bfloat16"),
    "I64": ("LongStorage", "int64", "long"),
    "I32": ("IntStorage", "int32", "int"),
    "I16": ("ShortStorage", "int16", "short"),
    "I8": ("CharStorage", "int8"),
    "U64": ("", "uint64"),
    "U32": ("", "uint32"),
    "U16": ("", "uint16"),
    "U8": ("ByteStorage", "uint8"),
    "BOOL": ("BoolStorage", "bool"),
}
_STORAGES = {storage: dtype for dtype, (storage, *_) in _DTYPES.items() if storage}
_STORAGES |= {"UntypedStorage": "U8", "_UntypedStorage": "U8"}
_TORCH_DTYPES = {name: dtype for dtype, (_, *names) in _DTYPES.items() for name in names}
# Bytes of an element in storages that are not read, but may lie before others in a legacy file.
OTHER_ITEM_SIZES = {
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}
# Names whose use in a pickle is an attack: whole modules, then single names of modules that also hold harmless
# classes or share their name with people's own folders (code.model.Classifier is somebody's model).
_RUNS_CODE = re.compile(
    r"""
    (os|posix|nt|sys|subprocess|importlib|imp|runpy|socket|shutil|pty|popen2|_?ctypes|cffi|pip|setuptools
    |distutils|webbrowser|urllib2|httplib|requests|ftplib|smtplib|telnetlib|xmlrpc|asyncio|_?pickle|cPickle
    |marshal|shelve|pdb|bdb|pkgutil|zipimport|multiprocessing|pydoc|ensurepip)\..+
    |_?io\.(open\w*|FileIO)
    |urllib\.request\..+ | http\.(client|server)\..+ | types\.(Function|Code|Lambda|Method)Type
    |_?operator\.methodcaller | code\.(Interactive\w+|interact) | codeop\..+ | commands\.get(status)?output
    |timeit\.(timeit|repeat|Timer|main) | c?[Pp]rofile\.run(ctx)? | trace\.Trace | doctest\.debug_script
    |platform\.popen | tempfile\.mktemp | (torch|torch\.serialization|torch\.hub|numpy)\.load
    |numpy\.testing\._private\.utils\.runstring
    """,
    re.VERBOSE | re.DOTALL,
)
_BUILTIN = re.compile(r"(builtins|__builtins?__)\.(?P<name>.+)", re.DOTALL)
# Types, and the names in pickles of enumerations, bound methods and exceptions (in a callback's state).
_HARMLESS_BUILTIN = re.compile(
    r"getattr|object|type|(frozen)?set|dict|list|tuple|int|long|float|complex|bool|str|unicode|bytes|bytearray"
    r"|slice|x?range|print|len|max|min|sum|abs|round|sorted|reversed|enumerate|zip|map|filter|any|all|property"
    r"|(static|class)method|super|NoneType|Ellipsis|NotImplemented|\w+(Error|Exception|Warning)"
)


@dataclass(frozen=True)
class StorageRef:
    """A storage that tensors view: it begins `offset` elements into the storage `key` of the file.

    `dtype` is safetensors' name, or torch's storage class if safetensors has no name for it.
    """

    key: str
    dtype: str
    numel: int
    offset: int = 0


@dataclass(frozen=True)
class TensorRef:
    """A dense tensor; offset and strides count elements of `dtype`."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class UnreadableTensor:
    """A tensor of a kind that is not read: sparse, quantized, a subclass and others."""

    kind: str


def load_torch_pickle(path: Path, file: BinaryIO) -> tuple[Any, dict[str, StorageRef]]:
    """Return the object of one torch.save pickle, its tensors as TensorRef, and the storages that it mentions.

    Raises:
        SourceError: the pickle is damaged, or names something that runs code.
    """
    storages: dict[str, StorageRef] = {}
    machine = PickleMachine(
        on_global=lambda name: _refuse_code(path, str(name)),
        on_call=_call,
        on_persistent=lambda value: _persistent(value, storages),
    )
    try:
        return machine.run(file), storages
    except MalformedPickle as error:
        raise SourceError(
            f"{path}: its pickle is damaged or no checkpoint's ({printable(str(error))}); {AGAIN}"
        ) from error


def _refuse_code(path: Path, name: str) -> None:
    builtin = _BUILTIN.fullmatch(name)
    if _RUNS_CODE.fullmatch(name) or (builtin and not _HARMLESS_BUILTIN.fullmatch(builtin["name"])):
        raise SourceError(
            f"{path}: its pickle names {printable(name)}, which executes code when loaded (nothing was run); "
            "fix: do not trust this file; get the model as safetensors, or its state_dict() saved anew by its "
            "author"
        )


def _persistent(value: Any, storages: dict[str, StorageRef]) -> Any:
    """Return what a persistent id stands for.

    It is ('storage', class, key, location, numel[, view]), and in old files ('module', class, source file, source).
    """
    if isinstance(value, tuple) and len(value) > 1 and value[0] == "module":
        return value[1]
    if not isinstance(value, tuple) or len(value) not in (5, 6) or value[0] != "storage":
        raise MalformedPickle("it refers to something outside itself")
    kind, key, numel = value[1], value[2], value[4]
    if not isinstance(kind, Global) or not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise MalformedPickle("it refers to a storage that cannot be")
    name = kind.name.rsplit(".", 1)[-1]
    storage = StorageRef(key, _STORAGES.get(name, name), numel)
    if storages.setdefault(key, storage).dtype != storage.dtype:
        raise MalformedPickle("it gives one storage two types")
    view = value[5] if len(value) == 6 else None
    if view is None:
        return storage
    if not isinstance(view, tuple) or len(view) != 3 or any(type(n) is not int or n < 0 for n in view[1:]):
        raise MalformedPickle("it has a storage view that cannot be")
    return StorageRef(key, storage.dtype, view[2], view[1])


def _call(callee: Global, arguments: tuple[Any, ...]) -> Any:
    handler = _CALLS.get((callee.module, callee.name))
    if handler is not None:
        return handler(arguments)
    if callee.module in ("torch._utils", "torch._tensor") and callee.name.startswith("_rebuild_"):
        return UnreadableTensor(callee.name.removeprefix("_rebuild_"))
    if callee.module in ("copyreg", "copy_reg") and callee.name == "_reconstructor":
        return Placeholder(str(arguments[0]) if arguments and isinstance(arguments[0], Global) else "object")
    return Placeholder(str(callee))


def _rebuild_tensor(arguments: tuple[Any, ...]) -> TensorRef | UnreadableTensor:
    """Read _rebuild_tensor(storage, offset, size, stride) and _v2(…, requires_grad, hooks, metadata=None)."""
    return _tensor(arguments, None, arguments[6] if len(arguments) > 6 else None)


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> TensorRef | UnreadableTensor:
    """Read _v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None), of an untyped storage."""
    dtype = arguments[6]
    if not isinstance(dtype, Global) or dtype.module != "torch":
        raise MalformedPickle("it has a tensor without a dtype")
    name = _TORCH_DTYPES.get(dtype.name, str(dtype))
    return _tensor(arguments, name, arguments[7] if len(arguments) > 7 else None)


def _tensor(arguments: tuple[Any, ...], dtype: str | None, metadata: Any) -> TensorRef | UnreadableTensor:
    if len(arguments) < 4:
        raise MalformedPickle("it has a tensor without a shape")
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, StorageRef):
        return UnreadableTensor("tensor without a storage")
    if isinstance(metadata, dict) and (metadata.get("neg") or metadata.get("conj")):
        return UnreadableTensor("tensor with a lazy negation or conjugation")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise MalformedPickle("it has a tensor without a shape")
    return TensorRef(storage, dtype or storage.dtype, offset, shape, strides)


def _first(arguments: tuple[Any, ...]) -> Any:
    """Return the first argument: the tensor of a parameter, the tuple of a torch.Size."""
    return arguments[0] if arguments else ()


def _storage(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments and isinstance(arguments[0], StorageRef) else Placeholder("storage")


def _rebuild_from_type(arguments: tuple[Any, ...]) -> Any:
    """Read _rebuild_from_type_v2(func, type, args, state): a tensor with Python attributes, or of a subclass."""
    function, kind, inner = arguments[:3] if len(arguments) >= 3 else (None, None, None)
    if not isinstance(function, Global) or not isinstance(kind, Global) or not isinstance(inner, tuple):
        raise MalformedPickle("it has a tensor without a type")
    if kind.module.split(".")[0] == "torch" and kind.name in ("Tensor", "Parameter", "Buffer"):
        return _call(function, inner)
    return UnreadableTensor(str(kind))


def _mapping(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Read OrderedDict(), which later operations fill, or Python 2's OrderedDict([[key, value], …])."""
    items: dict[Any, Any] = {}
    for argument in arguments:
        if isinstance(argument, list):
            for pair in argument:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise MalformedPickle("it has an ordered dictionary without pairs")
                items[safe_key(pair[0])] = pair[1]
            argument.clear()  # so that one long list, referred to many times, is copied only once
    return items


_CALLS: dict[tuple[str, str], Callable[[tuple[Any, ...]], Any]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch._tensor", "_rebuild_from_type"): _rebuild_from_type,
    ("torch.storage", "TypedStorage"): _storage,
    ("torch.storage", "_TypedStorage"): _storage,
    ("torch", "Size"): _first,
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
    ("builtins", "dict"): _mapping,
    ("__builtin__", "dict"): _mapping,
}
