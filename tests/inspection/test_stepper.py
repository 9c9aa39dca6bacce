"""Stepping through a run: forwards as it happens, backwards in what it left, out of it without a trace."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules import module as torch_module

import tensure
from tensure.errors import InputError
from tensure.inspection import Recording, Stepper, parse_break, parse_selection, split_reference, watch

from ..runtime.small_models import classifier


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(4, 8)
        self.second = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


X = torch.linspace(-1, 1, 12).reshape(3, 4)


def stepper(code: Any = None, inputs: Any = (X,), **options: Any) -> Stepper:
    """Over the eager run of a small net, or of other code."""
    net = code or Net()
    given = list(inputs) if inputs is not None else None
    breaks = options.pop("breaks", ())
    ring = {"ring_bytes": options.pop("ring_bytes")} if "ring_bytes" in options else {}
    return Stepper(
        lambda on_step: tensure.inspect(net, given, on_step=on_step, **options),
        [parse_break(text) for text in breaks],
        **ring,
    )


@pytest.fixture(autouse=True)
def nothing_stays() -> Any:
    """After each test no thread, no hook of torch's, and no dispatch mode is left."""
    threads = threading.active_count()
    yield
    assert threading.active_count() == threads
    assert not torch_module._global_forward_hooks
    assert not torch_module._global_forward_pre_hooks
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert torch.is_grad_enabled()


# --- going ---


def test_steps_come_one_by_one_as_the_run_makes_them() -> None:
    with torch.no_grad():
        whole = tensure.inspect(Net(), [X]).trace
        with stepper() as run:
            assert run.at == -1
            for step in whole.steps:
                stop = run.next()
                assert stop.why == "step"
                assert stop.step is not None
                assert (stop.step.index, stop.step.op, stop.step.outs) == (step.index, step.op, step.outs)
                assert len(run.trace.steps) == step.index + 1  # the next one has not run
            assert not run.ended
            stop = run.next()
            assert (stop.why, run.ended, run.at) == ("end", True, len(whole.steps) - 1)
            assert run.next().why == "end"
            assert run.recording is not None
            assert [s.op for s in run.recording.trace.steps] == [s.op for s in whole.steps]


def test_back_looks_and_next_comes_back_to_where_the_run_waits() -> None:
    with stepper() as run:
        run.next(4)
        assert run.at == 3
        seen = run.trace.steps
        assert run.back(2).step is seen[1]
        assert run.at == 1
        assert len(seen) == 4
        assert run.back(50).step is seen[0]
        assert run.next().step is seen[1]
        assert run.run_to(3).step is seen[3]
        assert len(run.trace.steps) == 4
        assert run.run_to(4).step is run.trace.steps[4]
        assert run.run_to(2).step is run.trace.steps[2]


def test_before_the_first_step() -> None:
    with stepper() as run:
        assert run.back().why == "start"
        assert run.at == -1
        with pytest.raises(InputError, match="no tensor"):
            run.values("x")


def test_go_stops_where_a_condition_is_met_and_looks_at_old_steps_first() -> None:
    with stepper(breaks=["op=relu"]) as run:
        stop = run.go()
        assert stop.why == "break"
        assert stop.step is not None
        assert stop.step.op == "relu"
        assert [(hit.number, hit.reason) for hit in stop.hits] == [(1, "op relu")]
        run.back(10)
        assert run.add_break(parse_break("op=addmm")) == 2
        stop = run.go()  # behind where the run waits
        assert stop.step is not None
        assert (stop.step.op, stop.step.index) == ("addmm", 1)
        assert run.next(50).why == "break"  # next stops there too
        assert run.delete_break(1).pattern == "relu"
        with pytest.raises(InputError, match="no condition 1"):
            run.delete_break(1)
        stop = run.go()
        assert stop.step is not None
        assert stop.step.op == "addmm"
        assert stop.step.index > 2
        assert run.go().why == "end"


