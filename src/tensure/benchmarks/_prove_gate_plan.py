"""One training step of a transformer over data, tensor and pipeline parallel ranks, as records, of any size.

The Program: layers of attention and SwiGLU on the whole batch, forwards and backwards. The Plan: each stage
of the pipeline is a track and takes micro-batches in 1F1B order; heads and feed-forward columns are cut over
tp, with four all-reduces a layer; rows are cut over dp and micro-batches; gradients are added up over
micro-batches and all-reduced over dp. Knows seven ways to get it wrong, and nothing of who finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tensure.bundle import Plan, parse_plan
from tensure.program import Program, digest, parse_program

__all__ = ["FAULTS", "REAL", "SMALL", "Shape", "gate_plan", "gate_program", "place_of"]

SMALL: Final = {"S": 2, "D": 3, "H": 2, "K": 2, "F": 2}
"""Sequence, model width; heads of each tp rank, width of each, feed-forward columns of each tp rank."""
REAL: Final = {"S": 2048, "D": 16384, "H": 16, "K": 128, "F": 6656}
"""Llama 3.1 405B with tp 8 and sequences of 2,048, but for its fewer heads of keys."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large: layers, ranks along each axis, micro-batches (two at least), sequences of one on a rank."""

    layers: int
    dp: int
    tp: int
    pp: int
    micro_batches: int
    rows: int = 1
    sizes: Mapping[str, int] | None = None

    @property
    def ranks(self) -> int:
        """How many ranks there are."""
        return self.dp * self.tp * self.pp

    @property
    def stages(self) -> list[tuple[int, int]]:
        """The layers of each stage, lo..hi."""
        ends = [round(at * self.layers / self.pp) for at in range(self.pp + 1)]
        return list(zip(ends, ends[1:], strict=False))


# --- the model: b rows, s and t places, d width, h heads, k width of a head, f feed-forward columns ---

_WEIGHTS: Final = {"Wq": "DHK", "Wk": "DHK", "Wv": "DHK", "Wo": "HKD", "Wg": "DF", "Wu": "DF", "Wd": "FD"}
_FORWARD: Final = """
q[l] = einsum(x[l], Wq[l]) equation="bsd,dhk->bshk"
k[l] = einsum(x[l], Wk[l]) equation="bsd,dhk->bshk"
v[l] = einsum(x[l], Wv[l]) equation="bsd,dhk->bshk"
score[l] = einsum(q[l], k[l]) equation="bshk,bthk->bhst"
top[l] = amax(score[l]) dim=[-1] keepdim=true
below[l] = sub(score[l], top[l])
power[l] = exp(below[l])
norm[l] = sum(power[l]) dim=[-1] keepdim=true
prob[l] = div(power[l], norm[l])
mix[l] = einsum(prob[l], v[l]) equation="bhst,bthk->bshk"
attn[l] = einsum(mix[l], Wo[l]) equation="bshk,hkd->bsd"
mid[l] = add(x[l], attn[l])
gate[l] = einsum(mid[l], Wg[l]) equation="bsd,df->bsf"
up[l] = einsum(mid[l], Wu[l]) equation="bsd,df->bsf"
sig[l] = sigmoid(gate[l])
silu[l] = mul(gate[l], sig[l])
wide[l] = mul(silu[l], up[l])
ffn[l] = einsum(wide[l], Wd[l]) equation="bsf,fd->bsd"
x[l+1] = add(mid[l], ffn[l])
"""
_BACKWARD: Final = """
dWd[l] = einsum(wide[l], dx[l+1]) equation="bsf,bsd->fd"
dwide[l] = einsum(dx[l+1], Wd[l]) equation="bsd,fd->bsf"
dup[l] = mul(dwide[l], silu[l])
dsilu[l] = mul(dwide[l], up[l])
rest[l] = rsub(sig[l], 1)
bend[l] = mul(silu[l], rest[l])
slope[l] = add(sig[l], bend[l])
dgate[l] = mul(dsilu[l], slope[l])
dWg[l] = einsum(mid[l], dgate[l]) equation="bsd,bsf->df"
dWu[l] = einsum(mid[l], dup[l]) equation="bsd,bsf->df"
bygate[l] = einsum(dgate[l], Wg[l]) equation="bsf,df->bsd"
byup[l] = einsum(dup[l], Wu[l]) equation="bsf,df->bsd"
dffn[l] = add(bygate[l], byup[l])
dmid[l] = add(dx[l+1], dffn[l])
dWo[l] = einsum(mix[l], dmid[l]) equation="bshk,bsd->hkd"
dmix[l] = einsum(dmid[l], Wo[l]) equation="bsd,hkd->bshk"
dprob[l] = einsum(dmix[l], v[l]) equation="bshk,bthk->bhst"
dv[l] = einsum(prob[l], dmix[l]) equation="bhst,bshk->bthk"
both[l] = mul(dprob[l], prob[l])
mean[l] = sum(both[l]) dim=[-1] keepdim=true
apart[l] = sub(dprob[l], mean[l])
dscore[l] = mul(prob[l], apart[l])
dq[l] = einsum(dscore[l], k[l]) equation="bhst,bthk->bshk"
dk[l] = einsum(dscore[l], q[l]) equation="bhst,bshk->bthk"
dWq[l] = einsum(x[l], dq[l]) equation="bsd,bshk->dhk"
dWk[l] = einsum(x[l], dk[l]) equation="bsd,bshk->dhk"
dWv[l] = einsum(x[l], dv[l]) equation="bsd,bshk->dhk"
byq[l] = einsum(dq[l], Wq[l]) equation="bshk,dhk->bsd"
byk[l] = einsum(dk[l], Wk[l]) equation="bshk,dhk->bsd"
byv[l] = einsum(dv[l], Wv[l]) equation="bshk,dhk->bsd"
byqk[l] = add(byq[l], byk[l])
dattn[l] = add(byqk[l], byv[l])
dx[l] = add(dmid[l], dattn[l])
"""
_BY_HEAD: Final = {
    **dict.fromkeys("q k v mix dmix dq dk dv".split(), 2),
    **dict.fromkeys("score top below power norm prob dprob both mean apart dscore".split(), 1),
}
_BY_COLUMN: Final = "gate up sig silu wide dwide dup dsilu rest bend slope dgate".split()
_PARTIAL: Final = "bygate byup byq byk byv byqk".split()
_REDUCED: Final = ("attn", "ffn", "dffn", "dattn")
_WHOLE: Final = ("x", "mid", "dmid", "dx", *_REDUCED)


