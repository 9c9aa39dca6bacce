"""Losses that ignore a class: when it may be taken that no target is that class, and when some are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

from tensure import api
from tensure.bundle import Verdict
from tensure.capture import ParallelStep
from tensure.program import Entry, Op, Program, TensorType, Value, name, op
from tensure.proving import _check_walk, _walks, prove_plan
from tensure.proving._check_looks import looks_for_ignored
from tensure.proving._domain import Manner
from tensure.proving._looks import looks_of
from tensure.proving._replay import Real

GIVEN = "given that no target of a loss is the class it ignores (true if no label is -100;"
LOSS = op("nll_loss_forward", "x", "t", None, out=("y", "n"), reduction=2, ignore_index=-100)
SHIFTED = op("nll_loss_forward", "x", "s", None, out=("y", "n"), reduction=1, ignore_index=-100)
OTHER = op("full", out="c", size=[4], fill_value=2, dtype="i64")
CLASS = op("full", out="c", size=[4], fill_value=-100, dtype="i64")
SMOOTHED = [
    op("sum", "x", out="a", dim=[1]),
    op("neg", "a", out="l"),
    op("eq", "t", -100, out="m"),
    op("masked_fill", "l", "m", 0.0, out="f"),
]
COUNTED = [op("bitwise_not", "m", out="i"), op("sum", "i", out="k", dim=[0])]
MEAN = op("nll_loss_forward", "x", "t", None, out=("y", "n"), reduction=1, ignore_index=-100)
LOOKS: dict[str, tuple[list[Op], bool]] = {
    "a loss alone": ([LOSS], False),
    "counted": ([LOSS, op("ne", "t", -100, out="m"), op("sum", "m", out="k", dim=[0])], True),
    "counted before": ([op("eq", "t", -100, out="m"), LOSS], True),
    "counted in a view": ([LOSS, op("view", "t", out="v", size=[2, 2]), op("ne", "v", -100, out="m")], True),
    "counted in what it is a view of": (
        [op("view", "t", out="s", size=[4]), SHIFTED, op("ne", "t", -100, out="m")],
        True,
    ),
    "compared with a tensor of that class": ([CLASS, LOSS, op("ne", "t", "c", out="m")], True),
    "compared with a tensor of another": (
        [OTHER, LOSS, op("ne", "t", "c", out="m")],
        False,
    ),
    "compared with what the data says": ([LOSS, op("ne", "t", "u", out="m")], True),
    "another class counted": ([LOSS, op("ne", "t", 1, out="m"), op("sum", "m", out="k", dim=[0])], False),
    "other integers counted": ([LOSS, op("ne", "u", -100, out="m")], False),
    "neighbours compared": (
        [
            LOSS,
            op("slice", "t", out="l", dim=0, start=0, end=3),
            op("slice", "t", out="r", dim=0, start=1, end=4),
            op("eq", "l", "r", out="m"),
        ],
        False,
    ),
    "looked up": ([LOSS, op("embedding", "w", "t", out="e")], False),
    "reckoned with": ([LOSS, op("ge", "t", 0, out="m")], True),
    "cut off": ([op("clamp", "t", None, None, out="s", min=0), SHIFTED], True),
    "padded with it": (
        [
            op("constant_pad_nd", "t", out="p", pad=[0, 1], value=-100),
            op("slice", "p", out="s", dim=0, start=1, end=5),
            SHIFTED,
        ],
        True,
    ),
    "padded with another": (
        [
            op("constant_pad_nd", "t", out="p", pad=[0, 1], value=0),
            op("slice", "p", out="s", dim=0, start=1, end=5),
            SHIFTED,
        ],
        False,
    ),
    "put there by a mask": ([CLASS, op("where", "b", "t", "c", out="s"), SHIFTED], True),
    "torch's own label smoothing": ([LOSS, *SMOOTHED], False),
    "torch's own label smoothing of a mean": ([MEAN, *SMOOTHED, *COUNTED], False),
    "label smoothing of a sum, and a count": ([LOSS, *SMOOTHED, *COUNTED], True),
    "label smoothing, and a count of one's own": (
        [MEAN, *SMOOTHED, *COUNTED, op("ne", "t", -100, out="o")],
        True,
    ),
    "the ignored ones counted": ([MEAN, *SMOOTHED, op("sum", "m", out="k", dim=[0])], True),
    "something else masked": (
        [MEAN, op("neg", "z", out="l"), *SMOOTHED[2:], *COUNTED],
        True,
    ),
    "joined to it": (
        [
            CLASS,
            op("cat", "t", "c", out="p", dim=0),
            op("slice", "p", out="s", dim=0, start=1, end=5),
            SHIFTED,
        ],
        True,
    ),
}  # fmt: skip


def looking(steps: list[Op]) -> Program:
    values = {
        "x": Value((4, 3), "f64"),
        "w": Value((3, 2), "f64"),
        "t": Value((4,), "i64"),
        "u": Value((4,), "i64"),
        "b": Value((4,), "bool"),
        "z": Value((4,), "f64"),
    }
    return Program({}, values, {}, {"run": Entry(tuple(map(name, values)), tuple(steps), (name("y"),))})


@pytest.mark.parametrize("kind", LOOKS)
def test_prover_and_checker_see_what_a_program_looks_for(kind: str) -> None:
    steps, is_looked = LOOKS[kind]
    program = looking(steps)
    assert looks_of(program, "run", {}).ignored is is_looked
    assert looks_for_ignored(program, "run", {}) is is_looked


def test_marked_numbers_are_drawn_unevenly() -> None:
    marks = looks_of(looking(LOOKS["counted"][0]), "run", {}).marks
    assert marks == {"t": (-100,)}
    assert looks_of(looking(LOOKS["reckoned with"][0]), "run", {}).marks == {"t": (-100,)}
    for seed in (1, 2):
        for count in (4, 8, 64):
            drawn = Real(seed, 3, Manner(marks=marks)).draw("t", TensorType((count,), "i64"))
            first, second = (drawn[: count // 2] == -100).sum(), (drawn[count // 2 :] == -100).sum()
            assert first < second < count // 2
            other = Real(seed, 3, Manner(marks=marks)).draw("u", TensorType((count,), "i64"))
            assert other.min() >= 0


# --- steps ---------------------------------------------------------------------------------------------


class Counted(nn.Module):
    """A loss summed over tokens, over the number of those that count."""

    def __init__(self, counts: bool = True) -> None:
        super().__init__()
        self.layer, self.counts = nn.Linear(6, 5), counts

    def count(self, labels: Tensor) -> Tensor:
        return (labels != -100).sum()

    def forward(self, x: Tensor, labels: Tensor, total: Tensor | None = None) -> Tensor:
        scores, flat = self.layer(x).flatten(0, 1), labels.flatten()
        if not self.counts:
            return F.cross_entropy(scores, flat)
        loss = F.cross_entropy(scores, flat, reduction="sum")
        return loss / (self.count(labels) if total is None else total)


class Masked(Counted):
    """The same with a mask that is made of the labels."""

    def mask(self, labels: Tensor) -> Tensor:
        return (labels != -100).flatten().float()

    def count(self, labels: Tensor) -> Tensor:
        return self.mask(labels).sum()

    def forward(self, x: Tensor, labels: Tensor, total: Tensor | None = None) -> Tensor:
        losses = F.cross_entropy(self.layer(x).flatten(0, 1), labels.flatten(), reduction="none")
        return (losses * self.mask(labels)).sum() / (self.count(labels) if total is None else total)


ROWS = {"dp": Shard(0)}


def averaged(net: Any, mesh: DeviceMesh, counts: str) -> ParallelStep:
    """Tokens counted over all ranks or by every rank, losses and gradients added up or averaged."""
    group, of_own = mesh.get_group("dp"), counts == "own"

    def step(x: Tensor, labels: Tensor) -> Tensor:
        total = net.count(labels)
        if not of_own:
            dist.all_reduce(total, group=group)
        loss: Tensor = net(x, labels) if counts == "mean" else net(x, labels, total)
        loss.backward()
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad, group=group)
            if counts != "all":
                parameter.grad /= mesh.size()
        return loss

    kind: Any = Partial("sum" if counts == "all" else "avg")
    return ParallelStep(step, inputs=(ROWS, ROWS), outputs=({"dp": kind},))


def proved(make: Callable[[], nn.Module], counts: str, strict: bool = False) -> tuple[Verdict, Any]:
    result = api.prove(
        lambda net, mesh: averaged(net, mesh, counts),
        lambda: (make(), (torch.zeros(4, 3, 6), torch.zeros(4, 3, dtype=torch.long))),
        mesh={"dp": 2},
        replay=False,
        strict=strict,
    )
    return result.proof.values, result


def test_a_mean_over_own_tokens_is_refuted_where_the_model_counts_them() -> None:
    right, _ = proved(Counted, "all")
    assert right.status == "proved" and "given" not in right.method, right
    wrong, _ = proved(Counted, "own")
    assert wrong.status == "refuted", wrong
    assert wrong.counterexample is not None and wrong.counterexample.confirmed


def test_a_mask_made_of_labels_is_drawn() -> None:
    right, _ = proved(Masked, "all")
    assert right.status == "proved" and "given" not in right.method, right
    assert proved(Masked, "own")[0].status == "refuted"


def test_the_checker_takes_no_such_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a prover that assumes it all the same. Without the checker's own look it is proved."""
    _, found = proved(Counted, "own")
    monkeypatch.setattr(_walks, "looks_of", lambda *given: replace(looks_of(*given), ignored=False))
    refused = prove_plan(found.plan, found.program).proof.values
    assert refused.status == "unknown" and "the program looks for such" in refused.reason, refused
    monkeypatch.setattr(_check_walk, "looks_for_ignored", lambda *_: False)
    assert prove_plan(found.plan, found.program).proof.values.status == "proved"


def test_a_condition_says_what_to_do_and_may_be_refused() -> None:
    held, result = proved(lambda: Counted(counts=False), "mean")
    assert held.status == "proved" and GIVEN in held.method, held
    assert "(labels != -100).sum()" in held.method
    assert result.certificate is not None
    strict, result = proved(lambda: Counted(counts=False), "mean", strict=True)
    assert strict.status == "unknown" and strict.reason.startswith(f"proved only {GIVEN}"), strict
    assert result.certificate is None and result.proof.certificate is None
    assert proved(Counted, "all", strict=True)[0].status == "proved"
