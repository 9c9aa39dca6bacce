"""A made-up run of any length, shaped like a deep network: modules, residuals, one mask for all.

Its statistics are those of its values, so that a page of it holds nothing a real one would not.
"""

from __future__ import annotations

import numpy as np
import torch

from tensure.inspection import Looking, Made, Recorder, Recording, Trace, ValueStore

OPS = ("convolution", "native_batch_norm", "hardtanh", "convolution", "add", "permute", "softmax", "mul_")


def recording(num_steps: int, store: ValueStore | None = None, *, module: bool = True) -> Recording:
    """A run of `num_steps`; one in eight in place, one in eight a view, a NaN in step 11 of each 1,000."""
    rng = np.random.default_rng(0)
    recorder = Recorder(Trace("synthetic", "made up"), Looking(True, True), store=store, lend_weights=True)
    image = torch.from_numpy(rng.standard_normal((1, 16, 20, 20)).astype(np.float32))
    recorder.leaf("inputs", image, "input")
    recorder.leaf("mask", torch.ones(1, 1, 20, 20), "input")
    last, skip = "inputs", "inputs"
    # A ring of tensors: live memory stays that of a real run, and the making stays quick.
    held = [image.clone() for _ in range(6)]
    for step in range(num_steps):
        op = OPS[step % len(OPS)]
        block, stage = step // 8, step // 240
        tensor, in_place = held[step % 6], False
        if op == "permute":
            tensor = tensor.permute(0, 1, 3, 2)
        elif op == "mul_":
            in_place = True
            tensor.mul_(0.999)
        else:
            tensor = held[step % 6] = image * float(1 + step % 7) - float(step % 3)
        if step % 1000 == 11:
            tensor[0, 3, 4, 5] = float("nan")
        name = f"stage{stage}.block{block}.value_{step}" if module else f"value_{step}"
        reads = [last]
        if op in ("convolution", "native_batch_norm"):
            weight = f"{name}.weight"
            recorder.leaf(weight, image[:, :4, :3, :3].contiguous(), "weight")
            reads.append(weight)
        elif op == "add":
            reads.append(skip)
        elif op == "softmax":
            reads.append("mask")
        recorder.step(
            op,
            reads,
            [Made(name, tensor, in_place)],
            module=f"stage{stage}.block{block}.{('conv', 'norm', 'act')[step % 3]}" if module else "",
            source=f"model.py:{step % 400}",
            arguments=(("stride", (2, 2)), ("eps", 1e-5), ("approximate", None)),
            wrote=(last,) if in_place else (),
            seconds=1e-4 * (1 + step % 5),
        )
        skip = name if op == "mul_" else skip
        last = name
    recorder.trace.outputs = {"logits": last}
    return Recording(recorder.trace, store, program="0" * 64)
