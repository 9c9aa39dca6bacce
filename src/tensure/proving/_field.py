"""Values in a finite field: polynomials and quotients exact modulo p, everything else a keyed oracle.

p = 2^127 - 1. Inputs are uniform; `+ - * /`, sums of products and moves are exact; any other function is a
keyed hash of its operands, so that equal arguments give equal results and nothing else is assumed.
Two formally different values then agree on all draws with a chance of at most degree/p (Schwartz,
Zippel), and two different arguments of an oracle collide no likelier: `error` adds that up over all
pairs. What holds here holds as an identity of rational functions over the given oracles; what does
not may still be an identity of the real functions, so a mismatch refutes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy as np

from tensure.errors import LimitError, RecordError, TensureError, UnsupportedError
from tensure.program import Op, TensorType, bind_op, infer_op, lookup, rational

from ._contraction import TERMS, terms_of
from ._field_convolution import convolution, gradients, taps
from ._field_degree import CONSTANT, DRAWN, Degree, widest
from ._field_lookups import CONSTANTS, LOOKUPS, constant
from ._field_numbers import P, element_of, hash_number
from ._field_products import PRODUCTS
from ._field_wraps import MOVES, NARROW, RING, may_wrap
from ._rules import ELEMENTWISE, NORMS, PER_CHANNEL, REDUCTIONS, ROWS, reduced_dims
from ._values import FLOATS
from ._windows import walks

MAX_PRODUCTS: Final = 2_000_000
PADDING: Final = frozenset("constant_pad_nd slice_backward select_backward tril triu".split())
"""Moves that put a number beside the elements."""
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class F:
    """An array of field elements, and a bound on their degrees.

    Args:
        dtype: what they stand for; empty where nobody says.
        wraps: these are sums and products of integers of few bits, of which only what is left of them in
            their dtype has a meaning (`Field.settled`).
    """

    __slots__ = ("array", "degree", "dtype", "wraps")

    def __init__(self, array: Any, degree: Degree = DRAWN, dtype: str = "", wraps: bool = False) -> None:
        # numpy turns a result without dims into a Python int
        self.array, self.degree = np.asarray(array, dtype=object), degree
        self.dtype, self.wraps = dtype, wraps


class Field:
    """The domain; one seed draws inputs and oracles."""

    def __init__(self, seed: int) -> None:
        self.key = hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=32).digest()
        self.degree, self.oracles, self.compared, self.products = 1, 0, 0, 0
        self._poles, self._turned = set[int](), False

    @property
    def error(self) -> float:
        """The chance that a wrong claim passed."""
        pairs = self.oracles * (self.oracles + 1) // 2 + self.compared + 1
        return min(float(Fraction(2 * self.degree * pairs, P)), 0.999)

    def draw(self, label: str, want: TensorType) -> F:
        count = int(np.prod(want.shape, dtype=np.int64))
        self.work(count)
        drawn = [self._hash(f"draw {label} {at}".encode()) for at in range(count)]
        return F(_objects(drawn, want.shape), dtype=want.dtype)

    def run(self, step: Op, operands: list[Any]) -> list[F]:
        given = bind_op(lookup(step.op), [_typed(item) for item in operands], dict(step.attrs))
        dtypes = _dtypes(step, operands)
        held = [item for item in operands if isinstance(item, F)]
        stays = step.op in RING and {item.dtype for item in held} == set(dtypes)
        if not stays:
            operands = [self.settled(item) if isinstance(item, F) else item for item in operands]
        try:
            found = self._run(step.op, given, operands)
        except (ValueError, IndexError, KeyError) as error:
            raise RecordError(f"{step.op} cannot take these operands: {error}") from error
        before = stays and any(item.wraps for item in held)
        made: list[F] = []
        for at, item in enumerate(found):
            dtype = dtypes[at] if dtypes else ""
            made.append(F(item.array, item.degree, dtype, before or may_wrap(step.op, dtype)))
            self.degree = max(self.degree, item.degree.both)
        return made

    def settled(self, value: F) -> F:
        """What integers of few bits hold: some function of the sum or product that was to be held.

        Sums and products may be taken of what is left as of the whole (both are rings), so numbers that are
        equal before are equal after, and it is enough to do this where their dtype is left.
        """
        if not value.wraps:
            return value
        made = self.oracle(f"what {value.dtype} holds", {}, [value])
        return F(made.array, made.degree, value.dtype)

    def meet(self, step: Op, members: list[F]) -> list[F]:
        attrs: dict[str, Any] = dict(step.attrs)
        arrays = [member.array for member in members]
        if len({member.dtype for member in members}) > 1:
            raise RecordError(f"{step.op} of several dtypes")
        degree = members[0].degree.plus(*(member.degree for member in members[1:]))
        if attrs.get("reduce", "sum") != "sum":
            raise UnsupportedError(f"{step.op} with reduce={attrs['reduce']!r} in the field")
        try:
            if step.op == "all_gather":
                made = [np.concatenate(arrays, axis=attrs["dim"])] * len(arrays)
            elif step.op == "all_to_all":
                parts = [np.split(array, len(arrays), axis=attrs["split"]) for array in arrays]
                made = [
                    np.concatenate([p[to] for p in parts], axis=attrs["cat"]) for to in range(len(arrays))
                ]
            else:
                if len({array.shape for array in arrays}) != 1:
                    raise RecordError(f"{step.op} of several shapes")
                total = sum(arrays[1:], arrays[0]) % P
                made = [total] * len(arrays)
                if step.op == "reduce_scatter":
                    made = list(np.split(total, len(arrays), axis=attrs["dim"]))
        except ValueError as error:
            raise RecordError(f"{step.op} cannot take these operands: {error}") from error
        wraps = any(member.wraps for member in members)
        wraps = wraps or (step.op in ("all_reduce", "reduce_scatter") and members[0].dtype in NARROW)
        return [F(array, degree, members[0].dtype, wraps) for array in made]

    def take(self, value: F, dim: int, indices: list[int]) -> F:
        return F(value.array.take(indices, axis=dim), value.degree, value.dtype, value.wraps)

    def join(self, dim: int, values: list[F]) -> F:
        return F(
            np.concatenate([value.array for value in values], axis=dim),
            widest(value.degree for value in values),
            values[0].dtype,
            any(value.wraps for value in values),
        )

    def shape(self, value: F) -> tuple[int, ...]:
        return tuple(value.array.shape)

    def add(self, one: F, other: F) -> F:
        wraps = one.wraps or other.wraps or one.dtype in NARROW
        return F((one.array + other.array) % P, one.degree.plus(other.degree), one.dtype, wraps)

    def scale(self, value: F, by: Fraction) -> F:
        wraps = value.wraps or (value.dtype in NARROW and by != 1)
        return F(value.array * element_of(by) % P, value.degree, value.dtype, wraps)

    def multiple(self, have: F, want: F) -> None:
        """Nothing: a factor of elements of a field is no number to tell."""

    def difference(self, have: F, want: F) -> tuple[int, ...] | None:
        if have.dtype != want.dtype:  # of one dtype, what is equal before is equal in it
            have, want = self.settled(have), self.settled(want)
        self.compared += 1
        self.degree = max(self.degree, have.degree.both + want.degree.both)
        found = np.argwhere(np.asarray(have.array != want.array, dtype=np.bool_))
        return tuple(int(part) for part in found[0]) if len(found) else None

    # ops ---------------------------------------------------------------------------------------------

    def _run(self, op: str, given: dict[str, Any], operands: list[Any]) -> list[F]:
        first = operands[0] if operands else None
        degrees = [item.degree for item in operands if isinstance(item, F)]
        if isinstance(first, F) and (
            op == "copy" or (op == "_to_copy" and given["dtype"] in (None, *FLOATS))
        ):
            return [first]  # equality is over the real numbers
        if op in _RATIONAL:
            values = [item.array if isinstance(item, F) else _number(item) for item in operands]
            if op == "div":
                if given["rounding_mode"] is not None:
                    return [self.oracle(op, given, operands)]
                values[1] = self.quotient(values[1])
            alpha = element_of(rational(given.get("alpha", 1)))
            made = np.asarray(_RATIONAL[op](values, alpha), dtype=object) % P
            return [F(made, _combined(op, operands))]
        if op in TERMS:
            return [self._contract(op, given, [item for item in operands if item is not None])]
        if op in ("sum", "mean") and isinstance(first, F):
            dims = reduced_dims(given["dim"], first.array.ndim)
            made = np.asarray(np.add.reduce(first.array, axis=dims, keepdims=given["keepdim"]), dtype=object)
            count = first.array.size // max(made.size, 1)
            by = pow(count, -1, P) if op == "mean" and count else 1
            return [F(made * by % P, first.degree.added(count))]
        if op in ("convolution", "integer_convolution") and not given.get("transposed"):
            array, grown = convolution(self, given, operands)
            return [F(np.asarray(array % P, dtype=object), grown)]
        if op == "convolution_backward":
            return [
                F(np.asarray(array % P, dtype=object), at) for array, at in gradients(self, given, operands)
            ]
        if op in PADDING and isinstance(first, F):
            return [F(_padded(op, given, first.array), first.degree)]
        if op in MOVES:
            return [F(_move(op, given, operands), widest(degrees))]
        if op in CONSTANTS:
            made = constant(op, given)
            numbers = _objects([_number(x) for x in made.reshape(-1).tolist()], made.shape)
            return [F(numbers, CONSTANT)]
        if op in LOOKUPS:
            return [F(array % P, degree) for array, degree in LOOKUPS[op](self, given, operands)]
        product = PRODUCTS[op](self, given, operands) if op in PRODUCTS else None
        if product is not None:
            array, grown = product
            return [F(np.asarray(array % P, dtype=object), grown)]
        if op in ELEMENTWISE or op in PER_CHANNEL:
            return [self.oracle(op, given, operands)]
        if op in REDUCTIONS and isinstance(first, F):
            return [self._along(op, given, first, reduced_dims(given["dim"], first.array.ndim))]
        if op in ROWS or op in NORMS or op == "max_pool2d":
            return self._rows(op, given, operands)
        raise UnsupportedError(f"op {op!r} has no meaning in the field")

    def oracle(self, op: str, given: dict[str, Any], operands: list[Any]) -> F:
        """A function of which nothing is known, element by element; broadcasting as numpy's."""
        arrays = [item.array for item in operands if isinstance(item, F)]
        key = [op, *(item for item in operands if not isinstance(item, F))]
        lists: list[Array] = []
        if op in PER_CHANNEL:  # factors by channel go into the hash beside the element they scale
            for name in PER_CHANNEL[op]:
                along = np.ones(arrays[0].ndim, np.int64)
                if len(given[name]) > 1:
                    along[given["axis"]] = -1
                lists.append(
                    _objects([hash_number(x) for x in given[name]], (len(given[name]),)).reshape(along)
                )
            given = {name: value for name, value in given.items() if name not in (*PER_CHANNEL[op], "axis")}
        text = repr((key, sorted(given.items()))).encode()
        spread = np.broadcast_arrays(*arrays, *lists)
        self.work(spread[0].size)
        self.oracles += spread[0].size
        flat = zip(*(item.reshape(-1).tolist() for item in spread), strict=True)
        made = [self._hash(text, *values) for values in flat]
        return F(_objects(made, spread[0].shape))

    def like(self, array: Array) -> F:
        """Integers as field elements."""
        return F(array % P)

    def _along(self, op: str, given: dict[str, Any], x: F, dims: tuple[int, ...]) -> F:
        """One oracle for each set of reduced elements; order counts only for the positions of extrema."""
        moved = np.moveaxis(x.array, dims, range(len(dims)))
        rest = moved.shape[len(dims) :]
        sets = moved.reshape(-1, int(np.prod(rest, dtype=np.int64))).T.tolist()
        self.work(x.array.size)
        self.oracles += len(sets)
        ordered = op in ("argmax", "argmin")
        text = repr((op, sorted((k, v) for k, v in given.items() if k not in ("dim", "keepdim")))).encode()
        made = _objects([self._hash(text, *(row if ordered else sorted(row))) for row in sets], rest)
        return F(np.expand_dims(made, dims) if given.get("keepdim") else made)

    def _rows(self, op: str, given: dict[str, Any], operands: list[Any]) -> list[F]:
        first = operands[0].array
        if op == "max_pool2d":
            return [self._pool(given, operands[0])]
        if op in ("sort", "topk", "roll", "flip"):
            raise UnsupportedError(f"op {op!r} has no meaning in the field")
        if op in NORMS:
            dims = tuple(range(first.ndim - len(given["normalized_shape"]), first.ndim))
        else:
            dims = reduced_dims(given["dim"], first.ndim)
        arrays = [np.broadcast_to(item.array, first.shape) for item in operands if isinstance(item, F)]
        text = repr((op, sorted(given.items()), [isinstance(item, F) for item in operands])).encode()
        moved = [np.moveaxis(array, dims, range(-len(dims), 0)) for array in arrays]
        width = int(np.prod([first.shape[dim] for dim in dims], dtype=np.int64))
        rows = np.concatenate([array.reshape(-1, width) for array in moved], axis=1).tolist()
        self.work(first.size)
        self.oracles += first.size
        made = [self._hash(text, at, *row) for row in rows for at in range(width)]
        back = np.moveaxis(_objects(made, moved[0].shape), range(-len(dims), 0), dims)
        return [F(back)]

    def _pool(self, given: dict[str, Any], x: F) -> F:
        kernel = given["kernel_size"] if len(given["kernel_size"]) == 2 else given["kernel_size"] * 2
        if given["ceil_mode"]:
            raise UnsupportedError("a pool with ceil_mode has no meaning in the field")
        windows = taps(x.array, walks(given, kernel), -1)
        self.work(windows.size)
        self.oracles += windows[..., 0, 0].size
        flat = windows.reshape(-1, kernel[0] * kernel[1]).tolist()
        made = [self._hash(b"max_pool2d", *sorted(set(row) - {-1})) for row in flat]
        return F(_objects(made, windows.shape[:-2]))

    def _contract(self, op: str, given: dict[str, Any], operands: list[F]) -> F:
        arrays = [item.array for item in operands]
        found = terms_of(op, given, [array.ndim for array in arrays])
        if found is None:
            raise UnsupportedError(f"{op} of ranks {[array.ndim for array in arrays]} in the field")
        terms, out = found
        if op == "integer_linear":
            arrays[0] = (arrays[0] - given["input_zero_point"]) % P
        bias = arrays.pop() if op in ("linear", "integer_linear") and len(arrays) == 3 else None
        terms = terms[: len(arrays)]
        sizes: dict[str, int] = {}
        for term, array in zip(terms, arrays, strict=True):
            for letter, size in zip(term, array.shape, strict=True):
                if sizes.setdefault(letter, size) != size:
                    raise RecordError(f"letter {letter} is {sizes[letter]} and {size}")
        self.work(int(np.prod(list(sizes.values()), dtype=np.float64)) * len(arrays))
        made, have = arrays[0], terms[0]
        for position in range(1, len(terms)):
            later = set(out).union(*terms[position + 1 :])
            keep = "".join(letter for letter in dict.fromkeys(have + terms[position]) if letter in later)
            product = np.einsum(f"{have},{terms[position]}->{keep}", made, arrays[position])
            made = np.asarray(product, dtype=object) % P
            have = keep
        made = np.asarray(np.einsum(f"{have}->{out}", made), dtype=object) % P
        if bias is not None:
            made = (made + bias) % P
        contracted = int(
            np.prod([size for letter, size in sizes.items() if letter not in out], dtype=np.float64)
        )
        degree = (
            operands[0].degree.times(*(item.degree for item in operands[1 : len(arrays)])).added(contracted)
        )
        return F(made, degree if bias is None else degree.plus(operands[-1].degree))

    def indicator(self, indices: Any, count: int) -> Array:
        """Whether an index is 0, 1, ... up to a count: an oracle of the difference; [*indices, count]."""
        array = np.asarray(indices, dtype=object)
        self.work(array.size * count)
        self.oracles += array.size * count
        made = [
            self._hash(b"is", (at - row) % P) for at in array.reshape(-1).tolist() for row in range(count)
        ]
        return _objects(made, (*array.shape, count))

    def turn(self) -> None:
        self._turned = True

    def quotient(self, value: Any) -> Any:
        """One over each element, which may be zero: a Plan may only divide by what the Program divides by.

        Raises:
            UnsupportedError: one of them is zero, or the Program does not divide by it.
        """
        if isinstance(value, np.ndarray):
            items = {min(item, P - item) for item in value.reshape(-1).tolist()}
            if not self._turned:
                self._poles |= items
            elif not items <= self._poles:
                raise UnsupportedError("a division by what the program does not divide by, in the field")
        return self.inverse(value)

    def inverse(self, value: Any) -> Any:
        """One over each element.

        Raises:
            UnsupportedError: one of them is zero.
        """
        array = np.asarray(value, dtype=object)
        self.work(array.size)
        if (array == 0).any():
            raise UnsupportedError("a denominator that is zero in the field")
        return _objects([pow(item, -1, P) for item in array.reshape(-1).tolist()], array.shape)

    def _hash(self, text: bytes, *values: int) -> int:
        state = hashlib.blake2b(text, key=self.key, digest_size=24)
        for value in values:
            state.update(int(value).to_bytes(17, "little", signed=True))
        return int.from_bytes(state.digest(), "little") % P

    def work(self, count: int) -> None:
        """Count operations.

        Raises:
            LimitError: too many.
        """
        self.products += count
        if self.products > MAX_PRODUCTS:
            raise LimitError(f"over {MAX_PRODUCTS} operations in the field")


