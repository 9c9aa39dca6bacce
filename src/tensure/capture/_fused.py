"""Optimizers whose step is one kernel for all parameters: what it computes, by calls that are traced again.

Counters were counted on before; numbers that scale gradients (`GradScaler`) are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from torch import Tensor, maximum

from tensure.errors import UnsupportedError

__all__ = ["FUSED"]

Tensors = Sequence[Tensor]


def _adam(is_decoupled: bool) -> Callable[..., None]:
    def run(
        parameters: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, maxima: Tensors,
        steps: Tensors, *, lr: Any, beta1: float, beta2: float, weight_decay: float, eps: float,
        amsgrad: bool, maximize: bool, grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
    ) -> None:  # fmt: skip
        _unscaled(grad_scale, found_inf)
        for at, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
            mean, square, step = exp_avgs[at], exp_avg_sqs[at], steps[at].double()
            grad = -grad if maximize else grad
            if weight_decay and is_decoupled:
                parameter.mul_(1 - lr * weight_decay)
            elif weight_decay:
                grad = grad + weight_decay * parameter
            mean.lerp_(grad, 1 - beta1)
            square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            if amsgrad:
                square = maxima[at].copy_(maximum(maxima[at], square))
            denom = square.sqrt() / (1 - beta2**step) ** 0.5 + eps
            parameter.add_(-(lr / (1 - beta1**step)) * (mean / denom))

    return run


def _sgd(
    parameters: Tensors, grads: Tensors, buffers: Tensors, *, weight_decay: float, momentum: float, lr: Any,
    dampening: float, nesterov: bool, maximize: bool, is_first_step: bool,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:  # fmt: skip
    _unscaled(grad_scale, found_inf)
    for at, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
        grad = -grad if maximize else grad
        grad = grad + weight_decay * parameter if weight_decay else grad
        if momentum:
            moved = buffers[at]
            if is_first_step:
                moved.copy_(grad)
            else:
                moved.mul_(momentum).add_(grad, alpha=1 - dampening)
            grad = grad + momentum * moved if nesterov else moved
        parameter.add_(grad, alpha=-lr)


def _unscaled(*given: Tensor | None) -> None:
    if any(item is not None for item in given):
        raise UnsupportedError("a fused optimizer with a gradient scale", wanted="gradients unscaled before")


FUSED: Final[dict[str, Callable[..., Any]]] = {
    "aten::_fused_adam_": _adam(is_decoupled=False),
    "aten::_fused_adamw_": _adam(is_decoupled=True),
    "aten::_fused_sgd_": _sgd,
}
"""By ATen's names."""
