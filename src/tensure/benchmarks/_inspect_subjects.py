"""Three real models as eager torch code, to inspect and to plant faults in.

EfficientNet-Lite0 from its package with a softmax on top; SmolLM2-135M-Instruct in transformers, a prompt and
one more token over its cache; silero-vad
written out as a module, two windows over its state. Knows where their
packages keep them. Does not know what is looked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch

from tensure.api import KNOWN
from tensure.inspection import Trace

from ._inspect_faults import Subject
from ._records import AbsentError

__all__ = ["SUBJECTS"]

PROMPT: Final = (504, 2365, 282, 4649, 314, 7042, 28, 284)
"""Token ids; what they say does not matter."""


def efficientnet() -> Subject:
    """One image through EfficientNet-Lite0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from efficientnet_lite_pytorch import EfficientNet

    from tensure.program.from_checkpoint import convert_checkpoint

    stored = convert_checkpoint(KNOWN["efficientnet-lite0"].path())
    module = EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict({name: torch.from_numpy(item.decode().copy()) for name, item in stored.items()})
    module.eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 224, 224, generator=generator)

    def run() -> Any:
        with torch.no_grad():
            return torch.softmax(module(image), 1)

    return Subject("EfficientNet-Lite0", module, run)


def smollm2() -> Subject:
    """A prompt of eight tokens through SmolLM2-135M, then one more over the cache."""
    import transformers

    from tensure.program.from_gguf import read_gguf

    from ._engine_transformers import build_llama

    model = build_llama(read_gguf(str(KNOWN["smollm2-135m"].path())), torch.float32, attention="eager")
    ids = torch.tensor([PROMPT])

    def run() -> Any:
        with torch.no_grad():
            cache = transformers.DynamicCache(config=model.config)
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True).logits

    def stale(trace: Trace) -> Mapping[int, Callable[..., Any]]:
        """The joins that bring the cache up to date for the second call."""
        return {
            step.index: _repeat_last
            for step in trace.steps
            if step.op == "cat" and trace.tensors[step.outs[0]].shape[-2:-1] == (len(PROMPT) + 1,)
        }

    return Subject("SmolLM2-135M", model, run, stale)


class Silero(torch.nn.Module):
    """silero-vad at 16 kHz, written out: f32[1,512] and its state -> the probability of speech f32[1,1].

    Layers and names as in the package's safetensors file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = torch.nn.Conv1d(1, 258, 256, stride=128, bias=False)
        sizes = ((129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            torch.nn.Conv1d(inner, outer, 3, stride=stride, padding=1) for inner, outer, stride in sizes
        )
        self.lstm_cell = torch.nn.LSTMCell(128, 128)
        self.final_conv = torch.nn.Conv1d(128, 1, 1)

    def forward(
        self, window: torch.Tensor, context: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The probability, the context and the state for the next window."""
        x = torch.cat([context, window], 1)
        parts = self.stft_conv(torch.nn.functional.pad(x, (0, 64), mode="reflect").unsqueeze(1))
        y = torch.sqrt(parts[:, :129] ** 2 + parts[:, 129:] ** 2)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            y = torch.relu(layer(y))
        h, c = self.lstm_cell(y.squeeze(-1), (state[0], state[1]))
        z = torch.sigmoid(self.final_conv(torch.relu(h.unsqueeze(-1))))
        return z.squeeze(1), x[:, -64:], torch.stack([h, c])


def silero() -> Subject:
    """Two windows of 512 samples through silero-vad at 16 kHz."""
    from safetensors.torch import load_file

    module = Silero()
    module.load_state_dict(load_file(str(_silero_file("silero_vad_16k.safetensors"))))
    module.eval()
    generator = torch.Generator().manual_seed(0)
    windows = 0.1 * torch.randn(2, 1, 512, generator=generator)

    def run() -> Any:
        context, state = torch.zeros(1, 64), torch.zeros(2, 1, 128)
        found: list[torch.Tensor] = []
        with torch.no_grad():
            for window in windows:
                probability, context, state = module(window, context, state)
                found.append(probability)
        return found

    def stale(trace: Trace) -> Mapping[int, Callable[..., Any]]:
        """Where the second window reads the state that the first one left."""
        return {
            step.index: _as_at_the_start
            for step in trace.steps
            if step.op == "select" and step.reads[0].startswith("stack")
        }

    return Subject("silero-vad", module, run, stale)


SUBJECTS: Final[Mapping[str, Callable[[], Subject]]] = {
    "EfficientNet-Lite0": efficientnet,
    "SmolLM2-135M": smollm2,
    "silero-vad": silero,
}


def _repeat_last(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The cache with its last old row again where the new one belongs."""
    (old, new), *rest = args
    return func([old, old.narrow(-2, old.shape[-2] - 1, new.shape[-2])], *rest, **kwargs)


def _as_at_the_start(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return torch.zeros_like(func(*args, **kwargs))


def _silero_file(name: str) -> Path:
    spec = find_spec("silero_vad")
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        if (path := Path(folder) / "data" / name).is_file():
            return path
    raise AbsentError("silero-vad is not installed", next_step="pip install --no-deps silero-vad==6.2.3")