_RATIONAL: Final[dict[str, Callable[[list[Any], int], Any]]] = {
    "add": lambda v, alpha: v[0] + alpha * v[1],
    "sub": lambda v, alpha: v[0] - alpha * v[1],
    "rsub": lambda v, alpha: v[1] - alpha * v[0],
    "mul": lambda v, _: v[0] * v[1],
    "div": lambda v, _: v[0] * v[1],
    "neg": lambda v, _: -v[0],
    "square": lambda v, _: v[0] * v[0],
    "add_n": lambda v, _: sum(v[1:], v[0]),
}


def _combined(op: str, operands: list[Any]) -> Degree:
    """Of a sum, a product or a quotient."""
    items = [item.degree if isinstance(item, F) else CONSTANT for item in operands]
    if op == "div":
        items[1] = items[1].inverse()
    if op in ("mul", "div"):
        return items[0].times(*items[1:])
    return items[0].times(items[0]) if op == "square" else items[0].plus(*items[1:])


def _move(op: str, given: dict[str, Any], operands: list[Any]) -> Array:
    """A move of elements, done by the op table's semantics on the numbers of the elements."""
    from tensure.program import evaluate_op

    arrays = [item.array for item in operands if isinstance(item, F)]
    numbers, start = [], 0
    for array in arrays:
        numbers.append(np.arange(start, start + array.size, dtype=np.int64).reshape(array.shape))
        start += array.size
    attrs = {key: value for key, value in given.items() if value is not None}
    try:
        (places,) = evaluate_op(op, numbers, attrs)
    except TensureError as error:
        raise RecordError(str(error)) from error
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    return np.asarray(flat[places], dtype=object)


