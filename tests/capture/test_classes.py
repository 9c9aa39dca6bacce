"""Classes of ranks: few traces give what every rank by itself gives, and no rank hides among others."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import get_rank as imported_long_ago
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tensure.bundle import Plan
from tensure.capture import Captured, ParallelStep, RankClass, _classes, capture_model, capture_parallel
from tensure.capture._rank import TracedRank
from tensure.errors import LimitError
from tensure.proving import prove_plan

from .by_rank import by_rank
from .whole_models import RIGHT, WRONG

DIM = 4
DATA = {"dp": Shard(0)}
MEAN = {"dp": Partial("avg")}


class Layers(nn.Module):
    def __init__(self, count: int = 2, dim: int = DIM) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(count))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return F.mse_loss(x, y)


def layers(count: int = 2, rows: int = 8, dim: int = DIM) -> Callable[[], Any]:
    return lambda: (Layers(count, dim), (torch.randn(rows, dim), torch.randn(rows, dim)))


def both_ways(model: Any, parallel: Any, mesh: Any) -> tuple[Captured, Plan, list[RankClass]]:
    """The plan by classes, which must be that of every rank traced."""
    captured, told = capture_model(model), list[RankClass]()
    alone = capture_parallel(model, parallel, mesh, captured, classes=False)
    plan = capture_parallel(model, parallel, mesh, captured, classes=True, told=told.extend)
    one, other = by_rank(alone), by_rank(plan)
    assert one.keys() == other.keys()
    for place in one:
        assert one[place] == other[place], place
    return captured, plan, told


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rank, micro-batch) of every trace."""
    found: list[tuple[int, int]] = []
    trace = TracedRank.trace

    def counted(self: TracedRank, *args: Any) -> None:
        found.append((self.rank, self.index))
        trace(self, *args)

    monkeypatch.setattr(TracedRank, "trace", counted)
    return found


# --- the same plans -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("name", RIGHT)
def test_classes_give_what_every_rank_gives(name: str) -> None:
    case = RIGHT[name]
    both_ways(case.model, case.parallel, case.mesh)


@pytest.mark.parametrize("fault", ["a wrong slice", "one reduction dropped", "a gradient doubled on the way"])
def test_a_planted_fault_is_refuted_by_classes(fault: str) -> None:
    case, _ = WRONG[fault]
    captured, plan, _ = both_ways(case.model, case.parallel, case.mesh)
    assert prove_plan(plan, captured.program).proof.values.status == "refuted"


def chain(how: str) -> Any:
    """A pipeline of one layer a stage, with data parallelism; neighbours are spoken of in several ways."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        stage, count, group = mesh.get_local_rank("pp"), mesh["pp"].size(), mesh.get_group("pp")
        layer = net.layers[stage]

        def call(one: Any, batched: Any, tensor: Tensor, to: Any) -> None:
            match how:
                case "group rank":
                    one(tensor, None, group, 0, to)
                case "global rank":
                    one(tensor, dist.get_global_rank(group, to), group)
                case "rank":
                    one(tensor, dist.get_rank() + (to - stage) * 2)
                case _:
                    op = dist.P2POp(batched, tensor, dist.get_global_rank(group, to), group)
                    for work in dist.batch_isend_irecv([op]):
                        work.wait()

        def step(x: Tensor, y: Tensor) -> Tensor:
            held, total = x, torch.zeros(())
            if stage > 0:
                held = torch.empty(x.shape)
                call(dist.recv, dist.irecv, held, stage - 1)
                held.requires_grad_()
            made = torch.tanh(layer(held))
            if stage == count - 1:
                loss = F.mse_loss(made, y)
                loss.backward()
                total = loss.detach()
            else:
                call(dist.send, dist.isend, made.detach(), stage + 1)
                grad = torch.empty_like(made)
                call(dist.recv, dist.irecv, grad, stage + 1)
                made.backward(grad)
            if stage > 0:
                assert held.grad is not None
                call(dist.send, dist.isend, held.grad, stage - 1)
            for weight in layer.parameters():
                dist.all_reduce(weight.grad, group=mesh.get_group("dp"))
                weight.grad /= mesh["dp"].size()
            return total

        return ParallelStep(step, inputs=[DATA, DATA], outputs=[{"pp": Partial(), **MEAN}])

    return parallel


@pytest.mark.parametrize("how", ["group rank", "global rank", "rank", "batched"])
def test_messages_between_stages(how: str) -> None:
    captured, plan, _ = both_ways(layers(4), chain(how), {"pp": 4, "dp": 2})
    assert list(plan.tracks) == ["pp0", "pp1", "pp2", "pp3"]
    assert prove_plan(plan, captured.program).proof.values.status == "proved"


def test_one_rank_in_the_middle_of_a_long_pipeline() -> None:
    """It cuts every stage along another axis than that of the messages, one stage after the other."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        if dist.get_rank() == 17:
            net.layers[8].register_forward_hook(lambda layer, given, out: F.relu(out))
        return chain("group rank")(net, mesh)  # type: ignore[no-any-return]

    captured, plan, _ = both_ways(layers(16), parallel, {"pp": 16, "dp": 2})
    assert len(plan.tracks) == 32
    values = prove_plan(plan, captured.program).proof.values
    assert values.status == "refuted" and values.counterexample is not None
    assert "first astray on pp8_dp1: relu_0 = relu" in values.counterexample.step


