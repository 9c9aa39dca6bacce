"""`tensure prove --model --parallel --mesh` on a small training script: examples, exit codes, messages."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.golden import cnn_rows

from tensure.bundle import format_plan, parse_plan
from tensure.cli import main
from tensure.cli._prove import CHECK_EXAMPLES, PROVE_EXAMPLES
from tensure.program import digest, format_program, parse_program

TRAIN = '''
"""A training script with the functions that `tensure prove` is told of."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Shard, Partial
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tensure.capture import ParallelStep


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x, y):
        return (self.down(torch.relu(self.up(x))) - y).pow(2).mean()


def model():
    return Net(), (torch.randn(4, 4), torch.randn(4, 4))


def tiny():
    return Net(), (torch.randn(2, 4), torch.randn(2, 4))


def tensor_parallel(net, mesh):
    parallelize_module(net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)


def pipeline(net, mesh, microbatches=1):
    first = mesh.get_local_rank("pp") == 0

    def step(x, y):
        total = torch.zeros(())
        for xs, ys in zip(x.chunk(microbatches), y.chunk(microbatches)):
            if first:
                sent = torch.relu(net.up(xs))
                dist.send(sent.detach(), 1)
                grad = torch.empty_like(sent)
                dist.recv(grad, 1)
                sent.backward(grad)
            else:
                got = torch.empty(xs.shape[0], 8)
                dist.recv(got, 0)
                got.requires_grad_()
                loss = (net.down(got) - ys).pow(2).mean() / microbatches
                loss.backward()
                dist.send(got.grad, 0)
                total = total + loss.detach()
        dist.all_reduce(total)
        return total

    return step


def data_parallel(net, mesh):
    def step(x, y):
        loss = net(x, y)
        loss.backward()
        for name, weight in net.named_parameters():
            if name != "up.weight":  # the planted fault
                dist.all_reduce(weight.grad, dist.ReduceOp.AVG)
        return loss

    rows = {"dp": Shard(0)}
    return ParallelStep(step, inputs=[rows, rows], outputs=[{"dp": Partial("avg")}])


def random_step(net, mesh):
    return lambda x, y: net(x[torch.randperm(len(x))], y)


def raising(net, mesh):
    def step(x, y):
        return net(x[:, :3], y)
    return step


def raising_at_once(net, mesh):
    return {}["there"]


def raising_model():
    raise OSError("no such data")


def no_step(net, mesh):
    return 3


def formatting(net, mesh):
    def step(x, y):
        loss = net(x, y)
        loss.backward()
        print(f"{loss:.3f}")
        return loss
    return step


def as_numpy(net, mesh):
    return lambda x, y: net(x, y).detach().numpy()


def one_argument(net):
    pass


def three_arguments(net, mesh, extra):
    pass


def model_of(size):
    return model()


def step_of_none(net, mesh):
    return lambda: None


def placed_bare(net, mesh):
    return ParallelStep(lambda x, y: None, inputs=(Shard(0), Shard(0)))


def one_microbatch(net, mesh):
    return ParallelStep(lambda: None, microbatch=lambda x: None, microbatches=2)


def no_model():
    return 3


