"""Interprets a pickle without running any code from it: names stay names, and calls become inert records.

The standard library's unpickler, even with `find_class` overridden, calls what the file hands it, grows its memo to
any index that the file asks for, and hashes what the file nests. This interpreter never has a Python callable on its
stack: a global is a `Global` (two strings), and the result of calling one is what `on_call` returns for it.
`pickletools.genops` parses the opcodes; they mean what Lib/pickle.py says.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

MAX_PICKLE_BYTES = 256 << 20
MAX_OPERATIONS = 1_000_000  # some seconds; twelve layers with Adam's state take 30,000
_MAX_LINE = 1 << 20
_UNFITTING = "its operations do not fit each other"

# fmt: off
_PUSHED = frozenset({
    "FLOAT", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})
# fmt: on
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class MalformedPickle(ValueError):  # noqa: N818 - the name says what the pickle is
    """The stream is no pickle that this machine can follow; the message says why."""


@dataclass(frozen=True)
class Global:
    """A module's attribute that a pickle names; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Placeholder:
    """An inert stand-in for an object of an unknown class, with the name of that class."""

    name: str
    items: dict[Any, Any] = field(default_factory=dict)
    state: Any = None


class _BoundedStream:
    """A stream for pickletools; every read from it is bounded."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MAX_PICKLE_BYTES

    def read(self, count: int) -> bytes:
        """Read like a file, but never past the limit."""
        if count < 0 or count > self._left:
            raise MalformedPickle("it wants more bytes than a checkpoint's pickle has")
        self._left -= count
        parts = []
        while count:  # in steps: the file may be far shorter than the pickle claims
            part = self._file.read(min(count, 1 << 20))
            if not part:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def readline(self) -> bytes:
        """Read a line of at most 1 MiB."""
        line = self._file.readline(_MAX_LINE)
        self._left -= len(line)
        return line


class _OddKey:
    """A dictionary key that is no plain scalar: hashed by identity, never by its contents."""


def safe_key(key: Any) -> Any:
    """Return the key if its hash is cheap, else a stand-in (nested tuples can take exponential time to hash)."""
    scalar = key is None or isinstance(key, str | int | float | bytes | Global)
    return key if scalar else _OddKey()


class PickleMachine:
    """Interprets one pickle; `on_global` may refuse a name, the others return what a call or reference stands for."""

    def __init__(
        self,
        on_global: Callable[[Global], None],
        on_call: Callable[[Global, tuple[Any, ...]], Any],
        on_persistent: Callable[[Any], Any],
    ) -> None:
        self._on_global, self._on_call, self._on_persistent = on_global, on_call, on_persistent
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        """Interpret the pickle at the file's position, move the file behind it, and return its top-level object."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(BinaryIO, _BoundedStream(file)))):
                if count > MAX_OPERATIONS:
                    raise MalformedPickle(f"it has more than {MAX_OPERATIONS} operations")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise MalformedPickle(_UNFITTING) from error
        except MalformedPickle:
            raise
        except ValueError as error:
            raise MalformedPickle(str(error).splitlines()[0] if str(error) else "it is garbled") from error
        raise MalformedPickle("it has no end")

    def _step(self, op: str, argument: Any) -> None:
        stack = self._stack
        if op in _PUSHED:
            stack.append(argument)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[int(argument)] = stack[-1]
        elif op == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[int(argument)])
        elif op in ("PROTO", "FRAME"):
            pass
        elif op == "MARK":
            self._marks.append(stack)
            self._stack = []
        elif op == "DUP":
            stack.append(stack[-1])
        elif op == "POP" and stack:
            stack.pop()
        elif op in ("POP", "POP_MARK"):  # as in CPython, POP on an empty frame takes the mark
            self._to_mark()
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self._tuple_of_last(int(op[-1]))
        else:
            handler = getattr(self, f"_op_{op.lower()}", None)
            if handler is None:
                raise MalformedPickle(f"it uses {op}, which no checkpoint does")
            handler(argument)

    # Containers

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _tuple_of_last(self, count: int) -> None:
        if len(self._stack) < count:
            raise MalformedPickle(_UNFITTING)
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(items)

    def _op_empty_tuple(self, _: Any) -> None:
        self._stack.append(())

    def _op_tuple(self, _: Any) -> None:
        items = tuple(self._to_mark())
        self._stack.append(items)

    def _op_empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _op_list(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(items)

    def _op_append(self, _: Any) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _op_appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    # A set is kept as a list: its members are not hashed, and no reader here needs a set.
    _op_empty_set, _op_frozenset, _op_additems = _op_empty_list, _op_list, _op_appends

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Placeholder):
            raise MalformedPickle("it appends to what is no list")

    def _op_empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _op_dict(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append({})
        self._update(items)

    def _op_setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def _op_setitems(self, _: Any) -> None:
        self._update(self._to_mark())

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Placeholder):
            target = target.items
        if not isinstance(target, dict) or len(items) % 2:
            raise MalformedPickle("it sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[safe_key(key)] = value

    # Names and calls

    def _push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise MalformedPickle("it names a global that is not text")
        value = Global(module, name)
        self._on_global(value)
        self._stack.append(value)

    def _op_global(self, argument: str) -> None:
        self._push_global(*argument.rsplit(" ", 1))

    def _op_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push_global(module, name)

    def _op_inst(self, argument: str) -> None:
        arguments = tuple(self._to_mark())
        self._push_global(*argument.rsplit(" ", 1))
        self._call(self._stack.pop(), arguments)

    def _op_obj(self, _: Any) -> None:
        callee, *arguments = self._to_mark()
        self._call(callee, tuple(arguments))

    def _op_reduce(self, _: Any) -> None:
        arguments, callee = self._stack.pop(), self._stack.pop()
        self._call(callee, arguments)

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, _: Any) -> None:
        self._stack.pop()  # keyword arguments
        self._op_reduce(None)

    def _call(self, callee: Any, arguments: Any) -> None:
        if isinstance(callee, Global):
            self._stack.append(self._on_call(callee, arguments if isinstance(arguments, tuple) else ()))
        else:  # a call of what an inert call returned
            self._stack.append(Placeholder(getattr(callee, "name", type(callee).__name__)))

    def _op_build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Placeholder):
            target.state = state  # never applied; it tells a pickled model from other objects

    def _op_binpersid(self, _: Any) -> None:
        self._stack.append(self._on_persistent(self._stack.pop()))

    def _op_persid(self, argument: str) -> None:
        self._stack.append(self._on_persistent(argument))
