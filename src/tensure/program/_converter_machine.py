"""A stack machine that reads a checkpoint's serialised stream, executing nothing.

Knows the opcodes that a plain state dict needs, interpreted over inert records: no name in the file is ever
imported, nothing is called, and every view is held against its storage, every storage against the bytes that
are there. Any opcode or name beyond the short lists is refused. Does not know how a file is laid out.

Runs inside the converter child: nothing outside the standard library is imported. Source of the opcodes:
Python's Lib/pickletools.py; of the calls: torch/_utils.py.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

__all__ = ["Machine", "Refused", "Storage", "Symbol", "TensorRecord", "kind_of", "tensor_record"]

MAX_OPCODES = 4_000_000
MAX_DIMS = 16
MAX_DIM = 1 << 48
SAVE_STATE = "Save model.state_dict() alone, with torch.save or safetensors"

DTYPES: Mapping[str, tuple[str, int]] = {
    # torch storage class: (our dtype, bytes per element)
    "DoubleStorage": ("f64", 8),
    "FloatStorage": ("f32", 4),
    "HalfStorage": ("f16", 2),
    "BFloat16Storage": ("bf16", 2),
    "LongStorage": ("i64", 8),
    "IntStorage": ("i32", 4),
    "ShortStorage": ("i16", 2),
    "CharStorage": ("i8", 1),
    "ByteStorage": ("u8", 1),
    "BoolStorage": ("bool", 1),
}


class Refused(Exception):
    """The file is not what we read: kind is "format", "unsupported" or "limit"."""

    def __init__(
        self, kind: str, found: str, *, place: str = "", wanted: str = "", next_step: str = ""
    ) -> None:
        super().__init__(found)
        self.kind, self.found, self.place, self.wanted, self.next_step = kind, found, place, wanted, next_step


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of equal elements in the file; `offset` is its first byte (-1 until a legacy file tells)."""

    key: str
    dtype: str
    itemsize: int
    numel: int
    offset: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A strided view of a storage, checked to lie inside it; units are elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.itemsize


def tensor_record(
    storage: Storage, offset: object, shape: object, stride: object, *, place: str
) -> TensorRecord:
    """A view checked against its storage: in bounds, and never more elements than the storage has."""
    if not (_is_count(offset) and isinstance(shape, tuple) and isinstance(stride, tuple)):
        raise Refused("format", "an offset, shape or stride is no count", place=place)
    if len(shape) != len(stride) or len(shape) > MAX_DIMS or not all(_is_count(n) for n in (*shape, *stride)):
        # Never printed: a hostile nest of shared tuples would take for ever to print.
        raise Refused("format", f"a shape of {len(shape)} dims with a stride of {len(stride)}", place=place)
    numel = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if numel else 0
    if last >= max(storage.numel, 1) or numel > storage.numel:
        raise Refused(
            "format",
            f"shape {shape!r:.60}, stride {stride!r:.60}, offset {offset} needs element {last}, "
            f"and its storage has {storage.numel}",
            place=place,
        )
    return TensorRecord(storage, offset, shape, stride)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < MAX_DIM


def kind_of(value: object) -> str:
    """What a message calls a value, whose own text is never printed."""
    return "named object" if isinstance(value, Symbol) else type(value).__name__


# --- the machine -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Symbol:
    name: str


class _Mark:
    pass


_MARK = _Mark()
_ORDERED_DICT = "collections OrderedDict"
_REBUILD = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor"}
_PARAMETER = "torch._utils _rebuild_parameter"
_STORAGES = {f"torch {name}": name for name in DTYPES}
_NAMES = {_ORDERED_DICT, _PARAMETER, *_REBUILD, *_STORAGES}

_CONSTANTS: Mapping[int, object] = {0x4E: None, 0x88: True, 0x89: False}
_EMPTY: Mapping[int, type] = {0x7D: dict, 0x5D: list}
_NUMBERS = {0x4A: "<i", 0x4B: "<B", 0x4D: "<H", 0x47: ">d"}
_TEXT_LENGTHS = {0x58: "<I", 0x8C: "<B", 0x55: "<B", 0x54: "<i"}
_MEMO_PUT = {0x71: "<B", 0x72: "<I"}
_MEMO_GET = {0x68: "<B", 0x6A: "<I"}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}


