"""AdamW in one pass over weight, moments and gradient: the fast equal of torch.optim.AdamW."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import increment_version

from gemsmith.kernels import native

# GS_SUM_BLOCK of csrc/kernels.h.
_BLOCK = 65536


def is_suitable(weight: Tensor, grad: Tensor) -> bool:
    """Tell whether the kernel updates this weight: float32 on the CPU, without gaps, gradient laid out alike."""
    return (
        native.serves(weight, grad)
        and weight.dtype == torch.float32
        and weight.shape == grad.shape
        and weight.is_contiguous()
        and grad.is_contiguous()
    )


class AdamW(torch.optim.AdamW):
    """Update as torch.optim.AdamW does; its state has the same names, so either continues from the other's."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, grad_scale: float = 1.0) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every weight that has a gradient; return the closure's loss, if one is given.

        Args:
            grad_scale: Factor of every gradient, as clipping finds it; the gradients themselves stay as they are.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plain: list[Tensor] = []
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if _is_plain(group) and is_suitable(weight, weight.grad):
                    _update(weight, weight.grad, self.state[weight], group=group, grad_scale=grad_scale)
                else:
                    plain.append(weight)
        self._step_plain(plain, grad_scale)
        return loss

    def _step_plain(self, weights: Iterable[Tensor], grad_scale: float) -> None:
        """Let torch update these; the others' gradients are hidden from it meanwhile."""
        chosen = {id(weight): weight for weight in weights}
        if not chosen:
            return
        gradients = [(w, w.grad) for group in self.param_groups for w in group["params"]]
        for weight, grad in gradients:
            weight.grad = grad * grad_scale if id(weight) in chosen and grad is not None else None
        try:
            super().step()
        finally:
            for weight, grad in gradients:
                weight.grad = grad


def squared_norm(tensors: Iterable[Tensor]) -> float:
    """Return the sum of squares over all tensors, in float64 and an order that no number of threads changes."""
    return math.fsum(_sum_of_squares(x) for x in tensors)


def _sum_of_squares(x: Float[Tensor, "*any"]) -> float:
    if not (native.serves(x) and x.is_contiguous()):
        return math.fsum(float(part.double().square().sum()) for part in x.flatten().split(64 * _BLOCK))
    parts = torch.empty(-(-x.numel() // _BLOCK), dtype=torch.float64)
    native.need().gs_sum_of_squares(x.data_ptr(), parts.data_ptr(), x.numel(), native.DTYPES[x.dtype])
    return math.fsum(parts.tolist())


def _is_plain(group: dict[str, Any]) -> bool:
    """Tell whether a group asks for nothing but AdamW itself."""
    return not (group["amsgrad"] or group["maximize"] or group["capturable"] or group["differentiable"])


def _update(weight: Tensor, grad: Tensor, state: dict[str, Any], *, group: dict[str, Any], grad_scale: float) -> None:
    if not state:
        state["step"] = torch.tensor(0.0)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
    state["step"] += 1
    step, rate = int(state["step"]), float(group["lr"])
    beta1, beta2 = group["betas"]
    native.need().gs_adamw(
        weight.data_ptr(), state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr(), grad.data_ptr(),
        weight.numel(), 1 - rate * group["weight_decay"], beta1, beta2, group["eps"],
        rate / (1 - beta1**step), math.sqrt(1 - beta2**step), grad_scale, native.DTYPES[grad.dtype],
    )  # fmt: skip
    increment_version(weight)  # as any change in place does, for whoever keeps what was computed with it