def test_a_program_and_kernels_can_be_stepped_through() -> None:
    for by in ("torch", "kernels", "reference"):
        with Stepper(
            lambda on_step, by=by: tensure.inspect(classifier(), seed=0, by=by, on_step=on_step)
        ) as run:
            first = run.next()
            assert first.step is not None
            run.values(first.step.outs[0])
            assert run.go().why == "end"
            assert run.recording is not None
            assert run.recording.trace.outputs


def test_a_function_that_makes_a_module_is_stepped_through_from_its_call() -> None:
    def make() -> tuple[torch.nn.Module, torch.Tensor]:
        return Net(), X

    with stepper(make, None) as run:
        stop = run.next()
        assert stop.step is not None
        assert stop.step.module == "first"
        assert run.values("first.weight").shape == (8, 4)


# --- values ---


def test_values_are_those_of_the_moment() -> None:
    def code() -> None:
        a = torch.arange(4.0)
        b = a * 2
        b.add_(1)
        c = b.sum()
        c * 2

    with stepper(code, None) as run:
        run.next(2)
        doubled = run.trace.steps[1].outs[0]
        np.testing.assert_array_equal(run.values(doubled), [0, 2, 4, 6])
        run.next()
        over = run.trace.steps[2].outs[0]
        assert over != doubled
        np.testing.assert_array_equal(run.values(over), [1, 3, 5, 7])
        np.testing.assert_array_equal(run.values(doubled), [0, 2, 4, 6])  # kept from before
        run.go()
        np.testing.assert_array_equal(run.values(doubled), [0, 2, 4, 6])
        np.testing.assert_array_equal(run.values(over), [1, 3, 5, 7])


def test_a_part_of_a_tensor() -> None:
    with stepper() as run:
        run.next(2)
        out = run.trace.steps[1].outs[0]
        whole = run.values(out)
        assert torch.equal(run.values(out, parse_selection("0, :3")), whole[0, :3])
        assert torch.equal(run.values(out, parse_selection("..., -1")), whole[..., -1])
        for wrong in ("9", "0, 0, 0", "0, 99"):
            with pytest.raises(InputError, match=r"f32\[3,8\]"):
                run.values(out, parse_selection(wrong))
        with pytest.raises(InputError, match=f"Did you mean '{out}'"):
            run.values(out + "x")


def test_only_the_last_bytes_are_kept() -> None:
    def code() -> None:
        x = torch.zeros(256)
        for _ in range(20):
            x = x + 1

    with stepper(code, None, ring_bytes=4096) as run:
        run.run_to(15)
        outs = [step.outs[0] for step in run.trace.steps]
        assert float(run.values(outs[15])[0]) == 15  # this one is alive
        for at in (11, 12, 13, 14):
            assert float(run.values(outs[at])[0]) == at
        with pytest.raises(InputError, match="are gone"):
            run.values(outs[10])
    with stepper(code, None, ring_bytes=100) as run:
        run.run_to(3)
        run.values(run.trace.steps[3].outs[0])
        with pytest.raises(InputError, match="are gone"):
            run.values(run.trace.steps[2].outs[0])
    with stepper(code, None, ring_bytes=100, keep=True) as run:
        run.go()
        assert float(run.values(run.trace.steps[3].outs[0])[0]) == 3


def test_leaves_can_be_looked_at_until_they_are_written_over() -> None:
    weight = torch.ones(3)

    def code() -> torch.Tensor:
        y = weight * 2
        weight.add_(5)
        return y + weight

    with stepper(code, None) as run:
        run.next()
        name = run.trace.steps[0].reads[0]
        np.testing.assert_array_equal(run.values(name), [6, 6, 6])  # a first, unwatched, call wrote there
        run.go()
        with pytest.raises(InputError, match="step 1 wrote over them"):
            run.values(name)


def test_nothing_is_kept_alive() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def code() -> None:
        x = torch.ones(100)
        y = x + 1
        made.append(weakref.ref(y))
        del y
        x + 2

    with stepper(code, None) as run:
        run.next(3)
        assert len(made) == 2
        gc.collect()
        assert made[-1]() is None


# --- names and parts as text ---