def _padded(op: str, given: dict[str, Any], array: Array) -> Array:
    """A move of elements among which a number is put."""
    from tensure.program import evaluate_op

    spots = np.arange(1, array.size + 1, dtype=np.float64).reshape(array.shape)
    attrs = {key: value for key, value in given.items() if value is not None}
    (places,) = evaluate_op(op, [spots], {**attrs, "value": 0} if "value" in attrs else attrs)
    flat = np.concatenate([_objects([_number(given.get("value", 0))], (1,)), array.reshape(-1)])
    return np.asarray(flat[places.astype(np.intp)], dtype=object)


def _dtypes(step: Op, operands: list[Any]) -> list[str]:
    """Of the results; of operands of which nobody says what they are, none."""
    if any(isinstance(item, F) and not item.dtype for item in operands):
        return []
    types = [TensorType(item.array.shape, item.dtype) if isinstance(item, F) else item for item in operands]
    return [found.dtype for found in infer_op(step.op, types, dict(step.attrs))]


def _typed(item: Any) -> Any:
    return TensorType(item.array.shape, "f64") if isinstance(item, F) else item


def _objects(values: list[int], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)


def _number(value: Any) -> int:
    if not isinstance(value, (int, float)):
        raise UnsupportedError(f"operand {value!r} in the field")
    return element_of(rational(value))
