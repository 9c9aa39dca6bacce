"""Python state that makes the third micro-batch another one is seen wherever it is; what stays is not."""

from __future__ import annotations

import collections
import contextvars
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tensure.capture import _reach
from tensure.capture._reach import numbers_in_reach
from tensure.errors import InputError, UnsupportedError

from .steps import captured_plan
from .test_classes import layers
from .test_microbatch import accumulated

LATE = [False, False, True, True]


def frame() -> Iterator[bool]:
    yield from LATE


def engine(name: str) -> Any:
    """An object of a class whose module has that name."""
    kind = type("Engine", (), {"__module__": name, "n": 0})
    return kind()


def counted(held: Any) -> Callable[[], bool]:
    def third() -> bool:
        held.n = getattr(held, "n", 0) + 1
        return bool(held.n > 2)

    return third


def of_module() -> Callable[[], bool]:
    """A counter in another module, by code that names it as `other.n`."""
    other = ModuleType("reach_other")
    sys.modules["reach_other"] = other
    exec("n = 0", vars(other))
    told: dict[str, Any] = {"__name__": "reach_user", "other": other}
    exec("def third():\n    other.n += 1\n    return other.n > 2", told)
    third: Callable[[], bool] = told["third"]
    return third


def of_itself() -> Callable[[], bool]:
    def third() -> bool:
        third.n = getattr(third, "n", 0) + 1  # type: ignore[attr-defined]
        return bool(third.n > 2)  # type: ignore[attr-defined]

    return third


def of_context() -> Callable[[], bool]:
    told: contextvars.ContextVar[int] = contextvars.ContextVar("told", default=0)

    def third() -> bool:
        told.set(told.get() + 1)
        return told.get() > 2

    return third


def of_environment() -> Callable[[], bool]:
    os.environ.pop("REACH_N", None)

    def third() -> bool:
        os.environ["REACH_N"] = str(int(os.environ.get("REACH_N", "0")) + 1)
        return int(os.environ["REACH_N"]) > 2

    return third


def of_turned_list() -> Callable[[], bool]:
    """No number changes: functions change places."""

    def no() -> bool:
        return False

    def other() -> bool:
        return False

    def yes() -> bool:
        return True

    turned = collections.deque([no, other, yes])

    def third() -> bool:
        turned.rotate(-1)
        return turned[-1]()

    return third


def drawn(numbers: Any) -> Callable[[], bool]:
    return lambda: bool(numbers.random() > 2)


WRONG: dict[str, Callable[[], Callable[[], bool]]] = {
    "iter": lambda: partial(next, iter(LATE)),
    "cycle": lambda: partial(next, itertools.cycle(LATE)),
    "bound next": lambda: iter(LATE).__next__,
    "chain": lambda: partial(next, itertools.chain(LATE[:2], LATE)),
    "generator": lambda: partial(next, frame()),
    "loop of a generator": lambda: partial(next, (item for item in LATE)),
    "namespace": lambda: counted(SimpleNamespace(n=0)),
    "function": of_itself,
    "context": of_context,
    "environment": of_environment,
    "Random": lambda: drawn(random.Random(3)),
    "random": lambda: drawn(random),
    "RandomState": lambda: drawn(np.random.RandomState(3)),
    "Generator": lambda: drawn(np.random.default_rng(3)),
    "np.random": lambda: drawn(np.random),
    "module": of_module,
    "torch by name": lambda: counted(engine("torchmine")),
    "numpy by name": lambda: counted(engine("numpyro.infer")),
    "types by name": lambda: counted(engine("typesystem")),
    "turned list": of_turned_list,
}


@pytest.mark.parametrize("where", WRONG)
def test_the_third_is_told_apart(where: str) -> None:
    """Where a look before a micro-batch and one after it differ."""
    third = WRONG[where]()

    def microbatch() -> bool:
        return third()

    microbatch()
    before = numbers_in_reach(microbatch)
    microbatch()
    after = numbers_in_reach(microbatch)
    assert before.change(after) or before.moved(after)
    again = numbers_in_reach(microbatch)
    assert after.change(again) is None and after.moved(again) is None, "looking changes nothing"


@pytest.mark.parametrize("where", ["iter", "generator", "module", "torch by name", "turned list", "random"])
def test_a_step_that_it_changes_is_refused(where: str) -> None:
    third = WRONG[where]()

    def once(net: Any, index: int) -> None:
        if third():
            net.layers[0].bias.grad.mul_(2)

    with pytest.raises(InputError, match="a second micro-batch is not as the first"):
        captured_plan(layers(1, rows=16), accumulated(once), {"dp": 2})


def test_what_stays_as_it_is_is_no_reason() -> None:
    """Iterators made anew, numbers seeded anew, things that are there and not used."""
    unused, numbers, kept = iter(LATE), random.Random(1), SimpleNamespace(n=0, last=None)

    def once(net: Any, index: int) -> None:
        random.seed(7)
        numbers.seed(7)
        kept.last = [next(iter(LATE)), numbers.random(), random.random(), unused is None]
        kept.n = 5

    _, plan = captured_plan(layers(1, rows=16), accumulated(once), {"dp": 2})
    assert plan.num_ranks() == 8


def test_an_iterator_that_does_not_tell_where_it_is_is_refused() -> None:
    lines = os.scandir(".")
    with lines, pytest.raises(UnsupportedError, match=r"lines, an iterator \(.*does not tell where it is"):
        numbers_in_reach(lambda: next(lines))


def test_too_much_to_look_at_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [[at] for at in range(300)]
    assert len(numbers_in_reach(lambda: many).objects) > 300
    monkeypatch.setattr(_reach, "MAX_VISITED", 200)
    with pytest.raises(UnsupportedError, match="more than 200 objects that a micro-batch can reach"):
        numbers_in_reach(lambda: many)
