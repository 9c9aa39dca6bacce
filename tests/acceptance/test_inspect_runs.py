"""Runs as people have them: training steps, errors half-way, watches in watches, threads, shared modules.

What is left behind counts too: no hook, no mode, no open file, no changed result.
"""

from __future__ import annotations

import copy
import gc
import threading
import warnings
import weakref
from typing import Any

import pytest
import torch
from tests.acceptance.inspect_models import exported_kind, inputs_of, made
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

import tensure
from tensure.errors import TensureError


def hooks_of_all_modules() -> int:
    """How many global module hooks there are."""
    module = torch.nn.modules.module
    return len(module._global_forward_hooks) + len(module._global_forward_pre_hooks)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Any:
    before = hooks_of_all_modules()
    yield
    assert _get_current_dispatch_mode() is None
    assert hooks_of_all_modules() == before


# --- training ------------------------------------------------------------------------------------------


def test_a_training_step_with_its_backward_and_its_update() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    plain = copy.deepcopy(model)
    x, wanted = torch.randn(3, 5), torch.randn(3, 2)

    def step(model: nn.Module) -> None:
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        loss = ((model(x) - wanted) ** 2).mean()
        loss.backward()
        optimiser.step()

    step(plain)
    with tensure.watch(model, inputs={"x": x}, digest=True, keep=True) as run:
        step(model)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
    trace, recording = run.trace, run.recording()
    phases = [current.phase for current in trace.steps]
    assert {"forward", "backward"} == set(phases)
    backward = [current for current in trace.steps if current.phase == "backward"]
    assert any(current.op == "tanh_backward" for current in backward)
    grads = [recording[name] for current in backward for name in current.outs]
    assert any(torch.equal(value, model[0].weight.grad) for value in grads)
    (first,) = [current for current in trace.steps if current.op == "tanh"]
    assert first.phase == "forward" and first.module == "1"
    updates = [current for current in trace.steps if current.wrote and current.phase == "forward"]
    written = {trace.tensors[name].storage for current in updates for name in current.outs}
    assert {trace.tensors[name].storage for name in ("0.weight", "0.bias", "2.weight", "2.bias")} <= written


def test_gradients_of_gradients() -> None:
    x = torch.randn(4, requires_grad=True)
    with tensure.watch(inputs={"x": x}, keep=True) as run:
        (slope,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), x)
    assert torch.allclose(curve, 6 * x)
    last = run.trace.steps[-1].outs[0]
    assert torch.allclose(run.recording()[last], 6 * x.detach())


def test_a_backward_after_the_watch_is_not_recorded_and_works() -> None:
    model, x = nn.Linear(3, 3), torch.randn(2, 3)
    with tensure.watch(model) as run:
        loss = model(x).sum()
    steps = len(run.trace.steps)
    loss.backward()
    assert model.weight.grad is not None and len(run.trace.steps) == steps


def test_checkpointed_layers_and_custom_functions() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * 2

    layer, x = nn.Linear(4, 4), torch.randn(2, 4, requires_grad=True)
    with tensure.watch(layer) as run:
        y = checkpoint(lambda x: torch.relu(layer(x)), x, use_reentrant=False)
        Double.apply(y).sum().backward()
    ops = [step.op for step in run.trace.steps]
    assert ops.count("addmm") == 2  # once forward, once again for the backward pass
    wanted = torch.relu(layer(x)).mul(2).sum()
    assert torch.allclose(x.grad, torch.autograd.grad(wanted, x)[0])


# --- errors --------------------------------------------------------------------------------------------


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def test_a_run_that_raises_leaves_the_trace_so_far() -> None:
    model, x = Breaks(), torch.randn(2, 4)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), tensure.watch(model) as run:
        model(x)
    ops = [step.op for step in run.trace.steps]
    assert "relu" in ops and ops.count("addmm") == 1
    assert run.trace.steps[-1].module in {"second", "1", ""}
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in model.modules())
    model.second = nn.Linear(4, 4)
    model(x)  # runs as before
    assert len(run.trace.steps) == len(ops)
    with tensure.watch(model) as again:
        model(x)
    assert [step.module for step in again.trace.steps if step.op == "addmm"] == ["first", "second"]


def test_an_error_of_inspect_is_the_codes_own() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        tensure.inspect(Breaks(), torch.randn(2, 4))


