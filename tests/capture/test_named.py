"""Named plans: what a name says, that the modules compute, and that the twins are proved or refuted.

Sizes are small and differ from one another; as at full size, a latent is a multiple of its rotary part.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tensure
from tensure.capture import ParallelStep
from tensure.capture._named import MODELS, NAMED_PLANS, NamedPlan, PlanSizes, _parallel, named_plan
from tensure.capture._named._deepseek_v3 import CUT as DEEPSEEK
from tensure.capture._named._llama3 import CUT as LLAMA
from tensure.capture._named._parallel import Stage, layers_of, looped
from tensure.errors import InputError

LATENT: dict[str, int] = {
    "layers": 2, "hidden": 24, "heads": 4, "inner": 28, "experts": 12, "chosen": 3, "shared": 2,
    "expert_inner": 9, "vocabulary": 20, "kv_rank": 44, "nope": 6, "rope": 4, "value": 8,
    "sequence": 26, "dense_layers": 1,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "llama3-405b": MODELS["llama3-405b"].replace(
        layers=2, hidden=24, heads=4, kv_heads=2, inner=28, vocabulary=20, sequence=10
    ),
    "deepseek-v3-16b": MODELS["deepseek-v3-16b"].replace(**LATENT),
    "deepseek-v3-236b": MODELS["deepseek-v3-236b"].replace(**LATENT, q_rank=16, groups=4, kept_groups=2),
    "deepseek-v3-671b": MODELS["deepseek-v3-671b"].replace(**LATENT, q_rank=16, groups=4, kept_groups=2),
}


def small(name: str, **sizes: int) -> NamedPlan:
    return NamedPlan(name, SMALL[name], PlanSizes(**sizes))


def status(plan: NamedPlan, parallel: Callable[..., ParallelStep] | None = None) -> str:
    found = tensure.prove(parallel or plan.parallel, plan.model, mesh=plan.mesh)
    if found.certificate is not None:
        assert tensure.api.check(found.certificate, found.plan, found.program).accepted
    return found.proof.values.status


# --- names ---------------------------------------------------------------------------------------------


def test_a_name_says_model_and_sizes() -> None:
    plan = named_plan("llama3-405b@dp64-tp8-pp16-mb16")
    assert plan.mesh == {"pp": 16, "dp": 64, "tp": 8}
    assert plan.sizes.batch == 1024
    assert (plan.config.hidden, plan.config.layers, plan.config.sequence) == (16384, 126, 8192)
    assert named_plan("llama3-8b@dp512").mesh == {"dp": 512}
    assert named_plan("llama3-8b@mb4").mesh == {"dp": 1}


def test_published_plans_fit_their_models() -> None:
    assert {name.partition("@")[0] for name in NAMED_PLANS} == set(MODELS)
    for name in NAMED_PLANS:
        assert named_plan(name).config.source


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama4@dp2", "one of llama3-8b"),
        ("llama3-8b@dp2-dp4", "NAME@dpA"),
        ("llama3-8b@dp0", "NAME@dpA"),
        ("llama3-8b@cp2", "NAME@dpA"),
        ("llama3-8b@tp3", "heads 32 over tp 3"),
        ("llama3-8b@tp16", "kv_heads 8 over tp 16"),
        ("llama3-8b@pp33", "32 layers over pp 33"),
    ],
)
def test_other_names_are_refused(name: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        named_plan(name)
    assert said in str(refused.value)


@pytest.mark.parametrize(("layers", "stages"), [(126, 16), (80, 4), (61, 8), (27, 2), (4, 2), (3, 3)])
def test_stages_have_all_layers_once_and_the_ends_no_more_than_others(layers: int, stages: int) -> None:
    found = [layers_of(layers, stages, stage) for stage in range(stages)]
    assert [at for part in found for at in part] == list(range(layers))
    assert all(found)
    assert max(map(len, found)) <= -(-(layers + 2) // stages)


# --- the step on one device ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_the_module_computes(name: str) -> None:
    torch.manual_seed(0)
    net, (tokens, targets) = small(name, mb=2).model()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    net.double()
    tokens, targets = (torch.randint(20, item.shape) for item in (tokens, targets))
    loss = net(tokens, targets)
    loss.backward()
    assert math.isfinite(loss.item())
    for label, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), label
    other = targets.clone()
    other[0, -1] = (targets[0, -1] + 1) % 20  # the mean is over every token
    assert net(tokens, other) != loss


@pytest.mark.parametrize("name", [name for name in SMALL if name.startswith("deepseek")])
def test_the_router_picks_as_many_as_it_should_out_of_kept_groups(name: str) -> None:
    torch.manual_seed(0)
    net, _ = small(name).model()
    router = net.layers["1"].ffn.router
    router.gate.weight.data.normal_()
    x = torch.randn(2, 5, 24)
    share, config = router(x), SMALL[name]
    assert ((share != 0).sum(-1) == config.chosen).all()
    if config.groups > 1:
        in_groups = (share.unflatten(-1, (config.groups, -1)) != 0).any(-1)
        assert (in_groups.sum(-1) <= config.kept_groups).all()
    if config.normalized:
        torch.testing.assert_close(share.sum(-1), torch.full((2, 5), config.route_scale))


# --- parallel twins ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_replicas_of_stages_of_tensor_parallel_ranks_are_proved(name: str) -> None:
    assert status(small(name, dp=2, tp=2, pp=2, mb=2)) == "proved"


@pytest.mark.parametrize("name", ["llama3-405b", "deepseek-v3-671b"])
def test_several_sequences_of_a_micro_batch_are_proved(name: str) -> None:
    plan = NamedPlan(name, SMALL[name], PlanSizes(tp=2, mb=2, sequences=2))
    assert status(plan) == "proved"


class RouterNotSummed(Stage):
    """The router's gradient stays that of this rank's part of the sequence."""

    def sum_over_tp(self, label: str, grad: Tensor) -> None:
        if "router" not in label:
            super().sum_over_tp(label, grad)


class NormsNotSummed(Stage):
    """Likewise, of the norms before the attention."""

    def sum_over_tp(self, label: str, grad: Tensor) -> None:
        if "attention_norm" not in label:
            super().sum_over_tp(label, grad)


class ReplicasNotReduced(Stage):
    """One gradient is a replica's own."""

    def average_over_dp(self, label: str, grad: Tensor) -> None:
        if "wo" not in label:
            super().average_over_dp(label, grad)


