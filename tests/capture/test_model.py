"""The captured Program is the model: its numpy values are those of a real torch run, gradients included."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensure.capture import capture_model
from tensure.errors import InputError, TensureError, UnsupportedError
from tensure.program import Op, evaluate_program, format_program, parse_program

from .steps import Build, differences, model_differences, torch_results

F64 = torch.float64


class Loss(nn.Module):
    """A module whose result, weighed so that every element counts differently, is the loss."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        made = self.body(*inputs)
        weights = torch.arange(1, made.numel() + 1, dtype=made.dtype).view(made.shape) / made.numel()
        return (made * made * weights).mean(), made


def drawn(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=F64, requires_grad=grad)


def around(body: nn.Module, *inputs: Tensor) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Loss(body).to(F64), inputs


class Attention(nn.Module):
    """Causal attention with fewer key heads than query heads, and rotary positions from a buffer."""

    def __init__(self, dim: int = 8, heads: int = 4, groups: int = 2, length: int = 5) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, dim // heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * groups * self.size, bias=False)
        self.o = nn.Linear(dim, dim)
        angles = torch.outer(torch.arange(length), 0.5 ** torch.arange(self.size // 2))
        self.register_buffer("cos", angles.cos().repeat(1, 2))
        self.register_buffer("sin", angles.sin().repeat(1, 2))

    def turned(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * self.cos + torch.cat([-x[..., half:], x[..., :half]], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q = self.turned(self.q(x).view(batch, length, self.heads, self.size).transpose(1, 2))
        k, v = (
            part.view(batch, length, self.groups, self.size).transpose(1, 2)
            for part in self.kv(x).chunk(2, dim=-1)
        )
        k, v = (part.repeat_interleave(self.heads // self.groups, 1) for part in (self.turned(k), v))
        made = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(made.transpose(1, 2).reshape(batch, length, dim))


class Language(nn.Module):
    """Embedding, a layer, an output that may share its weight, and a loss that ignores some targets."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.head(F.gelu(self.mix(self.embed(tokens)), approximate="tanh"))
        return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=-100), scores


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        made = self.two(x + F.relu(self.one(x)))
        made += x
        return made


class InPlace(nn.Module):
    """Writes into parts of what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        made = torch.zeros(4, 4, dtype=x.dtype)
        made[:3] = x * self.w
        made[1:, 2].add_(self.w[0, 1])
        made.t()[0].mul_(2)
        made[3] = made[0] - made[2]
        return made.masked_fill(made > 2, 0.25).clamp_(-1.5, 1.5)


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.again = self.layer

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.sigmoid(self.layer(x)))


class Begun(nn.Module):
    """Parameters set in the usual ways, some by looking at the numbers drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4, dtype=F64) for _ in range(3))
        nn.init.trunc_normal_(self.a.weight, std=0.02)
        nn.init.trunc_normal_(self.b.weight, mean=1.0, std=2.0, a=1.5, b=1.7)
        nn.init.orthogonal_(self.c.weight)
        nn.init.xavier_uniform_(self.b.weight)
        nn.init.constant_(self.b.bias, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


class Several(nn.Module):
    """A loss and outputs of several dtypes, one of which is an input and one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, dtype=F64))
        self.unused = nn.Parameter(torch.randn(2, dtype=F64))
        self.register_buffer("scale", torch.tensor([0.5, 2.0, 3.0], dtype=F64))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        made = x @ self.w * self.scale
        return (made - y).pow(2).mean(), made, made.argmax(-1), x, made


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, stride=1)
        self.deep = nn.Conv2d(4, 4, 3, groups=4, bias=False)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = F.relu(self.conv(x))
        return self.out(self.deep(made).mean((2, 3)))


def tokens() -> tuple[Tensor, Tensor]:
    targets = torch.randint(0, 7, (2, 5))
    targets[0, 1] = targets[1, 4] = -100
    return torch.randint(0, 7, (2, 5)), targets


MODELS: dict[str, Build] = {
    "mlp gelu": lambda: around(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)), drawn(5, 4)),
    "mlp silu": lambda: around(nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 3)), drawn(5, 4)),
    "mlp relu": lambda: around(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), drawn(2, 5, 4)),
    "names that begin with a digit": lambda: (
        nn.Sequential(nn.Linear(4, 1), nn.Flatten(0), nn.Softplus(), nn.Linear(3, 1)).to(F64),
        (drawn(3, 4),),
    ),
    "layer norm": lambda: around(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), drawn(3, 5, 4)),
    "layer norm, no affine": lambda: around(
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm((5, 4), elementwise_affine=False)), drawn(3, 5, 4)
    ),
    "rms norm": lambda: around(nn.Sequential(nn.RMSNorm(4, eps=1e-5), nn.Linear(4, 4)), drawn(3, 5, 4)),
    "attention": lambda: around(Attention(), drawn(2, 5, 8)),
    "language": lambda: (Language(tied=False).to(F64), tokens()),
    "tied embedding": lambda: (Language(tied=True).to(F64), tokens()),
    "residual": lambda: around(Residual(), drawn(3, 4)),
    "in place": lambda: around(InPlace(), drawn(3, 4)),
    "parameters set by hand": lambda: around(Begun(), drawn(3, 4)),
    "a layer twice": lambda: around(Twice(), drawn(3, 4)),
    "several outputs": lambda: (Several(), (drawn(5, 4), drawn(5, 3))),
    "inputs with gradients": lambda: (Several(), (drawn(5, 4, grad=True), drawn(5, 3, grad=True))),
    "conv and mean": lambda: around(Image(), drawn(2, 2, 8, 8)),
    "dropout at rest": lambda: around(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval(), drawn(3, 4)),
    "transformer": lambda: around(
        nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, activation="gelu"),
        drawn(2, 3, 8),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_program_is_the_model(name: str) -> None:
    assert model_differences(MODELS[name]) == []


