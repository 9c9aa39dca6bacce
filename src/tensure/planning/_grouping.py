"""Which ops of an entry make one step: a convolution with its norm, residual and activation, and so on.

A group is a draft: a step whose operands are still Program values in no particular layout, or the reason why
the op goes to the host. Knows ops, types and names; layouts and memory come later (`_segments.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from tensure.program import Arg, Name, Op, Ref, TensorType

from ._steps import (
    NO_ACTIVATION,
    RELU,
    RELU6,
    SILU,
    Activation,
    ActivationStep,
    AdaptivePoolStep,
    ConvStep,
    FoldedNorm,
    LinearStep,
    MeanStep,
    PointwiseStep,
    PoolStep,
    SoftmaxStep,
    Step,
    Window,
    as_layouts,
)

__all__ = ["Alias", "Group", "Reordered", "group_ops"]

_SAME_ORDER: Final = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "copy")
_REORDER: Final = ("permute", "transpose", "t")


def group_ops(
    ops: Sequence[Op],
    types: Mapping[str, TensorType],
    roles: Mapping[str, str],
    outputs: Sequence[str],
    activations: frozenset[str],
) -> tuple[list[Group], list[FoldedNorm]]:
    """The groups in the order of their last ops, and the batch norms that went into weights.

    Args:
        ops: a ground, single-assignment list.
        types: of every value.
        roles: "input", "state" or "weight" of what no op makes.
        outputs: values that must come out under their own names.
        activations: those that may end a group.
    """
    grouping = _Grouping(_with_silu(ops, types, outputs), types, roles, frozenset(outputs), activations)
    return grouping.run(), grouping.folds


@dataclass(frozen=True, slots=True)
class Alias:
    """The same elements in the same row-major order, under another shape."""

    out: str
    x: str


@dataclass(frozen=True, slots=True)
class Reordered:
    """The same elements with dims in another order: result dim i is operand dim dims[i]."""

    out: str
    x: str
    dims: tuple[int, ...]


_Draft: TypeAlias = Step | Alias | Reordered
"""A step whose operands are still Program values, in no particular layout."""


@dataclass(slots=True)
class Group:
    """Ops that become one step. Without a draft its only op goes to the host, for the reason."""

    op: Op
    draft: _Draft | None
    reason: str = ""

    def outs(self) -> tuple[str, ...]:
        """The values it makes."""
        return tuple(map(str, self.op.outs)) if self.draft is None else (self.draft.out,)


class _Refused(Exception):
    """Why no step computes an op."""


class _Grouping:
    """Ops into groups, in the order of each group's last op."""

    def __init__(
        self,
        ops: Sequence[Op],
        types: Mapping[str, TensorType],
        roles: Mapping[str, str],
        outputs: frozenset[str],
        activations: frozenset[str],
    ) -> None:
        self._ops, self._types, self._roles, self._outputs = ops, types, roles, outputs
        self._activations = activations
        self._uses = Counter(str(ref.name) for op in ops for ref in op.reads())
        self._makers = {str(out): op for op in ops for out in op.outs}
        self._readers = {str(ref.name): at for at, op in enumerate(ops) for ref in op.reads()}
        self._taken: set[int] = set()
        self.folds: list[FoldedNorm] = []

    def run(self) -> list[Group]:
        """Every op in exactly one group; a pad that only convolutions read which took it in is in theirs."""
        ending: dict[int, Group] = {}
        for at, op in enumerate(self._ops):
            if at not in self._taken:
                group = self._start(op)
                ending[self._grow(group, at)] = group
        return [group for _, group in sorted(ending.items()) if not self._is_spent_pad(group)]

    def _start(self, op: Op) -> Group:
        form = _FORMS.get(op.op)
        if form is None:
            return Group(op, None, f"no kernel computes {op.op}")
        (found,) = (self._types[str(out)] for out in op.outs)
        if found.dtype != "f32" and op.op not in _SAME_ORDER:  # another shape needs no kernel
            return Group(op, None, f"{found.dtype}, and kernels compute f32")
        try:
            return Group(op, form(self, op))
        except _Refused as refused:
            return Group(op, None, str(refused))

    def _grow(self, group: Group, at: int) -> int:
        """Take in what follows as long as nobody else reads what is between; the last op's place."""
        step = group.draft
        if not isinstance(step, ConvStep | LinearStep | PointwiseStep):
            return at
        stage = 0  # 0 just the op, 1 with its norm, 2 with its residual, 3 with its activation
        while stage < 3 and self._uses[step.out] == 1 and step.out not in self._outputs:
            reader = self._readers[step.out]
            if reader in self._taken:
                break  # the residual of an earlier convolution
            op = self._ops[reader]
            activation = self._activation_of(op)
            residual = self._residual(op, step.out) if isinstance(step, ConvStep) else None
            if stage < 1 and not isinstance(step, PointwiseStep) and (fold := self._fold(op, step)):
                self.folds.append(fold)
                step, stage = replace(step, weight=fold.weight, bias=fold.bias), 1
            elif stage < 2 and isinstance(step, ConvStep) and residual is not None:
                step, stage = replace(step, residual=residual), 2
            elif activation is not None and activation.kind in self._activations:
                step, stage = replace(step, activation=activation), 3
            else:
                break
            step = replace(step, out=str(op.outs[0]))
            self._taken.add(reader)
            at = reader
        group.draft = step
        return at

    # A form makes an op's draft, or raises _Refused with what no kernel can do about it.

    def convolution(self, op: Op) -> _Draft:
        """A convolution, with the zeros padded around its operand."""
        x, weight, bias = self._with_constants(op)
        sizes = self._types[weight].shape
        if len(sizes) != 4 or op.attr("transposed", False):
            raise _Refused("transposed, 1-D and 3-D convolutions have no kernel")
        padding = _padding(op)
        maker = self._makers.get(x)
        if maker is not None and (around := self._zeros_around(maker)) is not None:
            self._uses[x] -= 1  # the pad stays where others read it
            x = self._whole(maker.args[0])
            top, bottom, left, right = around
            padding = (padding[0] + top, padding[1] + bottom, padding[2] + left, padding[3] + right)
        window = Window((sizes[2], sizes[3]), _two(op, "stride"), padding, _two(op, "dilation"))
        groups = op.attr("groups", 1)
        assert isinstance(groups, int)
        depthwise = groups > 1 and sizes[1] == 1
        out = str(op.outs[0])
        return ConvStep(out, x, weight, bias, None, NO_ACTIVATION, window, groups, depthwise)

    def linear(self, op: Op) -> _Draft:
        """A linear of any rank."""
        x, weight, bias = self._with_constants(op)
        if len(self._types[weight].shape) != 2:
            raise _Refused("the weight is no matrix")
        return LinearStep(str(op.outs[0]), x, weight, bias, NO_ACTIVATION)

    def pool(self, op: Op) -> _Draft:
        """A max or average pool."""
        out, x = str(op.outs[0]), self._image(op)
        kernel = _two(op, "kernel_size")
        stride = _two(op, "stride") if op.attr("stride", ()) else kernel
        window = Window(kernel, stride, _padding(op), _two(op, "dilation"))
        ceil_mode = bool(op.attr("ceil_mode", False))
        if op.op == "max_pool2d":
            return PoolStep(out, x, "max", window, ceil_mode)
        divisor = op.attr("divisor_override")
        assert divisor is None or isinstance(divisor, int)
        count_padding = bool(op.attr("count_include_pad", True))
        return PoolStep(out, x, "avg", window, ceil_mode, count_padding, divisor)

    def adaptive_pool(self, op: Op) -> _Draft:
        """The plainest step that has the same windows."""
        out, x = str(op.outs[0]), self._image(op)
        size, want = self._types[x].shape[2:], self._types[out].shape[2:]
        if size == want:
            return Alias(out, x)
        if want == (1, 1):
            return MeanStep(out, x)
        if all(count and extent % count == 0 for extent, count in zip(size, want, strict=True)):
            kernel = (size[0] // want[0], size[1] // want[1])
            return PoolStep(out, x, "avg", Window(kernel, kernel))
        return AdaptivePoolStep(out, x)

    def mean(self, op: Op) -> _Draft:
        """The mean over a whole image."""
        x, dims = self._image(op), op.attr("dim")
        which = {dim % 4 for dim in dims if isinstance(dim, int)} if isinstance(dims, tuple) else set[int]()
        if which != {2, 3} or 0 in self._types[x].shape[2:]:
            raise _Refused("a mean over other dims than height and width")
        return MeanStep(str(op.outs[0]), x)

    def pointwise(self, op: Op) -> _Draft:
        """A sum or product of two values."""
        if not all(isinstance(arg, Ref) for arg in op.args) or op.attr("alpha", 1) != 1:
            raise _Refused("an operand is a number, or scaled")
        a, b = (self._f32(arg) for arg in op.args)
        one, two = self._types[a].shape, self._types[b].shape
        if one != two and _is_scale_of(one, two):
            a, b = b, a
        elif one != two and not _is_scale_of(two, one):
            raise _Refused(f"{list(one)} with {list(two)}: neither equal nor [N,C,1,1] over an image")
        return PointwiseStep(str(op.outs[0]), "add" if op.op == "add" else "mul", a, b, NO_ACTIVATION)

    def activation(self, op: Op) -> _Draft:
        """An activation by itself."""
        x, found = self._f32(op.args[0]), self._activation_of(op)
        if found is None:
            raise _Refused("a bound is no number")
        if found.kind not in self._activations:
            raise _Refused(f"no kernel has {found}")
        return ActivationStep(str(op.outs[0]), x, found)

    def softmax(self, op: Op) -> _Draft:
        """A softmax over the last dim."""
        x, dim = self._f32(op.args[0]), op.attr("dim")
        rank = len(self._types[x].shape)
        if not isinstance(dim, int) or rank == 0 or dim % rank != rank - 1:
            raise _Refused("a softmax over another dim than the last")
        return SoftmaxStep(str(op.outs[0]), x)

    def same_order(self, op: Op) -> _Draft:
        """Another shape for the same row-major elements."""
        return Alias(str(op.outs[0]), self._whole(op.args[0]))

    def unchanged(self, op: Op) -> _Draft:
        """An op that may change elements, when it does not."""
        out, x = str(op.outs[0]), self._whole(op.args[0])
        if self._types[x] != self._types[out]:
            raise _Refused("it repeats or converts elements")
        return Alias(out, x)

    def reorder(self, op: Op) -> _Draft:
        """A permutation that some layout stands for."""
        out, x = str(op.outs[0]), self._whole(op.args[0])
        dims = _permutation(op, len(self._types[x].shape))
        if not _memory_moves(dims, self._types[x].shape):
            return Alias(out, x)
        if len(dims) != 4 or not as_layouts(dims):
            raise _Refused("a permutation that no layout stands for")
        return Reordered(out, x, dims)

    # What forms and growing ask.

    def _whole(self, arg: Arg) -> str:
        """The name of a value that is read whole."""
        if isinstance(arg, Ref) and not arg.box:
            return str(arg.name)
        raise _Refused("an operand is no whole value")

    def _f32(self, arg: Arg) -> str:
        """The name of an f32 value that is read whole."""
        name = self._whole(arg)
        if self._types[name].dtype != "f32":
            raise _Refused(f"an operand is {self._types[name].dtype}, and kernels compute f32")
        return name

    def _image(self, op: Op) -> str:
        name = self._f32(op.args[0])
        if len(self._types[name].shape) != 4:
            raise _Refused("the operand is no [N, C, H, W]")
        return name

    def _with_constants(self, op: Op) -> tuple[str, str, str | None]:
        """Operand, weight and bias; kernels pack the last two, so they must be weights of the Program."""
        x, weight = self._f32(op.args[0]), self._f32(op.args[1])
        bias = None if op.args[2] is None else self._f32(op.args[2])
        if any(self._roles.get(name) != "weight" for name in (weight, bias) if name is not None):
            raise _Refused("weight or bias is computed, and kernels pack constants")
        return x, weight, bias

    def _activation_of(self, op: Op) -> Activation | None:
        """What an op is as an activation of its first operand."""
        if op.op not in ("relu", "silu", "hardtanh", "clamp"):
            return None
        if not isinstance(op.args[0], Ref) or op.args[0].box:
            return None
        if op.op in ("relu", "silu"):
            return RELU if op.op == "relu" else SILU
        if op.op == "hardtanh":
            low, high = op.attr("min_val", -1), op.attr("max_val", 1)
        else:
            # Any operand that is neither a number nor left out fails the test below.
            low, high = (
                arg if isinstance(arg, int | float) else fill if arg is None else None
                for arg, fill in zip(op.args[1:], (-math.inf, math.inf), strict=True)
            )
        if not isinstance(low, int | float) or not isinstance(high, int | float) or not low <= high:
            return None
        known = {(0.0, 6.0): RELU6, (0.0, math.inf): RELU}
        return known.get((float(low), float(high)), Activation("clamp", float(low), float(high)))

    def _residual(self, op: Op, out: str) -> str | None:
        """What an add adds to `out`, when both have the same type."""
        if op.op != "add" or op.attr("alpha", 1) != 1:
            return None
        names = [str(arg.name) for arg in op.args if isinstance(arg, Ref) and not arg.box]
        if len(names) != 2 or names.count(out) != 1:
            return None
        other = names[1 - names.index(out)]
        return other if self._types[other] == self._types[out] else None

    def _fold(self, op: Op, step: ConvStep | LinearStep) -> FoldedNorm | None:
        """A batch norm of constants right behind a step, as a part of the step's weight and bias."""
        if op.op != "batch_norm" or op.args[0] != Ref(self._name_of(step.out)):
            return None
        if isinstance(step, LinearStep) and len(self._types[step.out].shape) != 2:
            return None
        try:
            scale, shift, mean, var = (None if arg is None else self._f32(arg) for arg in op.args[1:])
        except _Refused:
            return None
        if any(self._roles.get(name) != "weight" for name in (scale, shift, mean, var) if name is not None):
            return None
        eps = op.attr("eps", 1e-05)
        if mean is None or var is None or not isinstance(eps, int | float):
            return None
        out = str(op.outs[0])
        return FoldedNorm(
            f"{out}@weight", f"{out}@bias", step.weight, step.bias, scale, shift, mean, var, float(eps)
        )

    def _name_of(self, out: str) -> Name:
        return next(name for name in self._makers[out].outs if str(name) == out)

    def _zeros_around(self, maker: Op) -> tuple[int, int, int, int] | None:
        """The (top, bottom, left, right) of zeros that an op puts around an image."""
        if maker.op != "constant_pad_nd" or maker.attr("value", 0) != 0:
            return None
        pad, arg = maker.attr("pad"), maker.args[0]
        if not isinstance(arg, Ref) or arg.box or len(self._types[str(arg.name)].shape) != 4:
            return None
        sides = [side for side in pad if isinstance(side, int)] if isinstance(pad, tuple) else []
        if len(sides) not in (2, 4) or min(sides) < 0:
            return None
        left, right, top, bottom = (*sides, 0, 0)[:4]  # ATen lists the last dim first
        return top, bottom, left, right

    def _is_spent_pad(self, group: Group) -> bool:
        """Whether every reader of a pad took it in."""
        if group.op.op != "constant_pad_nd":
            return False
        (out,) = group.outs()
        was_read = any(str(ref.name) == out for op in self._ops for ref in op.reads())
        return was_read and not self._uses[out] and out not in self._outputs


_Form: TypeAlias = Callable[[_Grouping, Op], _Draft]
_FORMS: Final[Mapping[str, _Form]] = {
    "convolution": _Grouping.convolution,
    "linear": _Grouping.linear,
    "max_pool2d": _Grouping.pool,
    "avg_pool2d": _Grouping.pool,
    "adaptive_avg_pool2d": _Grouping.adaptive_pool,
    "mean": _Grouping.mean,
    "add": _Grouping.pointwise,
    "mul": _Grouping.pointwise,
    "relu": _Grouping.activation,
    "silu": _Grouping.activation,
    "hardtanh": _Grouping.activation,
    "clamp": _Grouping.activation,
    "softmax": _Grouping.softmax,
    "_softmax": _Grouping.softmax,
    **dict.fromkeys(_SAME_ORDER, _Grouping.same_order),
    **dict.fromkeys(("expand", "_to_copy"), _Grouping.unchanged),
    **dict.fromkeys(_REORDER, _Grouping.reorder),
}


# --- small questions --------------------------------------------------------------------------------------


def _with_silu(ops: Sequence[Op], types: Mapping[str, TensorType], outputs: Sequence[str]) -> list[Op]:
    """The ops with silu(x) for x * sigmoid(x), where nothing else reads the sigmoid."""
    uses = Counter([*(str(ref.name) for op in ops for ref in op.reads()), *outputs])
    sigmoids = {
        op.outs[0]: op
        for op in ops
        if op.op == "sigmoid"
        and uses[str(op.outs[0])] == 1
        and isinstance(op.args[0], Ref)
        and not op.args[0].box
        and types[str(op.args[0].name)].dtype == "f32"
    }
    gone: set[Name] = set()
    found: list[Op] = []
    for op in ops:
        if op.op == "mul":
            gates = [arg for arg in op.args if isinstance(arg, Ref) and not arg.box and arg.name in sigmoids]
            for gate in gates:
                sigmoid = sigmoids[gate.name]
                if sigmoid.args[0] in op.args:
                    gone.add(gate.name)
                    op = Op("silu", sigmoid.args, op.outs, (), op.note)
                    break
        found.append(op)
    return [op for op in found if not gone & set(op.outs)]


def _two(op: Op, name: str) -> tuple[int, int]:
    """An attribute of one or two integers as (height, width); 1 where it is left out."""
    value = op.attr(name, (1,))
    assert isinstance(value, tuple)
    sizes = [size for size in value if isinstance(size, int)]
    return sizes[0], sizes[-1]


def _padding(op: Op) -> tuple[int, int, int, int]:
    """(top, bottom, left, right)."""
    value = op.attr("padding", (0,))
    assert isinstance(value, tuple)
    sides = [side for side in value if isinstance(side, int)]
    if len(sides) == 4:
        return sides[0], sides[1], sides[2], sides[3]
    return sides[0], sides[0], sides[-1], sides[-1]


def _is_scale_of(small: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether `small` is the [N, C, 1, 1] of an image."""
    return len(image) == 4 and small == (*image[:2], 1, 1)


def _permutation(op: Op, rank: int) -> tuple[int, ...]:
    """The dims of a permute, transpose or t: result dim i is operand dim dims[i]."""
    if op.op == "permute":
        given = op.attr("dims")
        assert isinstance(given, tuple)
        return tuple(dim % rank for dim in given if isinstance(dim, int))
    dims = list(range(rank))
    if op.op == "t" and rank < 2:
        return tuple(dims)
    a, b = (0, 1) if op.op == "t" else (op.attr("dim0"), op.attr("dim1"))
    assert isinstance(a, int) and isinstance(b, int)
    if rank:
        dims[a], dims[b] = dims[b], dims[a]
    return tuple(dims)


def _memory_moves(dims: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether row-major memory read in another order of dims moves any element (size 1 never does)."""
    real = [dim for dim in dims if shape[dim] != 1]
    return real != sorted(real) and 0 not in shape
