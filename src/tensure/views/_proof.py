"""A proof to its page: the verdict, where it fails, every output, what was assumed."""

from __future__ import annotations

from collections.abc import Iterator

from tensure.bundle import Counterexample, Local, Plan, Verdict

from ._html import Markup, el, page, table
from ._records import OutputRow, ProofView
from ._render import claim_words, digest_line, facts, render

__all__: list[str] = []

_HEADINGS = {
    "proved": "Proved",
    "probable": "Probable, not proved",
    "unknown": "Undecided",
    "refuted": "Refuted",
}
_EXPLAIN = {
    "proved": "derived by exact rules, and an independent checker accepts the certificate",
    "derived": "every rule held, but the whole is not proved, so no checker has seen it",
    "probable": "computed in a finite field, where it agrees",
    "refuted": "a replay on drawn numbers, in float64, shows the difference",
    "unknown": "no rule says so, and a replay shows no difference",
}
_UNKNOWN_OF_REFUTED = "no rule says so; that it is wrong too is not shown"


@render.register
def _proof(record: ProofView) -> str:
    values, storage = record.proof.values, record.proof.storage
    held = sum(row.status in ("proved", "derived") for row in record.outputs)
    return page(
        "Proof",
        "does the plan compute the program?",
        _verdict(values),
        facts(
            (f"{held} of {len(record.outputs)}", "outputs derived"),
            (f"{record.plan.num_ranks():,}", "ranks"),
            (f"{len(record.plan.tracks)}", "texts for them"),
            (f"{record.certificate_bytes:,}" if record.certificate_bytes else "none", "bytes of certificate"),
        ),
        *(_failure(values.counterexample) if values.counterexample is not None else ()),
        el(
            "section",
            el("h2", "Outputs"),
            table(("output", "stands on the ranks as", "verdict", "what was found"), _rows(record)),
            *([el("p", explained, class_="note")] if (explained := _explained(record)) else []),
        ),
        el("section", el("h2", "Assumed at the start"), table(("local", "is"), _assumed(record))),
        el("section", el("h2", "Ranks"), table(("text", "mesh axes", "steps"), _tracks(record.plan))),
        *(
            [el("section", el("h2", "Who does the same"), table(("ranks", "because"), record.classes))]
            if record.classes
            else []
        ),
        *([el("section", el("h2", "Replay"), el("p", record.replay))] if record.replay else []),
        *(
            [
                el(
                    "section",
                    el("h2", "Numerics"),
                    el("p", "Equal over the real numbers; what rounding differs is listed here."),
                    *(el("p", words) for words in record.numerics),
                )
            ]
            if record.numerics
            else []
        ),
        el("section", el("h2", "Storage"), el("p", _words(storage))),
        el(
            "section",
            el("h2", "Of what"),
            digest_line(f"program {record.proof.program}"),
            digest_line(f"plan {record.proof.plan}"),
        ),
    )


def _explained(record: ProofView) -> str:
    """What the verdicts on this page's outputs mean."""
    words = dict(_EXPLAIN)
    if record.proof.values.status == "refuted":
        words["unknown"] = _UNKNOWN_OF_REFUTED
    shown = {row.status for row in record.outputs}
    return " ".join(f"{status}: {text}." for status, text in words.items() if status in shown)


def _verdict(values: Verdict) -> Markup:
    bad = values.status != "proved"
    return el(
        "section",
        el("h2", _HEADINGS[values.status]),
        el("p", _words(values)),
        class_="verdict bad" if bad else "verdict",
    )


def _words(verdict: Verdict) -> str:
    if verdict.error is not None:
        return f"by {verdict.method}, wrong with a chance below {verdict.error:.1e}"
    return f"by {verdict.method}" + (f": {verdict.reason}" if verdict.reason else "")


def _failure(found: Counterexample) -> Iterator[Markup]:
    index = ", ".join(map(str, found.index))
    rows = [
        ("rank", el("code", found.rank)),
        ("tensor", el("code", found.local)),
        ("should be", el("code", found.claim)),
        ("first element that differs", el("code", f"[{index}]")),
        ("step", el("code", found.step)),
        ("line", el("code", found.source or "unknown")),
        ("shown by a replay", "yes" if found.confirmed else "no"),
    ]
    yield el("section", el("h2", "Where it fails"), table(("", ""), rows))


def _rows(record: ProofView) -> list[tuple[object, ...]]:
    return [
        (el("code", row.name), _placed(record.plan, row.name), _badge(row.status), _found(row))
        for row in record.outputs
    ]


def _found(row: OutputRow) -> object:
    if not row.why:
        return ""
    begun = f"; first astray at {row.step}" if row.step else ""
    return el(
        "span",
        f"{f'{row.rank}: ' if row.rank else ''}{row.why}{begun}{f' ({row.source})' if row.source else ''}",
        class_="code",
    )


def _badge(status: str) -> Markup:
    kinds = {"proved": "checked-now", "derived": "checked-at-load", "refuted": "bad", "unknown": "absent"}
    return el("span", status, class_=f"basis {kinds.get(status, 'asserted')}")


def _placed(plan: Plan, name: str) -> Markup:
    found = {
        claim_words(local)
        for track in plan.tracks
        if (local := _local(plan, track, name)) is not None and local.place is not None
    }
    return el("span", "; ".join(sorted(found)[:4]) or "-", class_="code")


def _local(plan: Plan, track: str, name: str) -> Local | None:
    return plan.local(track, name)


def _assumed(record: ProofView) -> list[tuple[object, ...]]:
    roles = set(record.program.values)
    seen: dict[tuple[str, str], None] = {}
    for track in record.plan.tracks.values():
        for base, local in {**record.plan.locals, **track.locals}.items():
            if local.place is not None and local.place.of.base in roles:
                seen.setdefault((base, claim_words(local)))
    return [(el("code", base), el("code", words)) for base, words in seen]


def _tracks(plan: Plan) -> list[tuple[object, ...]]:
    return [
        (
            el("code", name),
            track.stand or "-",
            f"{sum(len(body) for body in track.bodies.values()):,}",
        )
        for name, track in plan.tracks.items()
    ]