def gate_program(shape: Shape) -> Program:
    """All layers on the whole batch; the gradient that enters is twice what comes out."""
    sizes = dict(shape.sizes or SMALL)
    sizes |= {"H": sizes["H"] * shape.tp, "F": sizes["F"] * shape.tp, "L": shape.layers}
    sizes["B"] = shape.dp * shape.micro_batches * shape.rows
    lines = ["tensure program 1", *(f"axis {key} = {size}" for key, size in sizes.items())]
    lines += [f"weight {key}[l<L] : f64[{','.join(dims)}]" for key, dims in _WEIGHTS.items()]
    lines += ["value x[l<L+1] : f64[B,S,D]", "value dx[l<L+1] : f64[B,S,D]"]
    lines += ["block forward(l):", *_indented(_FORWARD), "block backward(l):", *_indented(_BACKWARD)]
    lines += ["entry step():", "  input x[0]", "  for i in 0..L:", "    call forward(i)"]
    lines += ["  dx[L] = mul(x[L], 2)", "  for i in 0..L:", "    call backward(L-1-i)", "  output dx[0]"]
    lines += [f"  output d{key}[{at}]" for at in range(shape.layers) for key in _WEIGHTS]
    return parse_program("\n".join([*lines, ""]))


def _indented(text: str) -> list[str]:
    return ["  " + line for line in text.strip().splitlines()]


# --- the plan ------------------------------------------------------------------------------------------

FAULTS: Final = (
    "one stage's all-reduce missing",
    "wrong micro-batch sent",
    "last micro-batch left out of the sum",
    "no all-reduce over dp",
    "one dp rank scales wrongly",
    "read before made",
    "one layer's gradients never reduced",
)


def gate_plan(shape: Shape, program: Program, fault: str | None = None) -> Plan:
    """The Plan, or it with one fault: in the stage after the middle where it is of one stage.

    Every local is claimed but for gradients while they are being added up: those are claimed when complete.
    """
    lines = ["tensure plan 1", f'program "{digest(program)}"']
    lines += [f"mesh {axis} = {getattr(shape, axis)}" for axis in ("pp", "dp", "tp")]
    lines += [f"local {text}" for text in _locals(shape)]
    lines += _blocks(shape, fault)
    for stage in range(shape.pp):
        for lo, hi in _parts(shape, fault):
            span = f" {lo}:{hi}" if hi - lo < shape.dp else ""
            lines += [f"track {_label(stage, lo, span)}[dp{span}, tp] with pp={stage}:", "  entry step:"]
            lines += ["    " + line for line in _Stage(shape, fault, stage, lo, span).body()]
    return parse_plan("\n".join([*lines, ""]))