number = 3
'''


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The script, and the texts of other examples, in a folder of the test's own."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "dividing.py").write_text("x = 1 / 0\n")
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "net.program.txt").write_text(format_program(cnn_rows.program()))
    (tmp_path / "rows.plan.txt").write_text(format_plan(cnn_rows.plan()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for name in ("train", "broken"):
        sys.modules.pop(name, None)
    assert not dist.is_initialized()


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(shlex.split(line))
    found = capsys.readouterr()
    return code, found.out, found.err


STEP = "prove --model train:model"


@pytest.mark.parametrize("example", PROVE_EXAMPLES)
def test_examples_of_prove_run(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, example.removeprefix("tensure "))
    assert code in (0, 3), err
    assert out.startswith("values: ") and "storage: " in out and "refuted" not in out


def test_every_part_of_a_proof_is_told_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, f"{STEP} --parallel train:tensor_parallel --mesh tp=2")
    assert code == 0
    told = [line.rpartition(": ") for line in err.splitlines() if line.endswith(" s")]
    assert [what for what, _, _ in told] == ["tracing the model", "tracing ranks", "proving"]
    assert all(float(time.removesuffix(" s")) >= 0 for _, _, time in told)


def test_examples_of_check_run(capsys: pytest.CaptureFixture[str]) -> None:
    (written,) = [example for example in PROVE_EXAMPLES if "-o rows.certificate" in example]
    assert run(capsys, written.removeprefix("tensure "))[0] == 0
    for example in CHECK_EXAMPLES:
        code, out, err = run(capsys, example.removeprefix("tensure "))
        assert code == 0 and out.startswith("accepted"), err


def test_a_fault_is_refuted_with_rank_tensor_and_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, f"{STEP} --parallel train:data_parallel --mesh dp=2")
    assert code == 1
    assert out.startswith("values: refuted")
    assert "grad.up.weight is not " in out and "train.py:" in out
    code, out, _ = run(capsys, f"{STEP} --parallel train:data_parallel --mesh dp=2 --json")
    found = json.loads(out)["verdicts"]["values"]
    assert code == 1 and found["status"] == "refuted"
    example = found["counterexample"]
    assert example["local"] == "grad.up.weight" and example["confirmed"] and "ranks" in example["rank"]


def test_what_was_traced_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{STEP} --parallel train:pipeline --mesh pp=2 --microbatches 2 --keep proof"
    code, _, err = run(capsys, f"{line} --json")
    assert code in (0, 3), err
    program = parse_program((tmp_path / "proof/program.txt").read_text())
    plan = parse_plan((tmp_path / "proof/plan.txt").read_text())
    assert plan.program == digest(program) and dict(plan.mesh) == {"pp": 2}
    # and may be proved again, as any plan is
    again, out, err = run(capsys, "prove proof/plan.txt --program proof/program.txt")
    assert again == code, err
    assert "refuted" not in out
    code, _, err = run(capsys, line)
    assert code == 2 and "proof/program.txt" in err
    assert run(capsys, f"{line} --force")[0] in (0, 3)


def test_more_microbatches_are_another_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for count in (1, 2, 4):
        line = f"{STEP} --parallel train:pipeline --mesh pp=2 --microbatches {count} --keep proof{count}"
        assert run(capsys, line)[0] in (0, 3)
        texts.append((tmp_path / f"proof{count}/plan.txt").read_text())
    assert texts[0].count("send(") < texts[1].count("send(") < texts[2].count("send(")


BAD = [
    (f"{STEP} --parallel train:tensor_parallel --mesh tp=2 --optimizer train:model", "is given (parameters)"),
    ("prove rows.plan.txt --program net.program.txt --optimizer train:adamw", "options for a parallel step"),
    (f"{STEP} --parallel train:tensor_parallel --mesh tp", "such as dp=2,tp=4"),
    (f"{STEP} --parallel train:tensor_parallel --mesh tp=", "such as dp=2,tp=4"),
    (f"{STEP} --parallel train:tensor_parallel --mesh tp=two", "such as dp=2,tp=4"),
    (f"{STEP} --parallel train:tensor_parallel --mesh tp=-2", "such as dp=2,tp=4"),
    (f"{STEP} --parallel train:tensor_parallel --mesh tp=2,tp=2", "names tp twice"),
    (f"{STEP} --parallel train:pipeline --mesh pp=2 --accept-probable 2", "above 0 and below 1"),
    (f"{STEP} --parallel train:pipeline --mesh pp=2 --accept-probable 0", "above 0 and below 1"),
    (f"{STEP} --parallel train:pipeline --mesh pp=2 --accept-probable nan", "above 0 and below 1"),
    ("prove --script train.py", "--script without --nproc"),
    ("prove --nproc 2", "--nproc without --script"),
    ("prove --script train.py --nproc 2 --mesh tp=2", "--script with --mesh"),
    (f"{STEP} --parallel train:formatting --mesh tp=2", "the step reads a value (format)"),
    (f"{STEP} --parallel train:as_numpy --mesh tp=2", "the step reads a value (numpy)"),
    (f"{STEP} --parallel train:tensor_parallel --mesh 2=tp", "such as dp=2,tp=4"),
    (f"{STEP} --parallel train:tensor_parallel --mesh ''", "such as dp=2,tp=4"),
    (f"{STEP} --parallel train:tensor_parallel --mesh tp=1000000000", "such as dp=2,tp=4"),
    (f"{STEP} --parallel train:tensor_parallel --mesh tp=0", "tp"),
    (f"{STEP} --parallel train:tensor_parallel --mesh tp=100000", "65536"),
    (f"{STEP} --parallel train:tensor_parallel --mesh dp=2", "the parallel function raises KeyError"),
    (f"{STEP} --parallel train:raising --mesh tp=2", "the step of rank 0 raises RuntimeError"),
    (f"{STEP} --parallel train:raising_at_once --mesh tp=2", "KeyError: 'there'"),
    ("prove --model train:raising_model --parallel train:pipeline --mesh pp=2", "OSError: no such data"),
    (f"{STEP} --parallel train:tensor_parallel", "--mesh"),
    (f"{STEP} --mesh tp=2", "--parallel"),
    ("prove --parallel train:tensor_parallel --mesh tp=2", "--model"),
    ("prove", "PLAN"),
    ("prove rows.plan.txt", "--program"),
    ("prove rows.plan.txt --program net.program.txt --mesh tp=2", "PLAN --program"),
    (f"{STEP} --program net.program.txt --parallel train:pipeline --mesh pp=2", "PLAN --program"),
    (f"{STEP} --parallel train:gone --mesh tp=2", "train has no 'gone'"),
    (f"{STEP} --parallel gone:step --mesh tp=2", "cannot import gone"),
    (f"{STEP} --parallel broken:step --mesh tp=2", "a_package_that_is_not_there"),
    (f"{STEP} --parallel train --mesh tp=2", "package.module:name"),
    (f"{STEP} --parallel train:number --mesh tp=2", "a function"),
    ("prove --model train:number --parallel train:pipeline --mesh pp=2", "a function"),
    ("prove --model train:no_model --parallel train:pipeline --mesh pp=2", "example input"),
    (f"{STEP} --parallel train:no_step --mesh tp=2", "ParallelStep"),
    (
        f"{STEP} --parallel train:one_argument --mesh tp=2",
        "one_argument takes (net) and is given (module, mesh)",
    ),
    (f"{STEP} --parallel train:three_arguments --mesh tp=2", "takes (net, mesh, extra) and is given (module"),
    (f"{STEP} --parallel train:step_of_none --mesh tp=2", "takes () and is given (input_0, input_1)"),
    (f"{STEP} --parallel train:one_microbatch --mesh tp=2", "takes (x) and is given (input_0, input_1)"),
    (f"{STEP} --parallel train:placed_bare --mesh tp=2", "wanted {axis: placement}"),
    (
        "prove --model train:model_of --parallel train:pipeline --mesh pp=2",
        "model_of takes (size) and is given ()",
    ),
    (
        "prove --model dividing:x --parallel train:pipeline --mesh pp=2",
        "importing dividing raises ZeroDivisionError",
    ),
    (f"{STEP} --parallel train:random_step --mesh tp=2", "draws random numbers"),
    (f"{STEP} --parallel train:tensor_parallel --mesh tp=2 --microbatches 2", "takes `microbatches`"),
    (f"{STEP} --parallel train:pipeline --mesh pp=2 --microbatches 0", "microbatches"),
]


@pytest.mark.parametrize(("line", "says"), BAD)
def test_what_cannot_be_used_is_said_in_a_line(
    line: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, line)
    assert code == 2
    assert says in " ".join(err.split()), err
    assert "Traceback" not in err and out == ""


def test_the_line_of_what_has_no_rule_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, f"{STEP} --parallel train:random_step --mesh tp=2")
    line = 1 + TRAIN.splitlines().index("    return lambda x, y: net(x[torch.randperm(len(x))], y)")
    assert f"train.py:{line}" in err
