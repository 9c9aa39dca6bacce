"""Convolutions, matrix products and einsum.

N batch   C channels in   M channels out
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tensure.errors import FormatError, UnsupportedError

from .._dtypes import FLOATS
from ._builder import Builder, Tensor, list_of
from ._shapes import pad_with
from ._table import MICROSOFT, Attributes, onnx_op

_AUTO = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def kernel_of(weight: Tensor, x: Tensor, given: Sequence[int] | None) -> tuple[int, ...]:
    """The kernel sizes of a convolution, its weight checked against its input.

    Raises:
        FormatError: ranks differ, or kernel_shape says otherwise than the weight.
        UnsupportedError: over three spatial dims.
    """
    if x.rank < 3 or weight.rank != x.rank:
        raise FormatError(
            f"a weight of shape {list(weight.shape)} for an input of shape {list(x.shape)}",
            wanted="equal ranks of at least 3",
        )
    if x.rank > 5:
        raise UnsupportedError(f"{x.rank - 2} spatial dims", wanted="1 to 3")
    kernel = weight.shape[2:]
    if given is not None and tuple(given) != kernel:
        raise FormatError(f"kernel_shape={list(given)}", wanted=f"{list(kernel)}, as the weight has it")
    return kernel


def window_pads(
    a: Attributes,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> list[tuple[int, int]]:
    """(before, after) for each spatial dim, `auto_pad` worked out.

    Raises:
        FormatError: another number of pads, or an unknown auto_pad.
    """
    count = len(kernel)
    if a["auto_pad"] not in _AUTO:
        raise FormatError(f"auto_pad={a['auto_pad']!r}", wanted=", ".join(_AUTO))
    if a["auto_pad"] == "NOTSET":
        flat = list_of(a, "pads", 2 * count, 0)
        return list(zip(flat[:count], flat[count:], strict=True))
    found: list[tuple[int, int]] = []
    for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        need = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0) if a["auto_pad"] != "VALID" else 0
        less, more = need // 2, need - need // 2
        found.append((less, more) if a["auto_pad"] != "SAME_LOWER" else (more, less))
    return found


def flat_pads(pads: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Pads as the table wants them: one number for each dim where both sides are equal, else pairs."""
    if all(before == after for before, after in pads):
        return tuple(before for before, _ in pads)
    return tuple(side for pair in pads for side in pair)


_CONV = (
    '(X, W, B?; auto_pad: str = "NOTSET", dilations: ints?, group: int = 1, kernel_shape: ints?, '
    "pads: ints?, strides: ints?"
)


