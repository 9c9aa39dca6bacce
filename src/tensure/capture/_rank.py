"""One rank while it is traced: what it begins with, what it did, what it ends with.

A distributed parameter is taken to hold what its placements say, a plain one to be whole unless it is placed
or was cut from the whole one under our eyes. Knows nothing of other ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tensure.errors import InputError
from tensure.host import dtype_word
from tensure.program import FLOATS, Name, Op, Ref, TensorType

from ._calls import check_call
from ._collectives import Collectives
from ._coordinate import Reads
from ._flat_parts import Stretch, claim_flat, flat_parts
from ._generators import Generators, counted_draws, own_generators
from ._given import as_step, axes_of, built, gradients, leaves, local_of, returned_by
from ._layout import is_copy
from ._microbatch import MICROBATCH, Microbatch, checked_count, takes_index
from ._model import Captured
from ._pending import end
from ._placements import Part, cut_dims, part_of, whole_part
from ._sources import Sources, their_errors
from ._step import ModelFunction, ParallelFunction, ParallelStep, Placements
from ._tape import WHOLE, Tape
from ._tracer import Tracer
from ._tracks import RankTrace, reread, with_one_nan, without_idle
from ._updates import Updates
from ._watch import watched
from ._world import fake_rank

__all__ = ["TracedRank"]


@dataclass
class TracedRank:
    """One rank, or one micro-batch of it.

    Args:
        world: sizes of the axes that ranks are numbered along, outermost first.
        rank: its number.
        captured: what the model alone came to.
        index: the micro-batch, where these are an axis.
        reads: what is noted of who looks at this rank's place; None where nobody asks.
    """

    world: Mapping[str, int]
    rank: int
    captured: Captured
    index: int = 0
    reads: Reads | None = None
    tape: Tape = field(default_factory=Tape)
    claims: dict[str, tuple[str, Part]] = field(default_factory=dict[str, "tuple[str, Part]"])
    outputs: set[str] = field(default_factory=set[str])
    standing: dict[str, Part] = field(default_factory=dict[str, Part])
    """Where each parameter stands, by name, as far as known."""
    flat: dict[str, list[Stretch]] = field(default_factory=dict[str, "list[Stretch]"])
    """What lies in parameters of flat memory, by name."""
    place: dict[str, int] = field(default_factory=dict[str, int])
    mesh: dict[str, int] = field(default_factory=dict[str, int])
    """The world's, and the axis of micro-batches."""
    shapes: int = 0
    held: dict[str, Name] = field(default_factory=dict[str, Name])
    """The value each parameter begins the step with."""
    replaced: dict[Name, str] = field(default_factory=dict[Name, str])
    """What was in a parameter's memory before what it is placed as was, and the parameter."""
    lacking: dict[str, tuple[Part, str]] = field(default_factory=dict[str, "tuple[Part, str]"])
    """Gradients of parameters used here that are not there: where they would stand, and their dtype."""
    steps: list[Op] = field(default_factory=list[Op])
    outline: Any = None
    """What `_classes` compares, once it is known."""
    integers: list[int] | None = None
    whole: tuple[str, ...] = ()
    """The names of the module's parameters and buffers before it was made parallel."""

    def trace(self, model: ModelFunction, parallel: ParallelFunction) -> None:
        """Run it, and keep what was done; the tape, which holds tensors, is let go."""
        ranks = Collectives(self.world, self.rank, self.reads)
        self.mesh = dict(self.world)
        self.place = dict(zip(self.world, ranks.place(self.rank), strict=True))
        watch = nullcontext() if self.reads is None else watched(self.reads, ranks)
        generators = Generators()
        with own_generators(generators), fake_rank(self.world, self.rank) as mesh, watch:
            with counted_draws(generators):
                single = built(model)
            net, inputs = single.module, single.inputs
            whole = dict(leaves(net))
            self.whole = tuple(whole)
            for label, tensor in whole.items():
                self.tape.add(tensor, Ref(Name(label + WHOLE)))
                if label in self.captured.shapes:
                    self.claims[label + WHOLE] = (label, whole_part(self.captured.shapes[label]))
            building = Tracer(self.tape, Sources(net), ranks, generators, building=True)
            check_call("the parallel function", parallel, {"module": net, "mesh": mesh})
            with their_errors("the parallel function"), building:
                found = parallel(net, mesh)
            given = as_step(found, net)
            self._count_microbatches(given)
            module = given.module if given.module is not None else net
            for label, tensor in leaves(module):
                self._leaf(label, tensor, whole, given)
                if label in self.standing:
                    self.held[label] = self.tape.read(local_of(tensor), ()).name
            local = self._inputs(inputs, given)
            self._check_calls(given, dict(zip(self.captured.inputs, local, strict=True)))
            updates = Updates(self, given, module)
            begun = len(self.tape.steps)
            sources = Sources(module)
            step = f"the step of rank {self.rank}"
            tracer = Tracer(self.tape, sources, ranks, generators)
            with their_errors(step), sources.watching(), updates.stepping() as run:
                if given.microbatch is None:
                    with tracer:
                        returned = returned_by(run(*local))
                else:
                    repeated = Microbatch(replace(given, step=run), module, local, tracer, self.index)
                    returned = repeated.run(self._index())
            self._results(returned, module, local, given)
            updates.results()
            self._missing(module, begun)
        self.steps, self.shapes = self.tape.steps, self.tape.shapes
        self.tape = Tape()
        if self.reads is not None:
            self.steps = without_idle(self.steps, self.claims, frozenset(self.outputs))
        self.steps = with_one_nan(self.steps)

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to another process, which has the model's capture."""
        return {key: value for key, value in vars(self).items() if key != "captured"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self.steps = with_one_nan(self.steps)

    def _check_calls(self, given: ParallelStep, inputs: Mapping[str, torch.Tensor]) -> None:
        if given.microbatch is None:
            check_call("the step", given.step, inputs)
            return
        named = {"index": self.index} if takes_index(given.microbatch) else {}
        check_call("microbatch", given.microbatch, inputs, **named)
        check_call("the step after the last micro-batch", given.step, {})

    def _count_microbatches(self, given: ParallelStep) -> None:
        if given.microbatch is None and given.microbatches == 1:
            return
        self.mesh[MICROBATCH] = checked_count(given, self.world)
        self.place[MICROBATCH] = self.index
        if self.reads is not None:
            self.reads.add_axis(MICROBATCH, self.mesh[MICROBATCH], self.index)

    def _index(self) -> Any:
        return self.index if self.reads is None else self.reads.axis(MICROBATCH)

    def moved(self, place: Mapping[str, int]) -> TracedRank:
        """As the rank at another place would have been traced that goes the same way in the same steps."""
        claims = {
            label: (of, part if part.origin is None else part_of(*part.origin, self.mesh, place))
            for label, (of, part) in self.claims.items()
        }
        lacking = {
            label: (part if part.origin is None else part_of(*part.origin, self.mesh, place), dtype)
            for label, (part, dtype) in self.lacking.items()
        }
        return replace(
            self,
            place=dict(place),
            claims=claims,
            lacking=lacking,
            steps=list(self.steps),
            outputs=set(self.outputs),
            outline=None,
            integers=None,
        )

    def distances(self) -> list[dict[str, int]]:
        """How far each message goes, or has come, along every axis that its group spans."""
        names, ranks, found = tuple(self.world), Collectives(self.world, 0), list[dict[str, int]]()
        for step in self.steps:
            if step.op in ("send", "recv"):
                other, over = step.attr("other"), step.attr("over")
                assert isinstance(other, int) and isinstance(over, tuple)
                there = dict(zip(names, ranks.place(other), strict=True))
                found.append({axis: there[axis] - self.place[axis] for axis in names if axis in over})
        return found

    def traced(self, steps: Sequence[Op]) -> RankTrace:
        """The steps, or others that do the same, with the claims."""
        # A parameter that stayed whole has its name to itself.
        names = {
            label + WHOLE: label
            for label in self.whole
            if label not in self.claims and label + WHOLE in self.claims
        }
        claims = {names.get(label, label): found for label, found in self.claims.items()}
        renamed = {Name(old): Name(new) for old, new in names.items()}
        steps = [replace(step, args=tuple(reread(arg, renamed) for arg in step.args)) for step in steps]
        return RankTrace(tuple(self.place.items()), tuple(steps), claims, frozenset(self.outputs))

    def leaf_types(self) -> dict[str, TensorType]:
        """Of what the steps begin with."""
        values = self.captured.program.values
        return {
            label: TensorType(part.shape, values[of].dtype)
            for label, (of, part) in self.claims.items()
            if label not in self.outputs
        }

    # what it begins with -----------------------------------------------------------------------------

    def _leaf(
        self, label: str, tensor: torch.Tensor, whole: Mapping[str, torch.Tensor], given: ParallelStep
    ) -> None:
        """A parameter or buffer of the parallel module: a leaf, or made of leaves before our eyes."""
        of, local = self.captured.of(label), local_of(tensor)
        shape = self.captured.shapes.get(of)
        if (shape is None or tuple(local.shape) != shape) and self._lies_flat(label, tensor, given):
            return
        if shape is None:
            is_trained = isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad
            if label in whole or (self.tape.knows(local) and not is_trained):
                return  # nothing on the single device depends on it
            raise self._stranger(label)
        found = self._said(label, tensor, shape, given)
        if found is None and self.tape.knows(local) and not self.tape.is_drawn(local):
            cut = self.cut(local, of, shape)
            if cut is None and whole.get(of) is tensor and tuple(tensor.shape) == shape:
                cut = whole_part(shape)
            if cut is not None:
                self.standing[label] = cut
            return
        found = self._fitting(label, local, shape, found)
        if label in given.parameters and self._of_model(local):
            self.claim(label, local, found)  # made of the model's own before our eyes: to be shown
        self.claims[label] = (of, found)
        self.standing[label] = found
        if self.tape.knows(local):
            self.replaced[self.tape.read(local, ()).name] = label
            self.tape.write(local, self.begun(label, of, local), ())
        else:
            self.tape.add(local, self.begun(label, of, local))

    def begun(self, label: str, of: str, tensor: torch.Tensor) -> Ref:
        """A leaf, cast where a tensor holds it in another float dtype than the single device.

        Args:
            of: what it is a part of.
        """
        value, dtype = self.captured.program.values.get(of), dtype_word(tensor.dtype)
        if value is None or value.dtype == dtype or not {value.dtype, dtype} <= FLOATS:
            return Ref(Name(label))
        return self.tape.step("_to_copy", (Ref(Name(label)),), (), dtype=dtype)

    def _lies_flat(self, label: str, tensor: torch.Tensor, given: ParallelStep) -> bool:
        """Whether a parameter is flat memory in which parts of the model's lie; it is noted which."""
        shapes = self.captured.shapes
        if (
            label in given.parameters
            or isinstance(tensor, DTensor)
            or not isinstance(tensor, torch.nn.Parameter)
        ):
            return False
        of = self.captured.of(label)
        if of in shapes and self.tape.knows(tensor) and self.cut(tensor, of, shapes[of]) is not None:
            return False  # a part along dims
        laid = flat_parts(self, tensor, {name: shapes[name] for name in self.whole if name in shapes})
        if laid is None or (of in shapes and any(name != of for name, _ in laid)):
            return False
        self.flat[label] = laid
        return True

    def _stranger(self, label: str) -> InputError:
        return InputError(
            f"parameter {label} of the parallel module",
            wanted=f"names of the single device's: {', '.join(list(self.captured.shapes)[:8])}, ...",
            next_step="Name the module whose parameters are meant in ParallelStep(module=...).",
        )

    def _said(
        self, label: str, tensor: torch.Tensor, shape: Sequence[int], given: ParallelStep
    ) -> Part | None:
        """Where a parameter stands by its own placements, or by those given for it."""
        if isinstance(tensor, DTensor):
            placements = dict(zip(axes_of(tensor), tensor.placements, strict=True))
            return self.part(shape, placements, f"parameter {label}")
        if label in given.parameters:
            return self.part(shape, given.parameters[label], f"parameter {label}")
        return None

    def _fitting(self, label: str, local: torch.Tensor, shape: Sequence[int], said: Part | None) -> Part:
        """The same, whole where nothing is said; it must fit the local tensor."""
        found = whole_part(shape) if said is None else said
        if found.shape != tuple(local.shape):
            if said is not None:
                raise InputError(
                    f"parameter {label} of shape {list(local.shape)}", wanted=f"{list(found.shape)} as placed"
                )
            raise InputError(
                f"parameter {label} of shape {list(local.shape)} where the single device has {list(shape)}",
                wanted="a DTensor, a slice of the whole one, or ParallelStep(parameters=...)",
            )
        return found

    def _of_model(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor was made of the model's parameters and buffers, and of no random numbers."""
        return (
            self.tape.knows(tensor) and not self.tape.is_drawn(tensor) and self.tape.rests_on(tensor, WHOLE)
        )

    def cut(self, tensor: torch.Tensor, label: str, shape: Sequence[int]) -> Part | None:
        """Where a parameter sliced from the whole one, or cast, stands; None if changed in other ways."""
        name = self.tape.read(tensor, ()).name
        made = self.tape.makers()
        cuts: list[Op] = []
        while name in made:
            step = made[name]
            if not (step.op == "slice" or is_copy(step)) or not isinstance(step.args[0], Ref):
                return None
            cuts.append(step)
            name = step.args[0].name
        if name != Name(label + WHOLE):
            return None
        dims = [range(size) for size in shape]
        for step in reversed(cuts):
            if step.op == "slice":
                attrs = dict(step.attrs)
                dim: Any = attrs.get("dim", 0)
                cut: Any = slice(attrs.get("start"), attrs.get("end"), attrs.get("step"))
                dims[dim] = dims[dim][cut]
        return Part(tuple(((found.start, found.stop, found.step),) for found in dims))

    def _inputs(self, inputs: Sequence[torch.Tensor], given: ParallelStep) -> list[torch.Tensor]:
        made: list[torch.Tensor] = []
        for at, (label, tensor) in enumerate(zip(self.captured.inputs, inputs, strict=True)):
            found = self.part(tuple(tensor.shape), _nth(given.inputs, at), f"input {at}")
            if found.sum:
                raise InputError(
                    f"input {at} is a sum over {', '.join(found.sum)}", wanted="Shard or Replicate"
                )
            if found.shape != tuple(tensor.shape):
                tensor = tensor.new_empty(found.shape, requires_grad=tensor.requires_grad)
            self.claims[label] = (label, found)
            self.standing[label] = found
            self.tape.add(tensor, self.begun(label, label, tensor))
            made.append(tensor)
        return made

    # what it ends with -------------------------------------------------------------------------------

    def _results(
        self,
        returned: Sequence[torch.Tensor],
        module: torch.nn.Module,
        inputs: Sequence[torch.Tensor],
        given: ParallelStep,
    ) -> None:
        names = self.captured.outputs
        if len(returned) != len(names):
            raise InputError(
                f"the parallel step returns {len(returned)} tensors",
                wanted=f"{len(names)}, as the module does: {', '.join(names)}",
            )
        there = dict(leaves(module))
        there |= {f"grad.{k}": tensor.grad for k, tensor in leaves(module) if tensor.grad is not None}
        end([(k, local_of(tensor)) for k, tensor in [*zip(names, returned, strict=True), *there.items()]])
        for at, (label, tensor) in enumerate(zip(names, returned, strict=True)):
            self.output(label, tensor, _nth(given.outputs, at))
        graded = module if self.captured.states is None else None
        for label, tensor in gradients(graded, dict(zip(self.captured.inputs, inputs, strict=True))):
            if label in self.flat and label not in given.gradients:
                claim_flat(self, tensor, self.flat[label], "grad.")
                continue
            if self.captured.of(f"grad.{label}") not in self.captured.shapes:
                continue  # the single device has none to compare with
            said, standing = given.gradients.get(label), self.standing.get(label)
            plain = said is None and not isinstance(tensor, DTensor)
            if plain and standing is not None and standing.shape == tuple(tensor.shape):
                self.claim(f"grad.{label}", self._own(tensor), standing)
            else:
                self.output(f"grad.{label}", tensor, said)

    def _missing(self, module: torch.nn.Module, begun: int) -> None:
        """The parameters that the step uses here and leaves without a gradient."""
        used = {ref.name for step in self.tape.steps[begun:] for ref in step.reads()}
        for label, tensor in leaves(module):
            grad = f"grad.{label}"
            if (
                tensor.grad is not None
                or self.captured.of(grad) not in self.captured.shapes
                or self.held.get(label) not in used
            ):
                continue
            self.lacking[grad] = (self.standing[label], dtype_word(tensor.dtype))

    def lack(self, grad: str) -> None:
        """Say that a gradient holds nothing: here its parameter will not change as on the single device."""
        part, dtype = self.lacking[grad]
        attrs = (("dtype", dtype), ("fill_value", float("nan")), ("size", part.shape))
        self.steps.append(Op("full", (), (Name(grad),), attrs))
        self.claims[grad] = (self.captured.of(grad), part)
        self.outputs.add(grad)

    def output(self, label: str, tensor: torch.Tensor, said: Placements | None) -> None:
        if isinstance(tensor, DTensor) and said is None:
            said = dict(zip(axes_of(tensor), tensor.placements, strict=True))
        found = self.part(self.captured.shapes[self.captured.of(label)], said, label)
        local = self._own(tensor)
        if found.shape != tuple(local.shape):
            raise InputError(
                f"{label} of shape {list(local.shape)}",
                wanted=f"{list(found.shape)}, as placed; ParallelStep(outputs=..., gradients=...) place it",
            )
        self.claim(label, local, found)

    def _own(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's part, as the tape knows it."""
        return local_of(tensor)

    def claim(self, label: str, local: torch.Tensor, found: Part) -> None:
        """Say that a tensor is now a part of the value of this name."""
        self.claim_value(label, self.tape.read(local, ()), self.captured.of(label), found)

    def claim_value(self, local: str, ref: Ref, output: str, found: Part) -> None:
        """Say that a value, under the name of this local, is a part of an output."""
        self.tape.steps.append(Op("copy", (ref,), (Name(local),)))
        self.claims[local] = (output, found)
        self.outputs.add(local)

    def part(self, shape: Sequence[int], placements: Placements | None, what: str) -> Part:
        found = part_of(shape, placements or {}, self.mesh, self.place, what)
        if self.reads is not None:
            for dim, axes in cut_dims(shape, placements or {}, self.mesh).items():
                count = 1
                for axis in axes:
                    count *= self.mesh[axis]
                if shape[dim] % count:
                    self.reads.note(*axes)  # parts of several sizes
        return found


def _nth(items: Sequence[Placements | None], at: int) -> Placements | None:
    return items[at] if at < len(items) else None