def test_a_changed_op_is_seen() -> None:
    """The comparison above has teeth."""
    build = MODELS["mlp gelu"]
    program = capture_model(build).program
    given, want = torch_results(build)
    assert differences(evaluate_program(program, given).outputs, want) == []
    entry = program.entries["step"]
    swap = {"gelu": "sigmoid", "gelu_backward": "silu_backward", "mm": None}
    seen = 0
    for at, step in enumerate(entry.body):
        assert isinstance(step, Op)
        if step.op == "gelu":
            changed = Op("sigmoid", step.args, step.outs, (), step.note)
        elif step.op == "gelu_backward":
            changed = Op("silu_backward", step.args, step.outs, (), step.note)
        elif step.op == "full":
            changed = Op(step.op, step.args, step.outs, _doubled(step), step.note)
        else:
            continue
        body = (*entry.body[:at], changed, *entry.body[at + 1 :])
        other = dataclasses.replace(program, entries={"step": dataclasses.replace(entry, body=body)})
        assert differences(evaluate_program(other, given).outputs, want) != [], step
        seen += 1
    assert seen >= 3, swap


def _doubled(step: Op) -> tuple[tuple[str, object], ...]:
    return tuple((key, 2.0 * value if key == "fill_value" else value) for key, value in step.attrs)  # type: ignore[operator]


def test_the_text_of_a_program_is_the_program() -> None:
    """What is written down and read again is the same, notes with lines and modules included."""
    for name in ("attention", "language", "in place"):
        program = capture_model(MODELS[name]).program
        assert parse_program(format_program(program)) == program


def test_ops_say_where_they_come_from() -> None:
    """Line and module, for the backward pass those of the forward op."""
    program = capture_model(MODELS["language"]).program
    (back,) = [
        step for step in program.entries["step"].body if isinstance(step, Op) and step.op == "gelu_backward"
    ]
    (ahead,) = [step for step in program.entries["step"].body if isinstance(step, Op) and step.op == "gelu"]
    assert dict(back.note) == dict(ahead.note)
    assert str(dict(back.note)["source"]).startswith("test_model.py:")
    products = [
        dict(step.note).get("module")
        for step in program.entries["step"].body
        if isinstance(step, Op) and step.op == "addmm"
    ]
    assert products == ["mix"]


