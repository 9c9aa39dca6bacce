"""A record to its page. Knows what a person asks of it first; knows no HTML rules (`_html.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import singledispatch

from tensure.bundle import Local, Plan, plan_digest
from tensure.program import Block, Body, Call, For, Op, Program, Value, digest, fraction_words

from ._html import Markup, el, lines, page, table
from ._records import BundleSummary, ReceiptView, TensorRow
from ._svg import bars

__all__ = ["claim_words", "digest_line", "facts", "render"]

MAX_BARS = 14
MAX_LINES = 500
_NOT_COMPARED = "The output itself was not compared: the verdict is on the signature alone."


@singledispatch
def render(record: object) -> str:
    """One self-contained HTML page for a Program, a Plan, a ReceiptView, a ProofView or a BundleSummary."""
    raise TypeError(f"no page for a {type(record).__name__}")


@render.register
def _program(record: Program) -> str:
    return page("Program", "what must be computed", digest_line(digest(record)), *_program_body(record))


@render.register
def _plan(record: Plan) -> str:
    return page("Plan", "how it runs", digest_line(plan_digest(record)), *_plan_body(record))


@render.register
def _receipt(record: ReceiptView) -> str:
    receipt, bad = record.receipt, record.problem is not None
    verdict = el(
        "section",
        el("h2", "Does not verify" if bad else "Signature verified"),
        el("p", record.problem if bad else f"Signed by {receipt.issued.key_id} at {receipt.issued.time}."),
        "" if bad else el("p", _NOT_COMPARED),
        class_="verdict bad" if bad else "verdict",
    )
    outputs = [
        (el("code", out.name), f"{out.dtype} {list(out.shape)}", el("code", out.digest))
        for out in receipt.outputs
    ]
    claims = [
        # What does not verify gets no colour of its basis: nothing on the page may look checked.
        (what, el("span", said, class_="code"), el("span", basis, class_="basis" + f" {basis}" * (not bad)))
        for what, said, basis in record.claims
    ]
    explain = (
        "checked-now: computed or compared by the issuer during its run. checked-at-load: checked when the "
        "bundle was opened. asserted: said by the issuer, checked by nobody. absent: not claimed."
    )
    return page(
        "Receipt",
        "what one run says about its output",
        verdict,
        el("section", el("h2", "Outputs"), table(("name", "type", "digest"), outputs)),
        el(
            "section",
            el("h2", "Nobody vouches for these claims" if bad else "The issuer says"),
            table(("claim", "what it says", "basis"), claims),
            el("p", explain, class_="note"),
        ),
    )


@render.register
def _bundle(record: BundleSummary) -> str:
    total = sum(tensor.num_bytes for tensor in record.tensors)
    figures = facts(
        (f"{len(record.tensors):,}", "tensors"),
        (_bytes(total), "of weights"),
        (f"{len(record.program.entries)}", "entries"),
        (f"{len(record.plans)}", "plans" if len(record.plans) != 1 else "plan"),
    )
    digests = [
        ("bundle", el("code", record.digest)),
        ("program", el("code", digest(record.program))),
        *((f"plan {label}", el("code", plan_digest(plan))) for label, plan in record.plans.items()),
        ("weights", el("code", record.weights_root)),
        ("signed by", el("code", record.signed_by)),
    ]
    files = [(el("code", name), f"{size:,}") for name, size in record.assets.items()]
    return page(
        record.name,
        "sealed bundle",
        figures,
        el("section", el("h2", "Digests"), table(("of", "digest"), digests)),
        el(
            "section",
            el("h2", "Where the weights' bytes are"),
            bars(_weight_bars(record.tensors), "bytes of weights"),
        ),
        *_program_body(record.program),
        *(part for label, plan in record.plans.items() for part in _plan_body(plan, label)),
        el("section", el("h2", "Side files"), table(("name", "bytes"), files, numbers=frozenset({1}))),
    )


# --- parts ----------------------------------------------------------------------------------------


def _program_body(program: Program) -> Iterator[Markup]:
    counts = _op_counts(program)
    yield facts(
        (f"{len(program.entries)}", "entries"),
        (f"{sum(counts.values()):,}", "ops as written"),
        (f"{len(program.weights()):,}", "weight families"),
        (f"{sum(value.role == 'state' for value in program.values.values())}", "state families"),
    )
    if program.axes:
        axes = [(el("code", name), f"{size:,}") for name, size in program.axes.items()]
        yield el("section", el("h2", "Axes"), table(("axis", "size"), axes, numbers=frozenset({1})))
    entries = [
        (
            el("code", label),
            el("code", ", ".join(f"{key} in {lo}..{hi}" for key, lo, hi in entry.params) or "-"),
            el("code", ", ".join(map(str, entry.inputs)) or "-"),
            el("code", ", ".join(map(str, entry.outputs)) or "-"),
            len(entry.states),
        )
        for label, entry in program.entries.items()
    ]
    yield el(
        "section",
        el("h2", "Entries"),
        table(("entry", "parameters", "inputs", "outputs", "states"), entries, numbers=frozenset({4})),
    )
    shown = [(kind, float(count), f"{count:,}") for kind, count in counts.most_common(MAX_BARS)]
    yield el("section", el("h2", "Ops, as written"), bars(shown, "ops by kind"))
    values = [
        (el("code", base), value.role, el("code", _type(value))) for base, value in program.values.items()
    ]
    yield el("section", el("h2", "Values"), table(("family", "role", "type"), values))
    for label, body in _bodies(program.blocks, program):
        yield el("section", el("h2", label), lines(_lines(body, 0)))


def _plan_body(plan: Plan, label: str = "") -> Iterator[Markup]:
    tracks = [
        (
            el("code", name),
            track.stand or "-",
            el("code", track.device or name),
            ", ".join(track.bodies) or "-",
        )
        for name, track in plan.tracks.items()
    ]
    heading = f"Plan {label}".strip()
    yield facts(
        (f"{plan.num_ranks():,}", "rank" if plan.num_ranks() == 1 else "ranks"),
        (f"{len(plan.tracks)}", "track" if len(plan.tracks) == 1 else "tracks"),
        (f"{len(plan.pools)}", "memory pools"),
        (f"{len(plan.locals):,}", "local families"),
    )
    yield el("section", el("h2", heading), table(("track", "mesh axes", "device", "entries"), tracks))
    claims = [(el("code", base), el("code", claim_words(local))) for base, local in plan.locals.items()]
    yield el("section", el("h2", f"{heading}: claims"), table(("local", "is"), claims))


def claim_words(local: Local) -> str:
    """What a local tensor is claimed to be."""
    place = local.place
    if place is None:
        return "nothing is claimed"
    dims = "".join(
        f" dim {dim} at {' | '.join(f'{lo}:{hi}:{step}' for lo, hi, step in runs)}"
        for dim, runs in place.dims
    )
    total = f" summed over {', '.join(place.sum)}" if place.sum else ""
    return f"{place.of}{dims}{total}" + (f" times {fraction_words(place.scale)}" if place.scale != 1 else "")


def facts(*shown: tuple[str, str]) -> Markup:
    """Figures side by side, each with what it counts."""
    return el(
        "div",
        *(el("div", el("b", value), el("span", what), class_="fact") for value, what in shown),
        class_="facts",
    )


def digest_line(value: str) -> Markup:
    """A digest on a line of its own."""
    return el("p", el("code", value), class_="note")


def _bodies(blocks: Mapping[str, Block], program: Program) -> Iterator[tuple[str, Body]]:
    for label, block in blocks.items():
        yield f"block {label}({', '.join(block.params)})", block.body
    for label, entry in program.entries.items():
        yield f"entry {label}", entry.body


def _op_counts(program: Program) -> Counter[str]:
    counts: Counter[str] = Counter()
    pending = [item for _, body in _bodies(program.blocks, program) for item in body]
    while pending:
        item = pending.pop()
        if isinstance(item, Op):
            counts[item.op] += 1
        elif isinstance(item, For):
            pending.extend(item.body)
    return counts


def _lines(body: Body, depth: int) -> list[str]:
    """Ops as lines; loops nest as deep as the text form allows, which is bounded."""
    found: list[str] = []
    pad = "  " * depth
    for item in body[:MAX_LINES]:
        if isinstance(item, Op):
            reads = ", ".join(str(ref.name) for ref in item.reads())
            found.append(f"{pad}{', '.join(map(str, item.outs))} = {item.op}({reads})")
        elif isinstance(item, Call):
            found.append(f"{pad}call {item.block}({', '.join(map(str, item.args))})")
        elif depth < 32:
            found.append(f"{pad}for {item.var} in {item.lo}..{item.hi}:")
            found.extend(_lines(item.body, depth + 1))
    if len(body) > MAX_LINES:
        found.append(f"{pad}... {len(body) - MAX_LINES} more steps are left out")
    return found


def _type(value: Value) -> str:
    letters = ", ".join(f"{letter}<{extent}" for letter, extent in value.params)
    return f"{value.dtype}[{', '.join(map(str, value.shape))}]" + (f" for {letters}" if letters else "")


def _weight_bars(tensors: Sequence[TensorRow]) -> list[tuple[str, float, str]]:
    """Bytes by family and encoding, largest first, the rest together."""
    families: Counter[str] = Counter()
    for tensor in tensors:
        families[f"{tensor.name.partition('[')[0]} ({tensor.encoding})"] += tensor.num_bytes
    shown = families.most_common(MAX_BARS)
    rest = sum(families.values()) - sum(size for _, size in shown)
    if rest:
        shown.append(("everything else", rest))
    return [(label, float(size), _bytes(size)) for label, size in shown]


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