def place_of(shape: Shape, fault: str) -> str:
    """Which rank and local must be named for a fault, as a regular expression over `rank: local`."""
    stage = shape.pp // 2
    lo, _ = shape.stages[stage]
    return {
        FAULTS[0]: rf"s{stage}\[.*\]: attn\[{lo},0\]",
        FAULTS[1]: rf"s{stage}\[.*\]: x\[{lo},1\]",
        FAULTS[2]: r"s\d+\[.*\]: own_dW\w\[\d+\]",
        FAULTS[3]: r"s\d+\[.*\]: dW\w\[\d+\]",
        FAULTS[4]: rf"s{stage}_{odd_rank(shape)}\[{odd_rank(shape)},.*\]: own_dW\w\[{lo}\]",
        FAULTS[5]: rf"s{stage}\[.*\]: q\[{lo},0\]",
        FAULTS[6]: rf"s{stage}\[.*\]: dW\w\[{lo}\]",
    }[fault]


def _locals(shape: Shape) -> Iterator[str]:
    """Every family and its claim."""
    count = shape.micro_batches
    rows = f"(dp*{count}+mb)*(B//(n_dp*{count})):(dp*{count}+mb+1)*(B//(n_dp*{count}))"
    mine = "dp*(B//n_dp):(dp+1)*(B//n_dp)"
    for key, dims in _WEIGHTS.items():
        cut = _cut("H" if "H" in dims else "F", dims.index("H" if "H" in dims else "F"))
        yield f"{key}[l] = {key}[l]{{{cut}}}"
        yield f"d{key}[l] = d{key}[l]{{{cut}}}"
        yield f"part_d{key}[l, mb] = d{key}[l]{{{cut}}} over b({rows})"
        yield f"own_d{key}[l] = d{key}[l]{{{cut}}} over b({mine})"
    for key, dim in _BY_HEAD.items():
        yield f"{key}[l, mb] = {key}[l]{{0 {rows}, {_cut('H', dim)}}}"
    for key in _BY_COLUMN:
        yield f"{key}[l, mb] = {key}[l]{{0 {rows}, {_cut('F', 2)}}}"
    for key in _WHOLE:
        yield f"{key}[l, mb] = {key}[l]{{0 {rows}}}"
    for key in _PARTIAL:
        yield f"{key}[l, mb] = {key}[l]{{0 {rows}}} sum(tp)"
    for key in _REDUCED:
        yield f"{key}_tp[l, mb] = {key}[l]{{0 {rows}}} sum(tp)"


def _cut(size: str, dim: int) -> str:
    return f"{dim} tp*({size}//n_tp):(tp+1)*({size}//n_tp)"


def _blocks(shape: Shape, fault: str | None) -> Iterator[str]:
    yield from ["block forward(l, mb):", *_reduced(_FORWARD)]
    yield from ["block backward(l, mb):", *_reduced(_BACKWARD)]
    if fault == FAULTS[0]:
        yield from ["block unreduced(l, mb):", *_reduced(_FORWARD, but="attn")]
    yield "block start(l, mb):"
    yield from (f"  sum_d{key}[l,mb] = copy(part_d{key}[l,mb])" for key in _WEIGHTS)
    yield "block add_up(l, mb):"
    yield from (f"  sum_d{key}[l,mb] = add(sum_d{key}[l,mb-1], part_d{key}[l,mb])" for key in _WEIGHTS)
    last = shape.micro_batches - (2 if fault == FAULTS[2] else 1)
    for block, taken, reduced in (
        ("finish", "copy({})", 'all_reduce({}) axes=["dp"]'),
        ("scaled", "mul({}, 2)", 'all_reduce({}) axes=["dp"]'),
        ("alone", "copy({})", "copy({})"),
    ):
        yield f"block {block}(l):"
        for key in _WEIGHTS:
            yield f"  own_d{key}[l] = {taken.format(f'sum_d{key}[l,{last}]')}"
            yield f"  d{key}[l] = {reduced.format(f'own_d{key}[l]')}"