class GradientOfTheInput(Stage):
    """What goes back to the stage before is the gradient of nothing."""

    def _send(self, x: Tensor, stage: int) -> None:
        super()._send(torch.zeros_like(x) if stage < self.stage else x, stage)


BUGS: list[tuple[type[Stage], str, dict[str, int]]] = [
    (NormsNotSummed, "llama3-405b", {"tp": 2}),
    (ReplicasNotReduced, "llama3-405b", {"dp": 2}),
    (GradientOfTheInput, "llama3-405b", {"pp": 2}),
    *[(RouterNotSummed, name, {"tp": 2}) for name in SMALL if name.startswith("deepseek")],
    (ReplicasNotReduced, "deepseek-v3-671b", {"dp": 2}),
]


@pytest.mark.parametrize(("bug", "name", "sizes"), BUGS, ids=[f"{b.__name__}-{n}" for b, n, _ in BUGS])
def test_a_bug_is_refuted(bug: type[Stage], name: str, sizes: dict[str, int]) -> None:
    plan = small(name, **sizes)
    cut = LLAMA if name.startswith("llama") else DEEPSEEK
    assert status(plan, lambda net, mesh: looped(bug(net, mesh, plan.sizes, cut))) == "refuted"


@pytest.mark.parametrize("name", ["llama3-405b", "deepseek-v3-671b"])
def test_a_layer_at_the_border_of_two_stages_that_both_have_is_refuted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wide(layers: int, stages: int, stage: int) -> range:
        found = layers_of(layers, stages, stage)
        return range(max(found.start - 1, 0), found.stop)

    monkeypatch.setattr(_parallel, "layers_of", wide)
    assert status(small(name, pp=2)) == "refuted"


def test_a_misspelt_name_is_refused_without_torch() -> None:
    """Before seconds go by importing it."""
    code = (
        "import sys; sys.modules['torch'] = None\nimport tensure\n"
        "try:\n    tensure.prove('llama3-8x@dp2')\nexcept tensure.TensureError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "model 'llama3-8x'; wanted one of llama3-8b" in done.stdout
    assert done.stdout.strip().endswith("llama3-8b@dp2 is one."), done.stdout
