"""`inspect` and `diff`: every tensor of a run, and the first in which two runs part.

Knows what may be run (a model, a session, a torch module, a function, or a path to one of them) and what
inputs it takes; the looking is done in `inspection/`.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from tensure.errors import InputError

from ._code import code_named, names_code
from ._prove import read_plan

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tensure.bundle import Plan
    from tensure.inspection import Call, Difference, OnStep, Recording, ValueStore, Watch, Way
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
    if _is_recorded(model):
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
        _refuse_for_recording(model, [option for option, is_given in given.items() if is_given])
        recording = _recorded(model)
        _check_recorded(recording, digest=digest, keep=keep is not False)
        return recording if on_step is None else play_back(recording, on_step)
    store = ValueStore() if keep is True else None if keep is False else keep
    found = code_named(model) if isinstance(model, str) and names_code(model) else model
    if _is_eager(found):
        if plan is not None or by != "torch":
            raise InputError("a plan or kernels for eager code", wanted="a model")
        for option, value in (("entry (--entry)", entry), ("params (--param)", params or None)):
            if value is not None:
                raise InputError(f"{option} for eager code", wanted="a model: only a program has entries")
        if sizes is not None:
            raise InputError("sizes (--size) for eager code", wanted="an ONNX file whose sizes are open")
        return _record_eager(found, inputs, seed, statistics, digest, limit, store, on_step)
    loaded = _model(found, sizes)
    calls = _calls(loaded, inputs, entry, params, seed)
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
    has_model = any(not _is_recorded(run) and not _is_eager(run) for run in (one, other))
    has_onnx = any(_is_onnx_file(run) for run in (one, other))  # and sizes of those
    if _is_recorded(other) and (plan is not None or other_by is not None):
        raise InputError(
            "a recording is not run again",
            file=_file_of(other),
            wanted="no plan and nothing to run it by",
        )
    if _is_recorded(one) and _is_recorded(other):
        given = {
            "inputs (--input, --prompt)": inputs is not None,
            "entry (--entry)": entry is not None,
            "params (--param)": bool(params),
            "sizes (--size)": sizes is not None,
            "seed (--seed)": seed is not None,
            "by (--by)": by != "torch",
        }
        _refuse_for_recording(other, [option for option, is_given in given.items() if is_given])

    def run(what: Inspectable, by: Way, plan: Plan | str | os.PathLike[str] | None = None) -> Recording:
        if _is_recorded(what):
            return _recorded(what)
        of_program = {} if has_model and _is_eager(what) else program
        if sizes is not None and (_is_onnx_file(what) or not has_onnx):
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


# --- recordings ------------------------------------------------------------------------------------


def _is_recording_file(model: Any) -> TypeGuard[str | os.PathLike[str]]:
    from tensure.inspection import TRACE_SUFFIX

    return isinstance(model, str | os.PathLike) and os.fspath(model).lower().endswith(TRACE_SUFFIX)


def _is_recorded(model: Any) -> TypeGuard[Recording | str | os.PathLike[str]]:
    from tensure.inspection import Recording

    return isinstance(model, Recording) or _is_recording_file(model)


def _recorded(model: Recording | str | os.PathLike[str]) -> Recording:
    from tensure.inspection import Recording, load_recording

    return model if isinstance(model, Recording) else load_recording(model)


def _file_of(model: Recording | str | os.PathLike[str]) -> str | os.PathLike[str] | None:
    return model if isinstance(model, str | os.PathLike) else None


def _refuse_for_recording(model: Recording | str | os.PathLike[str], options: Sequence[str]) -> None:
    """Refuse options that only a run could follow.

    Raises:
        InputError: there are any; the message names them.
    """
    if options:
        raise InputError(
            f"a recording is not run again: {', '.join(options)} cannot apply",
            file=_file_of(model),
            wanted="the recording alone",
        )


def _check_recorded(recording: Recording, *, digest: bool, keep: bool) -> None:
    """Refuse to promise what a recording does not hold."""
    trace = recording.trace
    if digest and trace.tensors and all(facts.digest is None for facts in trace.tensors.values()):
        raise InputError(
            "digest (--digest): this recording has none", next_step="Record with digest=True (-o FILE.trace)"
        )
    if keep and recording.values is None:
        raise InputError(
            "keep (--keep): the values of this recording were not kept",
            next_step="Record with keep=True (-o FILE.trace)",
        )


def _check_bound(option: str, value: float | None) -> None:
    if value is not None and not 0 <= value < math.inf:  # NaN fails both
        raise InputError(f"{option} (--{option}) {value}", wanted="a finite number of at least 0")


# --- what is run -----------------------------------------------------------------------------------


def _is_onnx_file(model: Any) -> bool:
    return isinstance(model, str | os.PathLike) and os.fspath(model).lower().endswith(".onnx")


def _is_eager(model: Any) -> bool:
    if "torch" in sys.modules:
        import torch

        if isinstance(model, torch.nn.Module | torch.jit.ScriptModule):
            return True
    return callable(model) and not isinstance(model, type) and not hasattr(model, "program")


def _model(model: Any, sizes: Mapping[str, int] | None) -> Any:
    from tensure.program import Model
    from tensure.runtime import Session

    from ._load import load

    if isinstance(model, str | os.PathLike):
        return load(model, sizes=sizes)
    if sizes is not None:
        raise InputError(
            "sizes (--size) for a model that was read already", wanted="the path of an ONNX file"
        )
    if isinstance(model, Model):
        return model
    if isinstance(model, Session):
        folder = model.folder
        return Model(model.name, model.program, folder.weights, folder.assets)
    raise InputError(
        f"a {type(model).__name__} cannot be inspected",
        wanted="a model, a session, a torch module, a function, a path or package.module:name",
    )


# --- what it is given ------------------------------------------------------------------------------


def _calls(
    model: Model, inputs: Any, entry: str | None, params: Mapping[str, int] | None, seed: int | None
) -> list[Call]:
    from tensure.inspection import Call
    from tensure.runtime import check_inputs

    program = model.program
    if seed is not None:
        if inputs is not None:
            raise InputError("inputs and a seed", wanted="one of them")
        inputs = _drawn(model, entry, params, seed)
    if inputs is None:
        wanted = ", ".join(str(name) for name in program.entry(entry).inputs) or "none"
        raise InputError(
            f"{model.name} was given no inputs",
            wanted=wanted,
            next_step="Pass inputs (--input FILE or --prompt TEXT), or seed=0 (--seed 0) to draw some",
        )
    if isinstance(inputs, str):
        return _prompt(model, inputs)
    if isinstance(inputs, os.PathLike):
        inputs = _from_file(model, Path(inputs), entry, params)
    names = [str(name) for name in program.entry(entry).inputs]
    call = check_inputs(program, _by_name(inputs, names), entry=entry, params=params)
    return [Call(call.entry, call.params, call.inputs)]


def _prompt(model: Model, text: str) -> list[Call]:
    """The prefill of a prompt, chat template and all."""
    import numpy as np

    from tensure.inspection import Call
    from tensure.runtime import TextSide

    ids = TextSide(model.assets, model.name).prompt_ids(text)
    if "prefill" not in model.program.entries:
        raise InputError(f"{model.name} does not generate text", wanted="tensors")
    return [Call("prefill", {"n": len(ids), "pos": 0}, {"tokens": np.asarray(ids, np.int64)})]


def _from_file(model: Model, path: Path, entry: str | None, params: Mapping[str, int] | None) -> Any:
    from tensure.runtime import ImageRecipe, check_types, load_image, load_inputs, prepare_image, read_object

    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        if "image.json" not in model.assets:
            raise InputError(f"{model.name} does not say how it reads images", file=path, wanted="tensors")
        recipe = ImageRecipe.from_json(read_object(model.assets, "image.json"))
        return prepare_image(load_image(path), recipe)
    return load_inputs(
        path, check=lambda found: check_types(model.program, found, entry=entry, params=params)
    )


def _by_name(inputs: Any, names: Sequence[str]) -> Any:
    """Inputs as arrays by name, whatever they came as."""
    if isinstance(inputs, Mapping):
        return {key: _array(value) for key, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        if len(inputs) != len(names):
            raise InputError(f"{len(inputs)} inputs", wanted=", ".join(names) or "none")
        return {name: _array(value) for name, value in zip(names, inputs, strict=True)}
    return _array(inputs)


def _array(value: Any) -> Any:
    if "torch" in sys.modules:
        import torch

        from tensure.runtime import to_array

        if isinstance(value, torch.Tensor):
            return to_array(value)
    return value


def _drawn(model: Model, entry: str | None, params: Mapping[str, int] | None, seed: int) -> dict[str, Any]:
    """Inputs of the declared types: normal numbers, or small integers from 0."""
    import numpy as np

    from tensure.program import bind_entry, evaluate, leaves, numpy_dtype

    program = model.program
    chosen = dict(params or {})
    env: dict[str, int] = dict(program.axes)
    for key, low, _ in program.entry(entry).params:
        env[key] = chosen.setdefault(key, evaluate(low, env))
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for key, want, role in leaves(program, entry, bind_entry(program, entry, chosen)):
        if role != "input":
            continue
        if want.dtype[0] in "fb" and want.dtype != "bool":
            found[key] = rng.standard_normal(want.shape).astype(numpy_dtype(want.dtype))
        else:
            found[key] = rng.integers(0, 2 if want.dtype == "bool" else 8, want.shape).astype(
                numpy_dtype(want.dtype)
            )
    return found


# --- eager code ------------------------------------------------------------------------------------


def _record_eager(
    code: Any,
    inputs: Any,
    seed: int | None,
    statistics: bool,
    digest: bool,
    limit: float | None,
    store: ValueStore | None,
    on_step: OnStep | None,
) -> Recording:
    import torch

    from tensure.inspection import watch as open_watch

    options: dict[str, Any] = {"statistics": statistics, "digest": digest, "limit": limit, "on_step": on_step}

    def run_once(module: torch.nn.Module | None, inputs: Any) -> tuple[Recording, Any]:
        if seed is not None:
            torch.manual_seed(seed)
        args, kwargs = _eager_inputs(inputs)
        named = dict(zip(_parameter_names(module or code, len(args)), args, strict=True)) | kwargs
        named = {key: value for key, value in named.items() if isinstance(value, torch.Tensor)}
        name = getattr(module or code, "__name__", type(module or code).__name__)
        with open_watch(module, name=name, inputs=named, keep=store or False, **options) as run:
            results = (module or code)(*args, **kwargs)
            for key, tensor in _named_results(results):
                run.output(key, tensor)
        return run.recording(), results

    if on_step is not None and inputs is None and not isinstance(code, torch.nn.Module):
        # Only its result tells a function that makes a module from one that is the run itself, and nobody
        # wants to be told of the steps that draw a module's first weights.
        if seed is not None:
            torch.manual_seed(seed)
        results = code()
        if _is_call(results):
            return run_once(*results)[0]
    recording, results = run_once(code if isinstance(code, torch.nn.Module) else None, inputs)
    if inputs is None and _is_call(results):
        module, given = results  # the function stands for this call
        if store is not None:
            store.clear()
        recording, _ = run_once(module, given)
    return recording


def _is_call(results: Any) -> bool:
    """Whether a function's result is a module with inputs for it."""
    import torch

    return isinstance(results, tuple) and len(results) == 2 and isinstance(results[0], torch.nn.Module)