def test_what_is_named() -> None:
    captured = capture_model(MODELS["inputs with gradients"])
    assert captured.inputs == ("input_0", "input_1")
    assert captured.outputs == ("loss", "out_1", "out_2", "out_3", "out_4")
    made = {str(name) for name in captured.program.entries["step"].outputs}
    assert made == {*captured.outputs, "grad.w", "grad.input_0", "grad.input_1"}
    assert "unused" not in captured.program.values, "a parameter that nothing depends on"
    assert captured.shapes["w"] == captured.shapes["grad.w"] == (4, 3) and captured.shapes["loss"] == ()
    assert captured.program.values["input_0"].dtype == "f64"


# --- what it says no to -----------------------------------------------------------------------------


class Refused(nn.Module):
    """A step that does one thing that has no rule."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))
        self.word = word

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.w
        match self.word:
            case "exponential":
                y = y + torch.empty_like(y).exponential_()
            case "permutation":
                y = y[torch.randperm(4)]
            case "item":
                y = y * y.sum().item()
            case "a branch":
                y = y if y.sum() > 0 else -y
            case "tolist":
                y = y * y[0].tolist()[0]
            case "a mask as index":
                y = y[y > 0]
            case "unique":
                y = y * torch.unique(y)
            case "eigenvalues":
                y = torch.linalg.eigvalsh(y).sum() + y
            case "complex":
                y = torch.fft.fft(y).real
        return y.sum()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("exponential", "exponential_ draws random numbers"),
        ("permutation", "randperm draws random numbers"),
        ("item", "reads a value"),
        ("a branch", "reads a value"),
        ("tolist", "reads a value"),
        ("a mask as index", "reads a value .*nonzero"),
        ("unique", "_unique2 has no rule"),
        ("eigenvalues", "linalg"),
        ("complex", "_fft_r2c has no rule"),
    ],
)
def test_what_has_no_rule_is_refused_by_line(word: str, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says) as caught:
        capture_model(lambda: (Refused(word), (torch.randn(4, 4),)))
    assert caught.value.place is not None and "test_model.py:" in caught.value.place
    assert caught.value.wanted


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_pooling_windows_in_training_are_refused_by_line(pool: nn.Module) -> None:
    """Their gradients have no listed op."""
    with pytest.raises(UnsupportedError, match=r"(max|avg)_pool2d") as caught:
        capture_model(lambda: around(nn.Sequential(nn.Conv2d(1, 1, 1), pool), drawn(1, 1, 4, 4)))
    assert "body" in str(caught.value.place)


@pytest.mark.parametrize(
    "given",
    [
        lambda: nn.Linear(2, 2),
        lambda: (nn.Linear(2, 2),),
        lambda: ("net", (torch.ones(2),)),
        lambda: (nn.Linear(2, 2), 3),
        lambda: (nn.Linear(2, 2), (1.0,)),
        lambda: (nn.Linear(2, 2), (torch.ones(1, 2),)),  # no scalar
        lambda: (Empty(), (torch.ones(1, 2),)),
        lambda: (Detached(), (torch.ones(1, 2),)),
        lambda: None,
    ],
)
def test_a_model_function_that_returns_something_else(given: Build) -> None:
    with pytest.raises(InputError):
        capture_model(given)


class Empty(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


def test_batch_statistics_are_refused() -> None:
    with pytest.raises(TensureError):
        capture_model(lambda: around(nn.BatchNorm1d(4), drawn(3, 4)))


def test_nothing_is_left_after_a_refusal() -> None:
    """The fixture of this folder looks for hooks and modes; a real module works as before."""
    with pytest.raises(UnsupportedError):
        capture_model(lambda: (Refused("item"), (torch.randn(4, 4),)))
    net = nn.Linear(2, 2).to(F64)
    assert type(net.weight) is nn.Parameter
    assert np.isfinite(net(drawn(1, 2)).sum().item())