@onnx_op(f"Conv{_CONV})")
def _conv(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    kernel = kernel_of(x[1], x[0], a["kernel_shape"])
    stride = list_of(a, "strides", len(kernel), 1, low=1)
    dilation = list_of(a, "dilations", len(kernel), 1, low=1)
    pads = window_pads(a, x[0].shape[2:], kernel, stride, dilation)
    return b.op(
        "convolution", *x, stride=stride, padding=flat_pads(pads), dilation=dilation, groups=a["group"]
    )


@onnx_op(f"ConvTranspose{_CONV}, output_padding: ints?, output_shape: ints?)")
def _conv_transpose(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Where `output_shape` asks for more than all pads of 0 would give, zeros come after."""
    kernel = kernel_of(x[1], x[0], a["kernel_shape"])
    count = len(kernel)
    stride = list_of(a, "strides", count, 1, low=1)
    dilation = list_of(a, "dilations", count, 1, low=1)
    extra = list_of(a, "output_padding", count, 0)
    full = [
        (size - 1) * s + (k - 1) * d + 1 + more
        for size, s, k, d, more in zip(x[0].shape[2:], stride, kernel, dilation, extra, strict=True)
    ]
    if a["output_shape"] is None and a["auto_pad"] in ("NOTSET", "VALID"):
        pads = window_pads(a, x[0].shape[2:], kernel, stride, dilation)
    else:
        if a["auto_pad"] not in _AUTO:
            raise FormatError(f"auto_pad={a['auto_pad']!r}", wanted=", ".join(_AUTO))
        wanted = list(list_of(a, "output_shape", count, 0))
        if a["output_shape"] is None:
            wanted = [size * s for size, s in zip(x[0].shape[2:], stride, strict=True)]
        pads = []
        for have, want in zip(full, wanted, strict=True):
            cut = have - want
            less = max(cut, 0) // 2
            pads.append(
                (less, cut - less) if a["auto_pad"] == "SAME_UPPER" or cut < 0 else (cut - less, less)
            )
    kept = [(max(before, 0), max(after, 0)) for before, after in pads]
    # The table holds output_padding below stride or dilation; ONNX does not: zeros after the end do the same.
    fits = all(more < max(s, d) for more, s, d in zip(extra, stride, dilation, strict=True))
    out = b.op(
        "convolution",
        *(x if fits else [x[0], x[1], None]),
        stride=stride,
        padding=flat_pads(kept if fits else [(0, 0)] * count),
        dilation=dilation,
        transposed=True,
        output_padding=extra if fits else (0,) * count,
        groups=a["group"],
    )
    grow = [(min(before, 0), min(after, 0)) for before, after in pads]
    if not fits:
        grow = [(before, after - more) for (before, after), more in zip(pads, extra, strict=True)]
    out = pad_with(b, out, [(0, 0), (0, 0), *((-before, -after) for before, after in grow)], 0)
    if not fits and x[2] is not None:
        out = b.op("add", out, b.reshape(x[2], (-1, *[1] * count)))
    return out


# --- matrices -------------------------------------------------------------------------------------


@onnx_op("MatMul(A, B)")
def _matmul(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.op("matmul", *x)


@onnx_op(
    "Gemm(A, B, C?; alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0, broadcast: int?)"
)
def _gemm(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Alpha * A' @ B' + beta * C; a linear where it is one."""
    left, right, bias = x
    if left.rank != 2 or right.rank != 2:
        raise FormatError(f"A of shape {list(left.shape)}, B of shape {list(right.shape)}", wanted="matrices")
    left = b.permute(left, (1, 0)) if a["transA"] else left
    plain = a["alpha"] == 1 and (bias is None or a["beta"] == 1) and left.dtype in FLOATS
    if a["transB"] and plain and (bias is None or bias.shape == right.shape[:1]):
        return b.op("linear", left, right, bias)
    right = b.permute(right, (1, 0)) if a["transB"] else right
    if plain and bias is not None and bias.shape == right.shape[1:]:
        return b.op("addmm", bias, left, right)
    out = scaled(b, b.op("matmul", left, right), a["alpha"])
    if bias is None:
        return out
    return b.op("add", out, scaled(b, bias, a["beta"]))


def scaled(b: Builder, x: Tensor, by: float) -> Tensor:
    """X times a number; as it is for 1."""
    return x if by == 1 else b.op("mul", x, float(by) if x.dtype in FLOATS else int(by))


@onnx_op(
    "FusedMatMul(A, B; alpha: float = 1.0, transA: int = 0, transB: int = 0, transBatchA: int = 0, "
    "transBatchB: int = 0)",
    domain=MICROSOFT,
)
def _fused_matmul(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    if a["transBatchA"] or a["transBatchB"]:
        raise UnsupportedError("transBatchA or transBatchB", wanted="0")
    sides = [
        b.op("transpose", side, dim0=-1, dim1=-2) if flip and side.rank > 1 else side
        for side, flip in zip(x, (a["transA"], a["transB"]), strict=True)
    ]
    return scaled(b, b.op("matmul", *sides), a["alpha"])


@onnx_op("Einsum(Inputs*; equation: str)")
def _einsum(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Ellipses become letters, a result left out is written out, repeated letters take the diagonal."""
    equation = a["equation"].replace(" ", "")
    if not re.fullmatch(r"[A-Za-z.,]*(->[A-Za-z.]*)?", equation) or len(equation) > 256:
        raise FormatError(f"equation={a['equation'][:80]!r}", wanted="terms of letters")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(x):
        raise FormatError(f"equation={equation!r} of {len(x)} inputs", wanted=f"{len(terms)} inputs")
    letters = [chr(at) for at in (*range(97, 123), *range(65, 91)) if chr(at) not in equation]
    ranks = [item.rank - len(term.replace("...", "")) for term, item in zip(terms, x, strict=True)]
    most = max((rank for rank, term in zip(ranks, terms, strict=True) if "..." in term), default=0)
    if most > len(letters) or any(
        rank < 0 or (rank and "..." not in term) for rank, term in zip(ranks, terms, strict=True)
    ):
        raise FormatError(f"equation={equation!r}", wanted="as many letters as dims")
    shared = "".join(letters[:most])
    full = [term.replace("...", shared[most - rank :]) for rank, term in zip(ranks, terms, strict=True)]
    if not arrow:
        every = "".join(terms).replace(".", "")
        out = ("..." if "..." in left else "") + "".join(sorted(c for c in set(every) if every.count(c) == 1))
    out = out.replace("...", shared)
    if "." in out or any("." in term for term in full):
        raise FormatError(f"equation={equation!r}", wanted="'...' at most once in a term")
    tensors = _broadcast(b, list(x), full)
    tensors, full = _diagonals(b, tensors, full)
    return b.op("einsum", *tensors, equation=f"{','.join(full)}->{out}")


def _broadcast(b: Builder, tensors: list[Tensor], terms: list[str]) -> list[Tensor]:
    """Dims of size 1 grown to the size their letter has elsewhere."""
    sizes: dict[str, int] = {}
    for item, term in zip(tensors, terms, strict=True):
        for letter, size in zip(term, item.shape, strict=True):
            sizes[letter] = size if sizes.get(letter, 1) == 1 else sizes[letter]
    return [
        b.expand(item, [sizes[c] if size == 1 else size for c, size in zip(term, item.shape, strict=True)])
        for item, term in zip(tensors, terms, strict=True)
    ]


def _diagonals(b: Builder, tensors: list[Tensor], terms: list[str]) -> tuple[list[Tensor], list[str]]:
    """Letters that stand twice in one term: the elements where both indices are equal."""
    for at, term in enumerate(terms):
        for letter in dict.fromkeys(term):
            while terms[at].count(letter) > 1:
                first = terms[at].index(letter)
                second = terms[at].index(letter, first + 1)
                tensors[at] = diagonal(b, tensors[at], first, second)
                terms[at] = terms[at][:second] + terms[at][second + 1 :]
    return tensors, terms


def diagonal(b: Builder, x: Tensor, first: int, second: int) -> Tensor:
    """The elements whose indices along two dims are equal, at the place of the first."""
    size = x.shape[first]
    if x.shape[second] != size:
        raise FormatError(f"a diagonal of sizes {size} and {x.shape[second]}", wanted="equal sizes")
    rest = [at for at in range(x.rank) if at not in (first, second)]
    flat = b.reshape(b.permute(x, [first, second, *rest]), (size * size, *(x.shape[at] for at in rest)))
    picked = b.pick(flat, 0, [at * (size + 1) for at in range(size)])
    return b.permute(picked, [*range(1, first + 1), 0, *range(first + 1, x.rank - 1)])