def _parameter_names(code: Any, count: int) -> list[str]:
    """What the first arguments of a module or function are called."""
    import inspect as python_inspect

    target = getattr(code, "forward", code)
    try:
        known = list(python_inspect.signature(target).parameters)
    except (TypeError, ValueError):
        known = []
    return [known[at] if at < len(known) else f"input_{at}" for at in range(count)]


def _eager_inputs(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import numpy as np
    import torch

    def tensor(value: Any) -> Any:
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    if isinstance(inputs, os.PathLike):
        from tensure.runtime import load_inputs

        inputs = load_inputs(inputs)
    if inputs is None:
        return (), {}
    if isinstance(inputs, Mapping):
        return (), {str(key): tensor(value) for key, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return tuple(tensor(value) for value in inputs), {}
    return (tensor(inputs),), {}


def _named_results(results: Any) -> list[tuple[str, Any]]:
    """Every tensor in what a run returned, by its place: `out`, `out_1`, `logits`, `past.0.key`."""
    import dataclasses

    import torch

    found: list[tuple[str, Any]] = []

    def collect(path: str, value: Any, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            found.append((path or "out", value))
        elif depth >= 16:
            return
        elif isinstance(value, Mapping):
            for key, item in value.items():
                collect(f"{path}.{key}" if path else str(key), item, depth + 1)
        elif isinstance(value, list | tuple):
            for at, item in enumerate(value):
                collect(f"{path}.{at}" if path else f"out_{at}", item, depth + 1)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                name = f"{path}.{field.name}" if path else field.name
                collect(name, getattr(value, field.name), depth + 1)

    collect("", results, 0)
    return found
