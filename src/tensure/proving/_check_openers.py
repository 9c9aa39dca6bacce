"""The checker's writing of ops: an element of what an op makes, by the elements of what it reads.

Each opener is given the writer, attributes, sources, the shape of the result and the spots of the element in
it; None, or Stuck, where it does not know. Written apart from the prover.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Final, TypeAlias

from ._check_index import FIRST
from ._check_linear import signs, value
from ._check_masked import _entire, _less
from ._check_masked_gather import _unshifted
from ._check_monomials import NONE, Written, exp_of, inverse, plus, times
from ._check_piece import ONE, Shape, is_part
from ._check_spots import ANY, Source, Spot, part_of, seen_as

Opener: TypeAlias = "Callable[[Any, dict[str, Any], list[Source], Shape, Sequence[Spot]], Written | None]"


def _mul(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    return times(w.spread(args[0], out, at), w.spread(args[1], out, at))


def _div(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    if attrs.get("rounding_mode") is not None:
        return None
    return times(w.spread(args[0], out, at), inverse(w.spread(args[1], out, at)))


def _reciprocal(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    return inverse(w.of(args[0], at))


def _linear(op: str) -> Opener:
    def opened(
        w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]
    ) -> Written | None:
        coefs = signs(op, attrs, len(args))
        if coefs is None:
            return None
        made: Written = {}
        for coef, arg in zip(coefs, args, strict=True):
            made = plus(made, w.spread(arg, out, at), coef)
        return made

    return opened


def _exp(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    return exp_of(w.of(args[0], at))


def _log(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    made = w.of(args[0], at)
    if len(made) != 1:
        return None
    (((factors, exponent), coef),) = made.items()
    return None if factors or coef != 1 else dict(exponent)


def _expand(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    return w.spread(args[0], out, at)


def _view(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    spots = seen_as(w.shape(args[0]), out, at)
    return None if spots is None else w.of(args[0], spots)


def _permute(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    dims = attrs["dims"]
    return w.of(args[0], [at[dims.index(dim)] for dim in range(len(dims))])


def _sum(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    if "dtype" in attrs:
        return None
    made, names = w.along(args[0], _unreduced(w, attrs, args, at), attrs["dim"])
    return w.summed(made, names)


def _mean(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    made, count = _sum(w, attrs, args, out, at), 1
    for dim in attrs["dim"]:
        count *= w.shape(args[0])[dim]
    return None if made is None else plus({}, made, Fraction(1, count))


def _logsumexp(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    return w.log_sum(*w.along(args[0], _unreduced(w, attrs, args, at), attrs["dim"]))


def _unreduced(w: Any, attrs: dict[str, Any], args: list[Source], at: Sequence[Spot]) -> list[Spot]:
    """Spots of the operand; those of reduced dims do not matter."""
    rank, dims, left = len(w.shape(args[0])), attrs["dim"], list(at)
    if attrs.get("keepdim"):
        return left
    return [ANY if dim in dims else left.pop(0) for dim in range(rank)]


def _log_softmax(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    dim = attrs["dim"] % len(out)
    if "dtype" in attrs or attrs.get("half_to_float"):
        return None
    return plus(w.of(args[0], at), w.log_sum(*w.along(args[0], at, (dim,))), -ONE)


def _softmax(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    made = _log_softmax(w, attrs, args, out, at)
    return None if made is None else exp_of(made)


def _log_softmax_backward(
    w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]
) -> Any:
    """Makes g - exp(y) sum(g)."""
    total = w.summed(*w.along(args[0], at, (attrs["dim"] % len(out),)))
    return plus(w.of(args[0], at), times(exp_of(w.of(args[1], at)), total), -ONE)


def _gather(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    spots, dim = list(at), attrs["dim"] % len(out)
    spots[dim] = w.by(args[1], at, w.shape(args[0])[dim])
    return w.of(args[0], spots)


def _loss(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    """Less what stands at the target, where none is the class to be ignored."""
    if attrs["reduction"] or args[2] is not None or not w.values.counts(attrs, args[1]) or len(out) != 1:
        return None
    return plus({}, w.of(args[0], [at[0], w.by(args[1], at, w.shape(args[0])[1])]), -ONE)


def _loss_backward(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    """Less the gradient, at the target."""
    if attrs["reduction"] or args[3] is not None or not w.values.counts(attrs, args[2]) or len(out) != 2:
        return None
    hit = w.atom(("is", at[1], w.entry(args[2], at[:1])))
    return plus({}, times(w.of(args[0], at[:1]), hit), -ONE)


def _scatter(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    """Numbers put among zeros, one in each line: a number times where it is put."""
    dim = attrs["dim"] % len(out)
    thin = (*out[:dim], 1, *out[dim + 1 :])
    if w.shape(args[1]) != thin or w.shape(args[2]) != thin or w.of(args[0], at):
        return None
    spots = (*at[:dim], ("on", None, FIRST), *at[dim + 1 :])
    node, _ = w.entry(args[1], spots)
    if not isinstance(node, int) or _less(w.values, w.values.defs[node]) is None or at[dim][0] != "on":
        return times(w.of(args[2], spots), w.atom(("is", at[dim], w.entry(args[1], spots))))
    return _put(w, args[1], args[2], spots, at[dim], out[dim])


def _index_put(w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]) -> Any:
    """Masked numbers put into a table among zeros, one in each line."""
    if len(args) != 4 or len(out) != 2 or at[1][0] != "on" or w.of(args[0], at):
        return None
    node, lines = w.entry(args[2], at[:1])
    item = w.values.defs[node] if isinstance(node, int) else None
    counted = item is not None and item.op == "arange" and item.attrs.get("start", 0) == 0
    if item is None or not counted or item.attrs.get("step", 1) != 1 or item.shape != out[:1]:
        return None
    if lines != (at[0],) or w.shape(args[1]) != out[:1] or w.shape(args[3]) != out[:1]:
        return None
    return _put(w, args[3], args[1], at[:1], at[1], out[1])


def _put(w: Any, places: Source, source: Source, spots: Sequence[Spot], column: Spot, count: int) -> Any:
    """Numbers masked as their indices are, in the columns from the least index that is not masked."""
    node, where = w.entry(places, spots)
    shifted = _less(w.values, w.values.defs[node]) if isinstance(node, int) else None
    if shifted is None:
        return None
    # Masked: of what stands outside lo..hi a 0 is put, and what is inside goes to its own column less lo.
    low = shifted[1]
    found = _unshifted(w.values, node, low, low + count)
    kept = None if found is None else _kept(w, source, spots, found[0], where)
    if found is not None and kept is None:
        kept = _one_less(w, source, spots, found[0], where)
    if found is None or kept is None or found[1][2] != 1:
        return None
    _, (own, outer, _) = found
    index = w.entry(((ONE, own, outer),), where)
    _, axis, columns = column
    return times(kept, w.atom(("is", ("on", axis, columns.shifted(low)), index)))


def _kept(w: Any, source: Source, spots: Sequence[Spot], chooser: int, where: Any) -> Written | None:
    """What a masked number is where the mask does not hold, if it is masked as its index is."""
    if not isinstance(source, tuple) or len(source) != 1:
        return None
    coef, node, reg = source[0]
    node, found = w.entry(((ONE, node, reg),), spots)
    if not isinstance(node, int):
        return None
    item = w.values.defs[node]
    if item.op not in ("where", "masked_fill"):
        return None
    order = (0, 1, 2) if item.op == "where" else (1, 2, 0)
    mask, blank, kept = (item.operands[place] for place in order)
    zero = w.values.zero(blank[0]) if is_part(blank) else value(blank) == 0
    if not zero or not _entire(w.values, mask) or mask[0] != chooser or found != where:
        return None
    if w.values.defs[chooser].shape != item.shape:
        return None
    spread: Written = w.spread(part_of(kept), item.shape, found)
    return plus({}, spread, coef)


def _one_less(w: Any, source: Source, spots: Sequence[Spot], chooser: int, where: Any) -> Any:
    """Of a mask, as 0 and 1, less 1: where the mask does not hold, and 0 where it does."""
    made: Written = w.of(source, spots)
    number = made.get((NONE, NONE))
    if number is None or len(made) != 2:
        return None
    (((factors, power), coef),) = [pair for pair in made.items() if pair[0] != (NONE, NONE)]
    if power or coef != -number or len(factors) != 1:
        return None
    (((kind, *place), count),) = factors
    if kind != "value" or count != 1 or place[1] != where:
        return None
    item = w.values.defs[place[0]]
    cast = item.op == "_to_copy" and _entire(w.values, item.operands[0]) and item.operands[0][0] == chooser
    return {(NONE, NONE): number} if cast and w.values.defs[chooser].shape == item.shape else None


def _select_backward(
    w: Any, attrs: dict[str, Any], args: list[Source], out: Shape, at: Sequence[Spot]
) -> Any:
    """The one index of a dim of size 1 is all of it."""
    return _view(w, attrs, args, out, at) if out[attrs["dim"] % len(out)] == 1 else None


OPENERS: Final[dict[str, Opener]] = {
    **{op: _linear(op) for op in ("add", "sub", "rsub", "neg", "add_n")},
    "mul": _mul,
    "div": _div,
    "reciprocal": _reciprocal,
    "exp": _exp,
    "log": _log,
    "expand": _expand,
    "view": _view,
    "permute": _permute,
    "sum": _sum,
    "mean": _mean,
    "logsumexp": _logsumexp,
    "_log_softmax": _log_softmax,
    "log_softmax": _log_softmax,
    "_softmax": _softmax,
    "softmax": _softmax,
    "_log_softmax_backward_data": _log_softmax_backward,
    "gather": _gather,
    "nll_loss_forward": _loss,
    "nll_loss_backward": _loss_backward,
    "scatter_add": _scatter,
    "index_put": _index_put,
    "select_backward": _select_backward,
}
