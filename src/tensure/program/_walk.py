"""From records to steps: expand For and Call, and let many ranks take their steps together.

On what `expand` yields meaning is defined. `walk` runs ranks as deterministic processes that meet
only in sends, receives and collectives (a Kahn network: the order of progress cannot change a
value). Both know nothing of values: the machine handed to `walk` does the computing, so the same
walk serves numpy evaluation, shape inference, byte tags, timing and proof.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Final, Protocol, TypeVar

from tensure.errors import EvaluationError, LimitError, RecordError

from ._expr import Env, Expr, evaluate
from ._records import Arg, Attr, Block, Body, Call, Cat, Each, For, Item, Name, Op, Ref

MAX_STEPS: Final = 1 << 21
MAX_SPLICE: Final = 1 << 16
MAX_DEPTH: Final = 64

COLLECTIVES: Final = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all"})
COMMUNICATION: Final = COLLECTIVES | {"send", "recv"}

Rank = TypeVar("Rank", bound=Hashable)


def expand(blocks: Mapping[str, Block], body: Body, env: Env, *, limit: int = MAX_STEPS) -> Iterator[Op]:
    """Every op in order, with names, boxes, attributes and numbers ground; Each spliced.

    Raises:
        RecordError: an unknown block or name, wrong argument counts, a bad range.
        LimitError: over `limit` steps, empty turns and calls included, or blocks nested over 64 deep
            (which ends a recursive block).
    """
    for item, bound in _items(blocks, body, dict(env), limit):
        yield ground(item, bound)


def ground(item: Op, env: Env) -> Op:
    """One op under an environment."""
    args: list[Arg] = []
    for arg in item.args:
        if isinstance(arg, Ref) and not arg.box:
            args.append(Ref(arg.name.ground(env)))
        else:
            _ground_arg(arg, env, args, [MAX_SPLICE])
    attrs = item.attrs
    for _, value in attrs:
        if isinstance(value, (Expr, tuple)):
            attrs = tuple([(key, ground_attr(value, env)) for key, value in attrs])
            break
    return Op(item.op, tuple(args), tuple([out.ground(env) for out in item.outs]), attrs, item.note)


def ground_attr(value: Attr, env: Env) -> Attr:
    """An attribute with every expression in it an integer."""
    if isinstance(value, Expr):
        return value(env)
    if isinstance(value, tuple):
        return tuple(ground_attr(part, env) for part in value)
    return value


def _items(
    blocks: Mapping[str, Block], body: Body, env: dict[str, int], limit: int
) -> Iterator[tuple[Op, dict[str, int]]]:
    """Depth first with an explicit stack, so that hostile nesting cannot exhaust Python's.

    What is counted is every item reached, ops or not: a loop over empty loops makes no op and no end.
    """
    stack: list[Iterator[tuple[Item, dict[str, int]]]] = [_with(body, env)]
    reached = 0
    while stack:
        found = next(stack[-1], None)
        reached += 1
        if reached > 2 * limit:
            raise LimitError(f"over {limit} steps in one expansion")
        if found is None:
            stack.pop()
            continue
        item, bound = found
        if isinstance(item, Op):
            yield item, bound
            continue
        if len(stack) > MAX_DEPTH:
            raise LimitError(
                f"blocks and loops nested over {MAX_DEPTH} deep",
                next_step="Look for a block that calls itself.",
            )
        stack.append(_loop(item, bound) if isinstance(item, For) else _with(*_enter(blocks, item, bound)))


def _with(body: Body, env: dict[str, int]) -> Iterator[tuple[Item, dict[str, int]]]:
    return ((item, env) for item in body)


def _loop(item: For, env: dict[str, int]) -> Iterator[tuple[Item, dict[str, int]]]:
    if item.var in env:
        raise RecordError(f"the loop over {item.var!r} hides another {item.var!r}")
    lo, hi = evaluate(item.lo, env), evaluate(item.hi, env)
    if hi - lo > MAX_STEPS:
        raise LimitError(f"a loop of {hi - lo} turns over {item.var!r}")
    for turn in range(lo, hi):
        bound = {**env, item.var: turn}
        for inner in item.body:
            yield inner, bound


def _enter(blocks: Mapping[str, Block], item: Call, env: dict[str, int]) -> tuple[Body, dict[str, int]]:
    block = blocks.get(item.block)
    if block is None:
        raise RecordError(f"no block {item.block!r}", wanted=", ".join(blocks) or "a block")
    if len(block.params) != len(item.args):
        raise RecordError(f"call {item.block} with {len(item.args)} arguments", wanted=f"{len(block.params)}")
    # Loop variables of the caller stay visible: a block's free names are bound where it is called.
    return block.body, {
        **env,
        **{key: evaluate(arg, env) for key, arg in zip(block.params, item.args, strict=True)},
    }


def _ground_arg(arg: Arg, env: Env, out: list[Arg], left: list[int]) -> None:
    """Append what one operand becomes; `left` counts down over all splices of one op, however nested."""
    left[0] -= 1
    if left[0] < 0:
        raise LimitError(f"over {MAX_SPLICE} operands spliced into one op")
    if isinstance(arg, Ref):
        box = tuple([(dim, evaluate(lo, env), evaluate(hi, env)) for dim, lo, hi in arg.box])
        out.append(Ref(arg.name.ground(env), box))
    elif isinstance(arg, Cat):
        parts: list[Arg] = []
        for inner in arg.parts:
            _ground_arg(inner, env, parts, left)
        out.append(Cat(arg.dim, tuple(parts)))
    elif isinstance(arg, Each):
        for turn in range(evaluate(arg.lo, env), evaluate(arg.hi, env)):
            _ground_arg(arg.item, {**env, arg.var: turn}, out, left)
    else:
        out.append(arg(env) if isinstance(arg, Expr) else arg)


class Machine(Protocol[Rank]):
    """What `walk` needs to know about values and ranks."""

    def compute(self, rank: Rank, step: Op) -> None:
        """Run one local step on one rank."""
        ...

    def send(self, rank: Rank, step: Op) -> tuple[Rank, Any]:
        """The receiver of a send and what is sent."""
        ...

    def recv(self, rank: Rank, step: Op, payload: Any) -> None:
        """Take delivery."""
        ...

    def group(self, rank: Rank, step: Op) -> tuple[Rank, ...]:
        """The members of a collective, this rank among them, in one order for all of them."""
        ...

    def contribute(self, rank: Rank, step: Op) -> Any:
        """This rank's operand of a collective."""
        ...

    def collective(self, step: Op, payloads: Mapping[Rank, Any]) -> None:
        """Everyone has contributed: give each member its result."""
        ...