@pytest.mark.parametrize("size", [4, 20])
def test_a_ring_wraps_around(size: int) -> None:
    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        rank = dist.get_rank()

        def step(x: Tensor, y: Tensor) -> Tensor:
            got = torch.empty_like(x)
            ops = [
                dist.P2POp(dist.isend, x, (rank + 1) % size),
                dist.P2POp(dist.irecv, got, (rank - 1) % size),
            ]
            for work in dist.batch_isend_irecv(ops):
                work.wait()
            return (got + 0 * net(x, y)).sum()

        return ParallelStep(step, inputs=[DATA, DATA], outputs=[{"dp": Partial()}])

    def model() -> Any:
        net = Layers()
        net.forward = lambda x, y: x.sum() + 0 * net.layers[0](x).sum()  # type: ignore[method-assign]
        return net, (torch.randn(2 * size, DIM), torch.randn(2 * size, DIM))

    both_ways(model, parallel, {"dp": size})


# --- one rank among many ------------------------------------------------------------------------------


def _rank_compared(mesh: DeviceMesh) -> bool:
    return dist.get_rank() == 5


def _coordinate_compared(mesh: DeviceMesh) -> bool:
    return mesh.get_local_rank("dp") == 5


def _table(mesh: DeviceMesh) -> bool:
    return [0, 0, 0, 0, 0, 1, 0, 0][dist.get_rank()] == 1


def _dictionary(mesh: DeviceMesh) -> bool:
    return {5: True}.get(dist.get_rank(), False)


def _member_of_a_set(mesh: DeviceMesh) -> bool:
    return mesh.get_rank() in {5}


def _environment(mesh: DeviceMesh) -> bool:
    return os.environ["RANK"] == "5"


def _environment_if_there(mesh: DeviceMesh) -> bool:
    return "RANK" in os.environ and os.getenv("RANK") == "5"


def _shape_that_torch_tells(mesh: DeviceMesh) -> bool:
    held, _ = compute_local_shape_and_global_offset(torch.Size([11, 2]), mesh, [Shard(0)], skip_offset=True)
    return held[0] == 1


def _backend(mesh: DeviceMesh) -> bool:
    return mesh.get_group("dp")._get_backend(torch.device("cpu")).rank() == 5  # type: ignore[attr-defined]


def _environment_as_bytes(mesh: DeviceMesh) -> bool:
    return os.environb.get(b"LOCAL_RANK") == b"5"


def _whole_environment(mesh: DeviceMesh) -> bool:
    return dict(os.environ).get("RANK") == "5"


def _text(mesh: DeviceMesh) -> bool:
    return f"{dist.get_rank():02d}" == "05"


def _remainder(mesh: DeviceMesh) -> bool:
    return dist.get_rank() % 7 == 5


def _quotient(mesh: DeviceMesh) -> bool:
    return dist.get_rank() // 5 == 1 and dist.get_rank() < 6


def _least(mesh: DeviceMesh) -> bool:
    return abs(dist.get_rank() - 5) < 1


def _truth(mesh: DeviceMesh) -> bool:
    return not dist.get_rank() - 5


def _converted(mesh: DeviceMesh) -> bool:
    return float(dist.get_rank()) == 5.0


def _counted(mesh: DeviceMesh) -> bool:
    return len(range(dist.get_rank())) == 5