def _reduced(text: str, but: str = "") -> Iterator[str]:
    """A block on one micro-batch: gradients of weights are parts; what tp ranks hold parts of is reduced."""
    for line in text.strip().splitlines():
        line = re.sub(r"\b(?!W)(\w+)\[(l(?:\+1)?)\]", r"\1[\2,mb]", line)
        line = re.sub(r"^dW", "part_dW", line)
        base = line.split("[")[0]
        if base not in _REDUCED:
            yield "  " + line
            continue
        yield "  " + line.replace(f"{base}[", f"{base}_tp[", 1)
        how = f"copy({base}_tp[l,mb])" if base == but else f'all_reduce({base}_tp[l,mb]) axes=["tp"]'
        yield f"  {base}[l,mb] = {how}"


def _parts(shape: Shape, fault: str | None) -> list[tuple[int, int]]:
    """The dp ranks that have one text: all, unless one of them does something else."""
    if fault != FAULTS[4]:
        return [(0, shape.dp)]
    odd = odd_rank(shape)
    cuts = sorted({0, odd, odd + 1, shape.dp})
    return list(zip(cuts, cuts[1:], strict=False))


def odd_rank(shape: Shape) -> int:
    """The dp rank that scales wrongly: 37 of 64."""
    return shape.dp * 37 // 64


def _label(stage: int, lo: int, span: str) -> str:
    return f"s{stage}_{lo}" if span else f"s{stage}"


@dataclass(frozen=True, slots=True)
class _Stage:
    """What the ranks of one stage do; all dp ranks, or those from `lo` on."""

    shape: Shape
    fault: str | None
    stage: int
    lo: int
    span: str

    def body(self) -> Iterator[str]:
        """Forwards while the pipeline fills, then one forward and one backward in turn, then the rest."""
        count, ahead = self.shape.micro_batches, self.shape.pp - 1 - self.stage
        ahead = min(ahead, count)
        for mb in range(count + ahead):
            if mb < count:
                yield from self._forward(mb)
            if mb >= ahead:
                yield from self._backward(mb - ahead)
        lo, hi = self.shape.stages[self.stage]
        for block, first, last in self._finished(lo, hi):
            yield from (f"for i in {first}..{last}:", f"  call {block}(i)")

    def _finished(self, lo: int, hi: int) -> list[tuple[str, int, int]]:
        if self.fault == FAULTS[3]:
            return [("alone", lo, hi)]
        if self._wrong(FAULTS[4]) and self.lo == odd_rank(self.shape):
            return [("scaled", lo, hi)]
        if self._wrong(FAULTS[6]):
            return [("alone", lo, lo + 1), *([("finish", lo + 1, hi)] if lo + 1 < hi else [])]
        return [("finish", lo, hi)]

    def _wrong(self, fault: str) -> bool:
        return self.fault == fault and self.stage == self.shape.pp // 2

    def _forward(self, mb: int) -> Iterator[str]:
        lo, hi = self.shape.stages[self.stage]
        early = self._wrong(FAULTS[5]) and mb == 0
        come = [f'x[{lo},{mb}] = recv() key=["x", {lo}, {mb}]'] if self.stage else []
        block = "unreduced" if self._wrong(FAULTS[0]) else "forward"
        if not early:
            yield from come
        yield from (f"for i in {lo}..{hi}:", f"  call {block}(i, {mb})")
        if early:
            yield from come
        if self.stage + 1 < self.shape.pp:
            late = self.fault == FAULTS[1] and self.stage + 1 == self.shape.pp // 2 and mb == 1
            yield self._send(f"x[{hi},{mb - late}]", f'"x", {hi}, {mb}', self.stage + 1)

    def _backward(self, mb: int) -> Iterator[str]:
        lo, hi = self.shape.stages[self.stage]
        if self.stage + 1 < self.shape.pp:
            yield f'dx[{hi},{mb}] = recv() key=["dx", {hi}, {mb}]'
        else:
            yield f"dx[{hi},{mb}] = mul(x[{hi},{mb}], 2)"
        yield from (f"for i in {lo}..{hi}:", f"  call backward({lo + hi - 1}-i, {mb})")
        yield from (f"for i in {lo}..{hi}:", f"  call {'add_up' if mb else 'start'}(i, {mb})")
        if self.stage:
            yield self._send(f"dx[{lo},{mb}]", f'"dx", {lo}, {mb}', self.stage - 1)

    def _send(self, what: str, key: str, stage: int) -> str:
        return f'send({what}) key=[{key}] to="{_label(stage, self.lo, self.span)}"'