def test_references() -> None:
    names = {"x", "h[3]", "logits"}
    assert split_reference("x", names) == ("x", ())
    assert split_reference("h[3]", names) == ("h[3]", ())
    assert split_reference("h[3][0]", names) == ("h[3]", (0,))
    assert split_reference(" logits[0, -1, :8] ", names) == ("logits", (0, -1, slice(None, 8)))
    assert split_reference("x[]", names) == ("x", ())
    assert parse_selection("1:7:2, ..., :") == (slice(1, 7, 2), ..., slice(None))
    for wrong in ("a", "1;2", "::-1", "1:2:3:4", "..., ...", "0x1", "1" * 30, ",".join("1" * 100)):
        with pytest.raises(InputError, match="part"):
            parse_selection(wrong)


# --- errors, and leaving early ---


def test_what_the_run_raises_is_raised_here() -> None:
    def code() -> None:
        torch.ones(2) * 2
        raise LookupError("theirs")

    def watched(on_step: Any) -> Recording:
        with watch(on_step=on_step) as seen:
            code()
        return seen.recording()

    with Stepper(watched) as run:
        run.next(2)
        with pytest.raises(LookupError, match="theirs"):
            run.next()
        assert run.ended
        assert run.recording is None
        assert run.back().step is run.trace.steps[0]  # what it left can still be looked at
        with pytest.raises(LookupError):
            run.go()


def test_a_run_that_raises_at_once() -> None:
    with Stepper(lambda on_step: tensure.inspect(classifier(), on_step=on_step)) as run:
        with pytest.raises(InputError, match="was given no inputs"):
            run.next()
        assert run.ended


def plain_module(run: Stepper) -> None:
    run.next(2)


def in_backward(run: Stepper) -> None:
    run.run_to(30)
    assert run.trace.steps[run.at].phase == "backward"


def train(on_step: Any) -> Recording:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with watch(net, on_step=on_step) as seen:
        for _ in range(5):
            optimizer.zero_grad()
            try:
                net(X).square().sum().backward()
            except Exception:  # noqa: BLE001 - code that swallows errors must not swallow the end
                pass
            optimizer.step()
    return seen.recording()


@pytest.mark.parametrize("where", [plain_module, in_backward])
def test_closing_early_unwinds_the_run(where: Callable[[Stepper], None]) -> None:
    run = Stepper(train)
    where(run)
    assert torch_module._global_forward_hooks  # it is watched now, so the check below can fail
    begin = time.monotonic()
    assert run.close()
    assert time.monotonic() - begin < 5
    assert not torch_module._global_forward_hooks
    with pytest.raises(InputError, match="closed"):
        run.go()
    assert run.close()


def test_a_module_called_here_while_the_run_waits_is_not_part_of_it() -> None:
    other = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with stepper() as run:
        run.next(2)
        for _ in range(3):
            other(X)
        run.go()
        assert {step.module for step in run.trace.steps} <= {"first", "second", ""}
        assert len(run.trace.steps) == len(tensure.inspect(Net(), [X]).trace.steps)


def test_the_thread_computes_gradients_only_where_its_caller_would() -> None:
    def code() -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return torch.ones(1) + 1

    with torch.no_grad(), stepper(code, None) as run:
        assert run.go().why == "end"


def test_ctrl_c_stops_at_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def forever() -> None:
        x = torch.zeros(1)
        while True:
            x = x + 1

    def watched(on_step: Any) -> Recording:
        with watch(on_step=on_step) as seen:
            forever()
        return seen.recording()

    with Stepper(watched) as run:
        run.next(5)
        real = run._turn.wait_for
        calls = iter([True])

        def interrupted(predicate: Callable[[], bool], timeout: float | None = None) -> bool:
            if threading.current_thread() is threading.main_thread() and next(calls, False):
                raise KeyboardInterrupt
            return real(predicate, timeout)

        monkeypatch.setattr(run._turn, "wait_for", interrupted)
        stop = run.go()
        assert stop.why == "interrupted"
        assert run.at >= 5
        assert run.next().why == "step"