def _in_a_group(mesh: DeviceMesh) -> bool:
    return dist.distributed_c10d.GroupMember.WORLD.rank() == 5  # type: ignore[attr-defined]


def _coordinates(mesh: DeviceMesh) -> bool:
    (at,) = mesh.get_coordinate()  # type: ignore[misc]
    return at == 5


def _under_an_old_name(mesh: DeviceMesh) -> bool:
    return imported_long_ago() == 5


def _bits(mesh: DeviceMesh) -> bool:
    return dist.get_rank() ^ 5 == 0


def _kept_by_the_mesh(mesh: Any) -> bool:
    return mesh._rank == 5 and mesh._coordinate_on_dim[0] == 5  # type: ignore[no-any-return]


def _default_group(mesh: DeviceMesh) -> bool:
    return dist.distributed_c10d._get_default_group().rank() == 5


def _in_a_mesh_of_some(mesh: DeviceMesh) -> bool:
    return DeviceMesh("cpu", [4, 5])._is_current_rank_part_of_mesh() and dist.get_rank() > 4


def _picked(values: Any, at: Any) -> Any:
    return values[at]


def _where_tensors_are_picked_too(mesh: DeviceMesh) -> bool:
    rank = dist.get_rank()
    found, _ = (_picked(values, rank) for values in ([0, 0, 0, 0, 0, 1, 0, 0], torch.zeros(8)))
    return bool(found == 1)


def _member_of_a_group(mesh: DeviceMesh) -> bool:
    return dist.new_group([5]) != dist.GroupMember.NON_GROUP_MEMBER  # type: ignore[attr-defined]


PLANTED = [
    _rank_compared,
    _coordinate_compared,
    _table,
    _dictionary,
    _member_of_a_set,
    _environment,
    _environment_as_bytes,
    _environment_if_there,
    _shape_that_torch_tells,
    _backend,
    _whole_environment,
    _text,
    _remainder,
    _quotient,
    _least,
    _truth,
    _converted,
    _counted,
    _in_a_group,
    _coordinates,
    _under_an_old_name,
    _bits,
    _kept_by_the_mesh,
    _default_group,
    _in_a_mesh_of_some,
    _where_tensors_are_picked_too,
    _member_of_a_group,
]


