"""The plainest plan: one track, one rank, every entry's body as the Program has it.

Knows that nothing moves, so that every local tensor is its logical tensor, whole. Does not know the
machine: that a Program fits into one is for whoever runs it to find out.
"""

from __future__ import annotations

from tensure.bundle import Local, Place, Plan, Track, whole
from tensure.program import For as Loop
from tensure.program import Item, Name, Op, Program, axis, digest

__all__ = ["host_plan"]


def host_plan(program: Program, device: str = "host") -> Plan:
    """The Plan that runs all of `program` on the one device `device`.

    Its bodies and blocks are the Program's own, and every local claims to be the logical value of its name.
    """
    locals_ = {base: whole(program, base) for base in program.values}
    for base, num_indices in _made(program):
        if base not in locals_:
            # Intermediate values have no declared letters; a claim needs one for each index.
            letters = tuple(f"i{position}" for position in range(num_indices))
            locals_[base] = Local(letters, Place(Name(base, tuple(axis(letter) for letter in letters))))
    bodies = {label: entry.body for label, entry in program.entries.items()}
    track = Track(device=Name(device), bodies=bodies)
    return Plan(digest(program), locals=locals_, blocks=dict(program.blocks), tracks={"host": track})


def _made(program: Program) -> list[tuple[str, int]]:
    """Every family that some op makes, with its number of indices, in order of appearance."""
    found: dict[str, int] = {}
    bodies = [entry.body for entry in program.entries.values()]
    pending: list[Item] = [item for body in bodies for item in body]
    pending += [item for block in program.blocks.values() for item in block.body]
    while pending:
        item = pending.pop(0)
        if isinstance(item, Op):
            for out in item.outs:
                found.setdefault(out.base, len(out.index))
        elif isinstance(item, Loop):
            pending[:0] = item.body
    return list(found.items())
