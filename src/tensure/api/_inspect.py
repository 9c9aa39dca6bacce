"""`inspect` and `diff`: every tensor of a run, and the first in which two runs part.

Knows which options go with what is run (a model, a session, a torch module, a function, or a path to one of
them); the looking is done in `inspection/`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tensure.errors import InputError

from ._code import code_named, names_code
from ._inspect_calls import calls_of
from ._inspect_eager import record_eager
from ._inspect_what import (
    check_recorded,
    file_of,
    is_eager,
    is_onnx_file,
    is_recorded,
    model_of,
    recorded,
    refuse_for_recording,
)
from ._prove import read_plan

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tensure.bundle import Plan
    from tensure.inspection import Difference, OnStep, Recording, ValueStore, Watch, Way
    from tensure.program import Model
    from tensure.runtime import Session

    Inspectable: TypeAlias = (
        Model | Session | Recording | torch.nn.Module | Callable[..., Any] | str | os.PathLike[str]
    )
    Given: TypeAlias = (
        Mapping[str, Any]
        | Sequence[Any]
        | np.ndarray[Any, Any]
        | torch.Tensor
        | str
        | os.PathLike[str]
        | None
    )

__all__ = ["diff", "inspect", "watch"]


def inspect(
    model: Inspectable,
    inputs: Given = None,
    *,
    entry: str | None = None,
    params: Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
    by: Way = "torch",
    plan: Plan | str | os.PathLike[str] | None = None,
    seed: int | None = None,
    statistics: bool = True,
    digest: bool = False,
    limit: float | None = None,
    keep: bool | ValueStore = False,
    on_step: OnStep | None = None,
) -> Recording:
    """Every tensor of a run, step by step: op, module, source line, shape, memory, statistics, digest.

    Args:
        model: what `load` gives or takes; a session; a torch module, or a function of torch code, recorded
            as it runs eagerly; or `"package.module:name"` for one of those two in code of yours, which is
            imported and run (a function that returns `(module, inputs)` stands for that call). A recording,
            or a `.trace` file that `save_recording` wrote, is read, not run.
        inputs: arrays or tensors by name, in order, or one alone; a prompt (str) for a model of text; a file
            (Path) of tensors, or of an image for a classifier.
        entry, params: which entry of a program, at which integers. For models only.
        sizes: of an ONNX file whose sizes are open, as for `load`.
        by: `torch`, op by op; `kernels`, ours in fused steps; `reference`, numpy. For models only.
        plan: run this plan of the model (a Plan, or the file of its text), rank by rank, and put its parts
            together.
        seed: draw the inputs from this seed instead.
        statistics, digest, limit: what to find out of every tensor.
        keep: keep every value on disk, for `diff` or to look at later (`recording["name"]`).
        on_step: called after each step with what it made. A function without inputs is then called once
            unwatched before, to see whether its result stands for a call. The steps of a recording are gone
            through in order, with what was kept of them.

    Raises:
        InputError: inputs that the model does not take, options that cannot apply to it, a limit that is
            no bound.
        UnsupportedError: a way that cannot run it.
    """
    from tensure.inspection import Looking, ValueStore, play_back, record_plan, record_program

    _check_bound("limit", limit)
    if is_recorded(model):
        given = {
            "inputs (--input, --prompt)": inputs is not None,
            "entry (--entry)": entry is not None,
            "params (--param)": bool(params),
            "sizes (--size)": sizes is not None,
            "by (--by)": by != "torch",
            "plan (--plan)": plan is not None,
            "seed (--seed)": seed is not None,
            "limit (--limit)": limit is not None,
        }
        refuse_for_recording(model, [option for option, is_given in given.items() if is_given])
        recording = recorded(model)
        check_recorded(recording, digest=digest, keep=keep is not False)
        return recording if on_step is None else play_back(recording, on_step)
    store = ValueStore() if keep is True else None if keep is False else keep
    found = code_named(model) if isinstance(model, str) and names_code(model) else model
    if is_eager(found):
        if plan is not None or by != "torch":
            raise InputError("a plan or kernels for eager code", wanted="a model")
        for option, value in (("entry (--entry)", entry), ("params (--param)", params or None)):
            if value is not None:
                raise InputError(f"{option} for eager code", wanted="a model: only a program has entries")
        if sizes is not None:
            raise InputError("sizes (--size) for eager code", wanted="an ONNX file whose sizes are open")
        return record_eager(found, inputs, seed, statistics, digest, limit, store, on_step)
    loaded = model_of(found, sizes)
    calls = calls_of(loaded, inputs, entry, params, seed)
    looking = Looking(statistics, digest, limit)
    if plan is not None:
        split = read_plan(plan)
        return record_plan(
            split, loaded.program, loaded.weights, calls[0], name=loaded.name, looking=looking, store=store,
            on_step=on_step,
        )  # fmt: skip
    return record_program(
        loaded.program, loaded.weights, calls, name=loaded.name, way=by, looking=looking, store=store,
        on_step=on_step,
    )  # fmt: skip


def diff(
    one: Inspectable,
    other: Inspectable,
    inputs: Given = None,
    *,
    entry: str | None = None,
    params: Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
    by: Way = "torch",
    other_by: Way | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    seed: int | None = None,
    rename: Mapping[str, str] | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    first_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Difference:
    """Where two runs agree bit for bit, where within what rounding allows, and the first tensor where they
    part.

    Args:
        one, other: as for `inspect`, or recordings made with `keep=True, digest=True`, or their files.
        inputs, entry, params, seed: what both get.
        sizes: of those of the two that are ONNX files whose sizes are open.
        by, other_by: what runs each; the same for both when `other_by` is left out.
        plan: of `other`: whole against split.
        rename: names of tensors in `one` -> names in `other` that mean the same.
        rtol, atol: allowed on top of the bound that is grown from dtype and length of sums.
        first_only: stop at the first fault.
        progress: told (done, total) as pairs are judged.

    Raises:
        InputError: inputs that a model does not take, options that cannot apply to either run, a tolerance
            that is no bound, or recordings without values.
    """
    from tensure.inspection import compare

    _check_bound("rtol", rtol)
    _check_bound("atol", atol)
    one, other = (
        code_named(run) if isinstance(run, str) and names_code(run) else run for run in (one, other)
    )
    shared: dict[str, Any] = {"seed": seed, "keep": True, "digest": True}
    program: dict[str, Any] = {"entry": entry, "params": params}
    # An entry is said of the models among the two; where there is none, the first to run refuses it.
    has_model = any(not is_recorded(run) and not is_eager(run) for run in (one, other))
    has_onnx = any(is_onnx_file(run) for run in (one, other))  # and sizes of those
    if is_recorded(other) and (plan is not None or other_by is not None):
        raise InputError(
            "a recording is not run again",
            file=file_of(other),
            wanted="no plan and nothing to run it by",
        )
    if is_recorded(one) and is_recorded(other):
        given = {
            "inputs (--input, --prompt)": inputs is not None,
            "entry (--entry)": entry is not None,
            "params (--param)": bool(params),
            "sizes (--size)": sizes is not None,
            "seed (--seed)": seed is not None,
            "by (--by)": by != "torch",
        }
        refuse_for_recording(other, [option for option, is_given in given.items() if is_given])

    def run(what: Inspectable, by: Way, plan: Plan | str | os.PathLike[str] | None = None) -> Recording:
        if is_recorded(what):
            return recorded(what)
        of_program = {} if has_model and is_eager(what) else program
        if sizes is not None and (is_onnx_file(what) or not has_onnx):
            of_program = {**of_program, "sizes": sizes}
        return inspect(what, inputs, by=by, plan=plan, **shared, **of_program)

    a, b = run(one, by), run(other, other_by or by, plan)
    return compare(a, b, rename=rename, rtol=rtol, atol=atol, first_only=first_only, progress=progress)


def watch(
    model: torch.nn.Module | None = None,
    *,
    name: str = "run",
    inputs: Mapping[str, torch.Tensor] | None = None,
    statistics: bool = True,
    digest: bool = False,
    limit: float | None = None,
    keep: bool | ValueStore = False,
    on_step: OnStep | None = None,
) -> Watch:
    """A context manager that records every eager torch op inside it, training steps included.

        with tensure.watch(model, digest=True) as run:
            model(x).sum().backward()
        print(run.trace.steps[0])

    See `tensure.inspection.watch` for the arguments.
    """
    from tensure import inspection

    _check_bound("limit", limit)
    return inspection.watch(
        model, name=name, inputs=inputs, statistics=statistics, digest=digest, limit=limit, keep=keep,
        on_step=on_step,
    )  # fmt: skip


def _check_bound(option: str, value: float | None) -> None:
    if value is not None and not 0 <= value < math.inf:  # NaN fails both
        raise InputError(f"{option} (--{option}) {value}", wanted="a finite number of at least 0")