def averaged(planted: Callable[[DeviceMesh], bool]) -> Any:
    """Data parallelism by hand; where `planted` says so, one gradient is doubled."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        group = mesh.get_group("dp")

        def step(x: Tensor, y: Tensor) -> Tensor:
            loss: Tensor = net(x, y)
            loss.backward()
            for weight in net.parameters():
                dist.all_reduce(weight.grad, group=group)
                weight.grad /= mesh["dp"].size() if mesh.ndim > 1 else mesh.size()
            if planted(mesh):
                net.layers[0].bias.grad *= 2
            return loss

        return ParallelStep(step, inputs=[DATA, DATA], outputs=[MEAN])

    return parallel


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.__name__.strip("_"))
def test_a_rank_that_does_something_else_is_a_class_of_its_own(planted: Any) -> None:
    """Samples at both ends would not see it: 5 is neither the first, nor the second, nor the last of 8."""
    captured, plan, told = both_ways(layers(1), averaged(planted), {"dp": 8})
    assert ((5, 6),) in [found.box for found in told]
    result = prove_plan(plan, captured.program).proof.values
    assert result.status == "refuted"
    assert result.counterexample is not None and result.counterexample.rank == "dp5"


def _in_a_hook(net: Any, mesh: DeviceMesh) -> None:
    net.layers[0].bias.register_hook(lambda grad: grad * 2 if dist.get_rank() == 5 else grad)


def _in_a_forward_hook(net: Any, mesh: DeviceMesh) -> None:
    net.register_forward_hook(lambda m, i, out: out * 2 if mesh.get_rank() == 5 else out)


def _in_an_autograd_function(net: Any, mesh: DeviceMesh) -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0] * 2 if dist.get_rank() == 5 else grads[0]

    forward = net.layers[0].forward
    net.layers[0].forward = lambda x: Doubled.apply(forward(x))


def _in_an_attribute(net: Any, mesh: DeviceMesh) -> None:
    net.place = copy.deepcopy({"rank": [dist.get_rank()]})
    forward = net.layers[0].forward
    net.layers[0].forward = lambda x: forward(x) * (2 if net.place["rank"][0] == 5 else 1)


@pytest.mark.parametrize(
    "planted", [_in_a_hook, _in_a_forward_hook, _in_an_autograd_function, _in_an_attribute]
)
def test_a_rank_read_by_code_that_torch_calls(planted: Any) -> None:
    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        planted(net, mesh)
        return averaged(lambda mesh: False)(net, mesh)  # type: ignore[no-any-return]

    captured, plan, told = both_ways(layers(1), parallel, {"dp": 8})
    assert ((5, 6),) in [found.box for found in told]
    assert prove_plan(plan, captured.program).proof.values.status == "refuted"


@pytest.mark.parametrize(
    "read",
    [
        lambda mesh: dist.get_process_group_ranks(mesh.get_group("tp"))[0] == 6,
        lambda mesh: dist.get_global_rank(mesh.get_group("tp"), 0) == 6,
        lambda mesh: mesh["tp"].get_rank() // 2 == 3,
        lambda mesh: mesh.get_coordinate()[0] == 3,
        lambda mesh: mesh.get_local_rank(0) == 3,
        lambda mesh: mesh.get_group("dp").rank() == 3,
    ],
)
def test_a_coordinate_that_groups_tell(read: Any) -> None:
    _, _, told = both_ways(layers(1), averaged(read), {"dp": 4, "tp": 2})
    assert ((3, 4), (0, 2)) in [found.box for found in told]


def test_whether_there_is_a_rank_tells_no_rank() -> None:
    _, _, told = both_ways(layers(1), averaged(lambda mesh: "RANK" not in os.environ), {"dp": 4})
    assert [found.reason for found in told] == ["no coordinate is read along dp"]


def test_nothing_read_is_said(traces: list[tuple[int, int]]) -> None:
    captured, plan, (found,) = both_ways(layers(1), averaged(lambda mesh: False), {"dp": 8})
    assert found.reason == "no coordinate is read along dp"
    assert len(traces) == 8 + 1
    assert prove_plan(plan, captured.program).proof.values.status == "proved"


def test_a_reason_names_the_line() -> None:
    _, _, told = both_ways(layers(1), averaged(_rank_compared), {"dp": 8})
    assert [found.box for found in told] == [((0, 5),), ((5, 6),), ((6, 8),)]
    assert all("test_classes.py:" in found.reason and "dp==5" in found.reason for found in told)


def test_the_environment_and_torch_are_as_before() -> None:
    before, code = dict(os.environ), dist.get_rank.__code__
    both_ways(layers(1), averaged(_rank_compared), {"dp": 4})
    assert dict(os.environ) == before and type(os.environ._data) is dict  # type: ignore[attr-defined]
    assert dist.get_rank.__code__ is code
    assert imported_long_ago is dist.get_rank


# --- parts that are no multiples ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 7, 8, 20])
def test_parts_of_several_sizes(size: int) -> None:
    """18 rows among so many: full parts, a rest, nothing."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        return ParallelStep(
            lambda x, y: net.layers[0](x).sum(), inputs=[DATA, None], outputs=[{"dp": Partial()}]
        )

    def model() -> Any:
        net = Layers()
        net.forward = lambda x, y: net.layers[0](x).sum()  # type: ignore[method-assign]
        return net, (torch.randn(18, DIM), torch.randn(1))

    both_ways(model, parallel, {"dp": size})


