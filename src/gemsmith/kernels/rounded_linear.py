"""Linears of rounded activations with float32 masters: the training equal of torch's linear.

The weight is rounded where it is used, in the backward pass once more, so that no second copy of the
network lives through a step; rounding is cheap beside the product.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def linear(x: Float[Tensor, "*T d_in"], weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "*T d_out"]:
    """Return x @ weight.T in the dtype of x; the weight's gradient comes in the dtype of the weight."""
    y: Tensor = _RoundedLinear.apply(x, weight)  # pyright: ignore[reportAssignmentType]
    return y


class _RoundedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        grad_x = grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad.flatten(0, -2).T @ x.flatten(0, -2)).to(weight.dtype)
        return grad_x, grad_weight