def walk(streams: Mapping[Rank, Iterator[Op]], machine: Machine[Rank]) -> None:
    """Take every rank's steps until all streams end.

    Raises:
        EvaluationError: a deadlock (who waits for what), a (receiver, key) sent twice, or a message
            nobody received.
    """
    current: dict[Rank, Op | None] = {rank: next(stream, None) for rank, stream in streams.items()}
    mail: dict[tuple[Rank, Attr], Any] = {}
    used: set[tuple[Rank, Attr]] = set()
    meetings: dict[tuple[tuple[Rank, ...], tuple[Name, ...]], tuple[Op, dict[Rank, Any]]] = {}
    live = [rank for rank, step in current.items() if step is not None]
    moved = False

    def advance(rank: Rank, step: Op) -> bool:
        """Take one step if it can be taken now."""
        nonlocal moved
        if step.op == "send":
            receiver, payload = machine.send(rank, step)
            address = (receiver, step.attr("key"))
            if address in used:
                raise EvaluationError(f"two sends under {_address(address)}", place=str(rank))
            used.add(address)
            mail[address] = payload
            return True
        if step.op == "recv":
            address = (rank, step.attr("key"))
            if address not in mail:
                return False
            machine.recv(rank, step, mail.pop(address))
            return True
        if step.op in COLLECTIVES:
            members = machine.group(rank, step)
            first, meeting = meetings.setdefault((members, step.outs), (step, {}))
            if (step.op, repr(step.attrs)) != (first.op, repr(first.attrs)):
                raise EvaluationError(
                    f"{rank} comes with {_call(step)}, another with {_call(first)}",
                    place=", ".join(map(str, step.outs)),
                    wanted="one collective with equal attributes for all its members",
                )
            if rank not in meeting:
                meeting[rank] = machine.contribute(rank, step)
                moved = True
                if len(meeting) == len(members):
                    machine.collective(step, {member: meeting[member] for member in members})
            return len(meeting) == len(members)
        machine.compute(rank, step)
        return True

    while live:
        moved = False
        for rank in live:
            while (step := current[rank]) is not None and advance(rank, step):
                current[rank], moved = next(streams[rank], None), True
        live = [rank for rank in live if current[rank] is not None]
        if live and not moved:
            waits = "; ".join(f"{rank} waits at {_wait(current[rank])}" for rank in live[:4])
            raise EvaluationError(f"deadlock: {waits}")
    if mail:
        raise EvaluationError(f"sent but never received: {', '.join(map(_address, list(mail)[:3]))}")


def _call(step: Op) -> str:
    return f"{step.op} {dict(step.attrs)}"


def _wait(step: Op | None) -> str:
    if step is None:
        return "nothing"
    detail = f" key={step.attr('key')}" if step.op == "recv" else ""
    return f"{step.op} of {', '.join(map(str, step.outs))}{detail}"


def _address(address: tuple[Any, Attr]) -> str:
    return f"{address[0]} key={address[1]}"


__all__ = ["COLLECTIVES", "COMMUNICATION", "Machine", "expand", "ground", "ground_attr", "walk"]
