"""A receipt in a few lines for a person: each claim beside its basis, what is absent last and by name.

Does not know: whether the receipt verifies; show it beside a verdict, not instead of one.
"""

from __future__ import annotations

from tensure.bundle import Basis, Receipt

__all__ = ["summarize"]


def summarize(receipt: Receipt, *, full: bool = False) -> tuple[tuple[str, str, Basis], ...]:
    """Rows of (claim, what it says in short, basis), in the order a reader asks for them.

    With `full`, digests and key ids are written out.
    """

    def short(digest: object) -> str:
        return "-" if digest is None else str(digest) if full else f"{str(digest)[:19]}..."

    proof, weights, sampling = receipt.proof, receipt.weights, receipt.sampling
    rows: list[tuple[str, str, Basis]] = [
        (f"output {o.name}", f"{o.dtype}{list(o.shape)} {short(o.digest)}", receipt.outputs_basis)
        for o in receipt.outputs
    ]
    rows += [
        ("program", short(receipt.program.digest), receipt.program.basis),
        ("plan", short(receipt.plan.digest), receipt.plan.basis),
        ("weights", " ".join([short(weights.root), *weights.encodings]), weights.basis),
    ]
    rows += [(f"input {i.name}", short(i.digest), receipt.inputs.basis) for i in receipt.inputs.items]
    if not receipt.inputs.items:
        rows.append(("inputs", "-", receipt.inputs.basis))
    kernels, exactness = receipt.kernels, receipt.exactness
    rows += [
        ("sampling", f"seed {sampling.seed}, {sampling.tokens} tokens", sampling.basis),
        ("kernels", " ".join(x for x in (kernels.build, kernels.isa, kernels.torch) if x), kernels.basis),
        (
            "exactness",
            " ".join(str(x) for x in (exactness.kind, exactness.bound) if x is not None),
            exactness.basis,
        ),
        ("proof", f"values {proof.values}, storage {proof.storage}", proof.basis),
        ("protection", receipt.protection.scheme or "-", receipt.protection.basis),
        (
            "audits",
            f"{sum(a.passed for a in receipt.audits.items)} of {len(receipt.audits.items)} passed",
            receipt.audits.basis,
        ),
        ("repairs", f"{len(receipt.repairs.items)}", receipt.repairs.basis),
        ("nodes", f"{len(receipt.nodes.items)}", receipt.nodes.basis),
        ("stream", f"{receipt.stream.chunks} chunks {short(receipt.stream.root)}", receipt.stream.basis),
        ("nonce", str(receipt.nonce.value), receipt.nonce.basis),
        ("link", f"{receipt.link.session} #{receipt.link.number}", receipt.link.basis),
        (
            "issued",
            f"{receipt.issued.time} by {receipt.issued.key_id[: None if full else 16]}",
            receipt.issued.basis,
        ),
    ]
    said = [row for row in rows if row[2] != "absent"]
    return (*said, *((name, "-", basis) for name, _, basis in rows if basis == "absent"))