class Machine:
    """A stack machine over inert values; `position` is where the next stream starts."""

    def __init__(self, data: bytes, *, base: int, storages: Mapping[str, tuple[int, int]] | None) -> None:
        self.position = 0
        self.legacy_storages: dict[str, Storage] = {}
        self._data = data
        self._base = base
        self._zip_storages = storages
        self._steps = 0
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    def run(self) -> object:
        """Interpret one stream to its STOP and give its value."""
        self._stack, self._memo = [], {}
        while True:
            self._steps += 1
            if self._steps > MAX_OPCODES:
                raise Refused("limit", f"more than {MAX_OPCODES} opcodes", place=self._place())
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                value = self._pop()
                if self._stack:
                    raise Refused("format", "values are left at the end of the stream", place=self._place())
                return value
            self._step(code)

    def _step(self, code: int) -> None:
        push = self._stack.append
        if code in _MEMO_PUT:
            self._memo[self._number(_MEMO_PUT[code])] = self._peek()
        elif code == 0x94:  # MEMOIZE
            self._memo[len(self._memo)] = self._peek()
        elif code in _MEMO_GET:
            key = self._number(_MEMO_GET[code])
            if key not in self._memo:
                raise Refused("format", f"memo {key} was never set", place=self._place())
            push(self._memo[key])
        elif code in _TEXT_LENGTHS:
            push(self._text(self._number(_TEXT_LENGTHS[code]), latin=code in (0x55, 0x54)))
        elif code in _NUMBERS:
            push(self._float() if code == 0x47 else self._number(_NUMBERS[code]))
        elif code == 0x8A:  # LONG1
            push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))
        elif code in _CONSTANTS:
            push(_CONSTANTS[code])
        elif code in _EMPTY:
            push(_EMPTY[code]())
        elif code == 0x29:  # EMPTY_TUPLE
            push(())
        elif code == 0x28:  # MARK
            push(_MARK)
        elif code in _TUPLES:
            push(tuple(reversed([self._pop() for _ in range(_TUPLES[code])])))
        elif code == 0x74:  # TUPLE
            push(tuple(self._to_mark()))
        elif code == 0x63:  # GLOBAL
            push(self._symbol(self._line() + " " + self._line()))
        elif code == 0x51:  # BINPERSID
            push(self._storage(self._pop()))
        elif code == 0x52:  # REDUCE
            arguments = self._pop()
            push(self._reduce(self._pop(), arguments))
        elif code == 0x62:  # BUILD
            self._build(self._pop())
        elif code in (0x61, 0x65):  # APPEND, APPENDS
            items = [self._pop()] if code == 0x61 else self._to_mark()
            target = self._peek()
            if not isinstance(target, list):
                raise Refused("format", "an element is added to what is no list", place=self._place())
            target.extend(items)
        elif code in (0x73, 0x75):  # SETITEM, SETITEMS
            self._set_items([self._pop(), self._pop()][::-1] if code == 0x73 else self._to_mark())
        elif code == 0x80:  # PROTO
            if self._number("<B") != 2:
                raise Refused("unsupported", "another stream protocol than 2", place=self._place())
        else:
            raise Refused(
                "unsupported",
                f"opcode 0x{code:02x}, which no state dict needs",
                place=self._place(),
                next_step=SAVE_STATE,
            )

    # meaning of the few calls a state dict makes

    def _symbol(self, name: str) -> Symbol:
        if name not in _NAMES:
            raise Refused(
                "unsupported",
                f"the file asks for Python's {'.'.join(name.split(' ', 1))[:80]!r}",
                place=self._place(),
                wanted="a state dict of plain tensors",
                next_step=f"{SAVE_STATE}, if you trust its maker; if not, delete it",
            )
        return Symbol(name)

    def _storage(self, value: object) -> Storage:
        if not (isinstance(value, tuple) and len(value) in (5, 6) and value[0] == "storage"):
            raise Refused("format", "a storage reference has another form", place=self._place())
        kind, key, _location, numel = value[1:5]
        if not (
            isinstance(kind, Symbol) and kind.name in _STORAGES and isinstance(key, str) and _is_count(numel)
        ):
            raise Refused("format", "a storage reference has another form", place=self._place())
        if len(value) == 6 and value[5] is not None:
            raise Refused("unsupported", "a storage is a view of another", place=self._place())
        dtype, itemsize = DTYPES[_STORAGES[kind.name]]
        if self._zip_storages is None:
            storage = Storage(key, dtype, itemsize, numel, -1)
            if self.legacy_storages.setdefault(key, storage) != storage:
                raise Refused("format", f"storage {key[:40]!r} is declared in two ways", place=self._place())
            return storage
        span = self._zip_storages.get(f"data/{key}")
        if span is None or span[1] != numel * itemsize:
            there = "is missing" if span is None else f"has {span[1]} bytes"
            raise Refused(
                "format",
                f"storage {key[:40]!r} declares {numel * itemsize} bytes but {there}",
                place=self._place(),
            )
        return Storage(key, dtype, itemsize, numel, span[0])

    def _reduce(self, function: object, arguments: object) -> object:
        if not isinstance(function, Symbol) or not isinstance(arguments, tuple):
            raise Refused("format", "a call of what is no function", place=self._place())
        if function.name == _ORDERED_DICT and arguments == ():
            return {}
        if function.name in _REBUILD and 4 <= len(arguments) <= 7 and isinstance(arguments[0], Storage):
            if len(arguments) > 5 and arguments[5] != {}:
                raise Refused("unsupported", "a tensor with backward hooks", place=self._place())
            if len(arguments) > 6 and arguments[6]:
                raise Refused("unsupported", "a tensor with metadata", place=self._place())
            return tensor_record(arguments[0], *arguments[1:4], place=self._place())
        if function.name == _PARAMETER and len(arguments) == 3 and isinstance(arguments[0], TensorRecord):
            if arguments[2] != {}:
                raise Refused("unsupported", "a parameter with backward hooks", place=self._place())
            return arguments[0]
        raise Refused("format", f"{function.name!r} is called with other arguments", place=self._place())

    def _build(self, state: object) -> None:
        # A module's state dict carries its version table as an attribute: the only state we let pass, unread.
        if not isinstance(self._peek(), dict) or not isinstance(state, dict) or set(state) != {"_metadata"}:
            raise Refused(
                "unsupported", "an object's state is set", place=self._place(), next_step=SAVE_STATE
            )

    def _set_items(self, items: list[object]) -> None:
        target = self._peek()
        if not isinstance(target, dict) or len(items) % 2:
            raise Refused("format", "an item is set in what is no mapping", place=self._place())
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int) or key in target:
                raise Refused("format", f"a key is repeated or is a {kind_of(key)}", place=self._place())
            target[key] = value

    # stack and bytes

    def _place(self) -> str:
        return f"byte {self._base + self.position}"

    def _peek(self) -> object:
        if not self._stack or self._stack[-1] is _MARK:
            raise Refused("format", "the stack is empty", place=self._place())
        return self._stack[-1]

    def _pop(self) -> object:
        self._peek()
        return self._stack.pop()

    def _to_mark(self) -> list[object]:
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                items = self._stack[at + 1 :]
                del self._stack[at:]
                return items
        raise Refused("format", "no mark on the stack", place=self._place())

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self._data):
            raise Refused("format", "the stream is cut off", place=self._place())
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _float(self) -> float:
        return float(struct.unpack(">d", self._take(8))[0])

    def _text(self, length: int, *, latin: bool) -> str:
        if length > 1 << 16:
            raise Refused("limit", f"a text of {length} bytes", place=self._place())
        try:
            return self._take(length).decode("latin-1" if latin else "utf-8")
        except UnicodeDecodeError:
            raise Refused("format", "a text is not UTF-8", place=self._place()) from None

    def _line(self) -> str:
        end = self._data.find(b"\n", self.position, self.position + 256)
        if end < 0:
            raise Refused("format", "a name without an end", place=self._place())
        line = self._data[self.position : end]
        self.position = end + 1
        return line.decode("utf-8", "replace")