def test_on_step_may_stop_the_run() -> None:
    class Stop(Exception):
        pass

    seen: list[str] = []

    def until_relu(step: Any, made_: Any) -> None:
        seen.append(step.op)
        assert set(made_) == set(step.outs)
        if step.op == "relu":
            raise Stop

    model = made("cnn")
    with pytest.raises(Stop):
        tensure.inspect(model, inputs_of("cnn"), on_step=until_relu)
    assert seen.count("relu") == 1 and seen[-1] == "relu"
    with pytest.raises(Stop):
        tensure.inspect(exported_kind("cnn"), inputs_of("cnn"), on_step=until_relu)


# --- watches in watches, modes, threads ----------------------------------------------------------------


def test_nested_watches_both_record() -> None:
    x = torch.randn(3)
    with tensure.watch(name="outer") as outer:
        x.sin()
        with tensure.watch(name="inner", digest=True) as inner:
            x.cos()
        x.tan()
    assert [step.op for step in inner.trace.steps] == ["cos"]
    assert [step.op for step in outer.trace.steps] == ["sin", "cos", "tan"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("outside", [True, False])
def test_modes_of_autograd(mode: Any, outside: bool) -> None:
    model, x = made("cnn"), inputs_of("cnn")["x"]

    def run() -> Any:
        watch = tensure.watch(model, inputs={"x": x}, digest=True, keep=True)
        if outside:
            with mode(), watch as run:
                run.output("out", model(x))
        else:
            with watch as run, mode():
                run.output("out", model(x))
        return run.recording()

    found, wanted = run(), tensure.inspect(model, x, digest=True, keep=True)
    assert torch.equal(found["out"], model(x))
    assert {step.module for step in found.trace.steps} == {step.module for step in wanted.trace.steps}
    alarms = tensure.diff(found, wanted).findings
    assert [finding.text for finding in alarms] == []


def test_inference_tensors_written_in_place_get_new_names() -> None:
    with torch.inference_mode(), tensure.watch() as run:
        x = torch.ones(3)
        x.add_(1)
        x.mul(2)
    mul = run.trace.steps[-1]
    assert run.trace.tensors[mul.reads[0]].in_place
    assert run.trace.tensors[mul.reads[0]].statistics.minimum == 2


def test_two_threads_record_apart() -> None:
    ready = threading.Barrier(2)
    traces: dict[str, Any] = {}

    def work(op: str) -> None:
        x = torch.randn(8, 8)
        with tensure.watch(name=op, digest=True) as run:
            ready.wait(10)
            for _ in range(40):
                x = getattr(torch, op)(x)
            ready.wait(10)
        traces[op] = run.trace

    threads = [threading.Thread(target=work, args=(op,)) for op in ("sin", "tanh")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for op in ("sin", "tanh"):
        assert [step.op for step in traces[op].steps] == [op] * 40


def test_modules_in_two_threads_have_their_own_paths() -> None:
    ready = threading.Barrier(2)
    paths: dict[str, set[str]] = {}

    def work(name: str) -> None:
        model = nn.ModuleDict({name: nn.Linear(4, 4)})
        ready.wait(10)
        with tensure.watch(model) as run:
            for _ in range(20):
                model[name](torch.ones(1, 4))
        paths[name] = {step.module for step in run.trace.steps if step.op == "addmm"}

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert paths == {"one": {"one"}, "two": {"two"}}


def test_a_thread_outside_the_watch_is_not_recorded() -> None:
    with tensure.watch() as run:
        thread = threading.Thread(target=lambda: torch.ones(3).sin())
        thread.start()
        thread.join(10)
        torch.ones(3).cos()
    assert "cos" in [step.op for step in run.trace.steps]
    assert "sin" not in [step.op for step in run.trace.steps]


def test_a_watch_that_is_open_already_or_done() -> None:
    """Entered again it goes on, or says why not; it never loses what it has."""
    watch = tensure.watch()
    with watch as run:
        torch.ones(2)
    before = len(run.trace.steps)
    try:
        with watch as run:
            torch.ones(2)
    except TensureError as error:
        assert str(error)
    assert len(run.trace.steps) >= before


# --- modules used twice, shared weights ----------------------------------------------------------------


def test_a_module_used_twice_is_one_path_with_one_weight() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.tied = nn.Linear(4, 4, bias=False)
            self.tied.weight = self.layer.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tied(self.layer(torch.relu(self.layer(x))))

    model = Twice()
    trace = tensure.inspect(model, torch.randn(2, 4)).trace
    modules = [step.module for step in trace.steps if step.op in {"addmm", "mm"}]
    assert modules == ["layer", "layer", "tied"]
    weights = [facts for facts in trace.leaves() if facts.origin == "weight"]
    assert sorted(facts.shape for facts in weights) == [(4,), (4, 4)]
    other = copy.deepcopy(model)
    assert other.tied.weight is other.layer.weight
    other.layer.weight.data[1, 1] *= -1
    found = tensure.diff(model, other, torch.randn(2, 4))
    assert [finding.a for finding in found.findings] == ["layer.weight"]


def test_a_parameter_swapped_between_calls_is_another_weight() -> None:
    model, x = nn.Linear(2, 2, bias=False), torch.ones(1, 2)
    with tensure.watch(model, digest=True) as run:
        model(x)
        model.weight = nn.Parameter(torch.zeros(2, 2))
        model(x)
    first, second = [step for step in run.trace.steps if step.op in {"mm", "addmm"}]
    assert not set(first.reads[1:]) & set(second.reads[1:])
    assert run.trace.tensors[second.outs[0]].statistics.l2 == 0


def test_two_models_in_one_watch() -> None:
    one, two = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    with tensure.watch() as run:
        two(one(torch.ones(1, 2)))
    paths = [step.module for step in run.trace.steps if step.op == "addmm"]
    assert len(set(paths)) == 2
    names = [facts.name for facts in run.trace.leaves() if facts.shape == (2, 2)]
    assert len(set(names)) == 2


def test_dropout_with_a_seed_is_recorded_and_repeats() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).train()
    x = torch.randn(2, 8)

    def run() -> Any:
        torch.manual_seed(4)
        with tensure.watch(model, inputs={"x": x}, keep=True, digest=True) as watch:
            model(x)
        return watch.recording()

    one, two = run(), run()
    found = tensure.diff(one, two)
    assert (found.kind, found.findings) == ("identical", [])


def test_watching_does_not_change_random_numbers() -> None:
    torch.manual_seed(7)
    plain = [torch.randn(3), torch.rand(2)]
    torch.manual_seed(7)
    with tensure.watch(digest=True, keep=True):
        watched = [torch.randn(3), torch.rand(2)]
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


# --- nothing held, nothing leaked ----------------------------------------------------------------------


def test_a_trace_holds_no_tensor() -> None:
    dead: list[Any] = []
    with tensure.watch(digest=True) as run:
        x = torch.ones(10)
        dead.append(weakref.ref(x.untyped_storage()))
        y = x * 2
        del x, y
    big = torch.ones(1000)
    held = weakref.ref(big)
    with tensure.watch(inputs={"big": big}) as second:
        big + 1
    del big
    gc.collect()
    assert held() is None
    assert run.trace.steps and second.trace.steps


def test_a_diff_leaves_no_file_open() -> None:
    def code(x: torch.Tensor) -> torch.Tensor:
        return (x @ x).relu()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        tensure.diff(code, code, torch.randn(3, 3))
        recording = tensure.inspect(code, torch.randn(3, 3), keep=True)
        del recording
        gc.collect()
    assert [str(item.message) for item in caught if item.category is ResourceWarning] == []


def test_values_are_the_ones_at_the_time() -> None:
    """A kept value is what the step left, whatever was written over it later, weights too."""
    model, x = nn.Linear(3, 3), torch.randn(2, 3)
    before = model.weight.detach().clone()
    with tensure.watch(model, inputs={"x": x}, keep=True) as run, torch.no_grad():
        y = model(x)
        model.weight.zero_()
        z = model(x)
        y.fill_(7)
        x.fill_(0)
    recording = run.recording()
    assert torch.equal(recording["weight"], before)
    first, second = [step for step in run.trace.steps if step.op == "addmm"]
    assert torch.equal(recording[second.outs[0]], z)
    assert not recording[first.outs[0]].eq(7).any()
    assert recording["x"].abs().sum() > 0
