"""Pickles of strangers, read without running anything: a machine for the few opcodes that data needs.

Python's own unpickler imports and calls what a file names. This one knows no import: a name is looked up in
a table of plain functions, or stands for a class that is never made, only remembered (`Inert`). It has a
loop instead of recursion, a dict for a memo, and limits, so depth, memory and time follow from the file's
size.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from horovod_yolo.core.text import unwarned

LARGEST_PROGRAM = 8 << 20  # bytes; that of a large model in the middle of its training has 0.3 MB
MOST_OPCODES = 500_000  # likewise 0.15 million
LARGEST_KEY = 1 << 60  # integers beyond could be chosen so that all of them have one hash
_ONLY_PROTOCOL = 2  # what `torch.save` writes; later ones name things in ways that need more opcodes

Function = Callable[[tuple[Any, ...]], Any]


class RefusedError(ValueError):
    """A pickle that is damaged, or that wants more than to be data."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something that a pickle names: ``torch.nn.modules.conv.Conv2d``. Nothing is looked up."""

    path: str

    @property
    def last(self) -> str:
        """The name without its module."""
        return self.path.rpartition(".")[2]


@dataclass(slots=True, eq=False)
class Inert:
    """An object of a class that is not there: what it would have been made from."""

    cls: Name
    arguments: tuple[Any, ...] = ()
    state: Any = field(default=None, repr=False)

    @property
    def attributes(self) -> dict[Any, Any]:
        """Its ``__dict__``, as far as it has one."""
        return self.state if isinstance(self.state, dict) else {}


@dataclass(frozen=True)
class Rules:
    """What a pickle may hold beside builtins."""

    functions: Mapping[str, Function]  # that it may call, by their full name; each checks its arguments
    is_class: Callable[[str], bool]  # names of which there may be inert objects
    persistent: Callable[[Any], Any]  # what a persistent id stands for


def load(program: bytes, rules: Rules) -> Any:
    """The object that a pickle describes, in builtins and `Inert`. It may hold itself.

    Raises:
        RefusedError: it is damaged or too large, or names, calls or builds what the rules do not allow.
    """
    if len(program) > LARGEST_PROGRAM:
        raise RefusedError(f"its structure has {len(program)} bytes, more than are read")
    machine = _Machine(rules)
    try:
        with unwarned():
            for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
                if count >= MOST_OPCODES:
                    raise RefusedError("its structure has more parts than are read")
                if opcode.name == "STOP":
                    return machine.result()
                step = _STEPS.get(opcode.name)
                if step is None:
                    raise RefusedError(f"it uses {opcode.name}, which weights do not need")
                step(machine, argument)
    except RefusedError:
        raise
    except (IndexError, KeyError) as error:  # more taken off the stack or out of the memo than was put there
        raise RefusedError("its structure is damaged") from error
    except (ValueError, UnicodeError) as error:  # of `genops`, which decodes
        raise RefusedError(f"its structure is damaged ({error!s:.100})") from error
    raise RefusedError("its structure is cut short")


class _Machine:
    """The stack of a pickle. Each mark begins a stack of its own, on top of the one before."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[str, Name] = {}

    def result(self) -> Any:
        if self.below or len(self.stack) != 1:
            raise RefusedError("its structure is damaged")
        return self.stack.pop()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def protocol(self, number: int) -> None:
        if number != _ONLY_PROTOCOL:
            raise RefusedError(f"it is a pickle of protocol {number}, not {_ONLY_PROTOCOL}")

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def down_to_mark(self) -> list[Any]:
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise RefusedError("it appends to what is no list")
        target.extend(items)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise RefusedError("it sets items of what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[hashable(key)] = value

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    def name(self, argument: str) -> None:
        path = ".".join(argument.split(" "))
        if path not in self.rules.functions and not self.rules.is_class(path):
            raise RefusedError(f"it names {path!r:.100}, which is no part of a detector's weights")
        self.stack.append(self.names.setdefault(path, Name(path)))

    def new_object(self, _: None) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, Name) or not self.rules.is_class(cls.path) or arguments != ():
            raise RefusedError("it makes an object of what is no class")
        self.stack.append(Inert(cls))

    def call(self, _: None) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        path = called.path if isinstance(called, Name) else "what is no function"
        function = self.rules.functions.get(path)
        if arguments == () and isinstance(called, Name) and function is None and self.rules.is_class(path):
            self.stack.append(Inert(called))
            return
        if function is None or type(arguments) is not tuple:
            raise RefusedError(f"it calls {path:.100}, which weights do not need")
        self.stack.append(function(arguments))

    def build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):  # a dict's own attributes (`_metadata`) are of no use to us
            raise RefusedError("it gives a state to what is no object")

    def persistent(self, _: None) -> None:
        self.stack.append(self.rules.persistent(self.stack.pop()))


def hashable(key: Any) -> Any:
    """A key of a dict or set as it is.

    Raises:
        RefusedError: it is of a kind whose hashes a stranger could make all alike.
    """
    if not isinstance(key, str | int) or (isinstance(key, int) and abs(key) >= LARGEST_KEY):
        raise RefusedError(f"it has a {type(key).__name__} for a key")
    return key


_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "MARK": _Machine.mark,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
        _Machine.push,
    ),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.down_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.down_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop() for _ in range(2)][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.down_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.name,
    "NEWOBJ": _Machine.new_object,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