@pytest.mark.parametrize(
    "taken",
    [
        lambda x, rank, size: x[rank * 2 : rank * 2 + 2],
        lambda x, rank, size: x.chunk(size)[rank],
        lambda x, rank, size: x.narrow(0, 2 * rank, 2),
        lambda x, rank, size: x.view(size, 2, -1).select(0, rank),
        lambda x, rank, size: x.view(size, 2, -1)[size - 1 - rank],
        lambda x, rank, size: x.roll(rank, 0)[:2],
        lambda x, rank, size: x[(rank + 1) % size * 2 :][:2],
        lambda x, rank, size: x[rank // 2 * 2 :][:2],
        lambda x, rank, size: x[rank * rank % size :][:2],
        lambda x, rank, size: x.view(size, 2, -1)[rank - 1],
        lambda x, rank, size: x[:2] * rank,
        lambda x, rank, size: x[:2] * (rank / size),
        lambda x, rank, size: x[torch.arange(2 * rank, 2 * rank + 2)],
        lambda x, rank, size: x[min(rank, 3) :][:2] if rank < 5 else x[:2],
    ],
)
def test_coordinates_in_tensor_code(taken: Any) -> None:
    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        rank, size = mesh.get_local_rank("dp"), mesh.size()

        def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return net.layers[0](x).sum(), taken(x, rank, size).sum() * 1

        return ParallelStep(step, outputs=[{}, {"dp": Partial()}])

    def model() -> Any:
        net = Layers()
        net.forward = lambda x, y: (net.layers[0](x).sum(), x.sum())  # type: ignore[method-assign]
        return net, (torch.randn(16, DIM), torch.randn(1))

    both_ways(model, parallel, {"dp": 8})


def test_a_slice_by_coordinate_takes_three_traces(traces: list[tuple[int, int]]) -> None:
    case = RIGHT["sliced by hand"]
    captured = capture_model(case.model)
    capture_parallel(case.model, case.parallel, {"tp": 8}, captured, classes=True)
    assert traces == [(0, 0), (1, 0), (7, 0)]


# --- thousands of ranks -------------------------------------------------------------------------------

LARGE = {"dp": 1024, "tp": 8}


def large_model() -> Any:
    return Layers(1, 64), (torch.randn(4096, 64), torch.randn(4096, 64))


def test_eight_thousand_ranks_take_one_trace(traces: list[tuple[int, int]]) -> None:
    captured = capture_model(large_model)
    plan = capture_parallel(large_model, averaged(lambda mesh: False), LARGE, captured)
    assert traces == [(0, 0)] and plan.num_ranks() == 8192 and list(plan.tracks) == ["ranks"]
    assert prove_plan(plan, captured.program).proof.values.status == "proved"


def test_one_of_eight_thousand_ranks(traces: list[tuple[int, int]]) -> None:
    captured, told = capture_model(large_model), list[RankClass]()
    planted = averaged(lambda mesh: dist.get_rank() == 4097)
    plan = capture_parallel(large_model, planted, LARGE, captured, told=told.extend)
    assert traces == [(0, 0), (4097, 0)]
    assert plan.num_ranks() == 8192
    assert [found.box for found in told] == [
        ((0, 512), (0, 8)),
        ((512, 513), (0, 1)),
        ((512, 513), (1, 2)),
        ((512, 513), (2, 8)),
        ((513, 1024), (0, 8)),
    ]


def test_distributed_tensors_on_eight_thousand_ranks(traces: list[tuple[int, int]]) -> None:
    class Mlp(Layers):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.layers[1](torch.tanh(self.layers[0](x))), y)

    def model() -> Any:
        return Mlp(2, 64), (torch.randn(4096, 64), torch.randn(4096, 64))

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        plan = {"layers.0": ColwiseParallel(), "layers.1": RowwiseParallel()}
        parallelize_module(net, mesh["tp"], plan)  # type: ignore[arg-type]

        def step(x: Tensor, y: Tensor) -> Tensor:
            loss: Tensor = net(x, y)
            loss.backward()
            for weight in net.parameters():
                dist.all_reduce(weight.grad.to_local(), group=mesh.get_group("dp"))
                weight.grad /= 1024
            return loss

        return ParallelStep(step, inputs=[DATA, DATA], outputs=[MEAN])

    captured, told = capture_model(model), list[RankClass]()
    plan = capture_parallel(model, parallel, LARGE, captured, told=told.extend)
    assert traces == [(0, 0), (1, 0), (7, 0)] and plan.num_ranks() == 8192
    assert "taken to be regular along it; no coordinate is read along dp" in told[0].reason


def test_too_many_classes_name_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_classes, "MAX_TRACED", 16)

    def one_by_one(mesh: DeviceMesh) -> bool:
        return f"{dist.get_rank()}" == "no"

    captured = capture_model(large_model)
    with pytest.raises(LimitError, match="more than 16 traces") as caught:
        capture_parallel(large_model, averaged(one_by_one), LARGE, captured)
    line = one_by_one.__code__.co_firstlineno + 1
    assert str(caught.value.place) == f"test_classes.py:{line}"


def test_every_rank_by_itself_has_its_limit() -> None:
    captured = capture_model(large_model)
    with pytest.raises(LimitError, match="8192 ranks"):
        capture_parallel(large_model, averaged(lambda mesh: False), LARGE, captured, classes=False)
