"""Products with weights and inputs as few bits hold them, whose gradients pass as if nothing were rounded.

With them a network learns to live with its rounding. What is computed forward is
`plain_quantized_linear` with rounded activations, in the dtype of the input; backward, both roundings
count as the identity.
Source: straight-through gradients, arXiv:1308.3432, section 4; both sides of a product rounded in
training, arXiv:1712.05877, section 3.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gemsmith.kernels.quantized import (
    SCALE_DTYPE,
    Scheme,
    dequantize_activations,
    quantize_activations,
    round_activations,
    rounded,
)


def linear(
    x: Float[Tensor, "*T d_in"], weight: Float[Tensor, "d_out d_in"], scheme: Scheme
) -> Float[Tensor, "*T d_out"]:
    """Return x, rounded to 8 bits, times the rounded weight, in the dtype of x.

    The weight's gradient comes in its own dtype. Inputs are kept in 8 bits for the backward pass, and the
    weight is rounded there once more, so that no second copy of the network lives through a step.
    """
    y: Tensor = _Linear.apply(x, weight, scheme)  # pyright: ignore[reportAssignmentType]
    return y


def round_weight(weight: Float[Tensor, "rows d_in"], scheme: Scheme) -> Float[Tensor, "rows d_in"]:
    """Return rows of a matrix as they will be stored, in float32; their gradient is that of the result."""
    found: Tensor = _RoundedWeight.apply(weight, scheme)  # pyright: ignore[reportAssignmentType]
    return found


def round_inputs(x: Float[Tensor, "*T d_in"]) -> Float[Tensor, "*T d_in"]:
    """Return x as products in few bits see it, in its dtype; its gradient is that of the result."""
    found: Tensor = _RoundedInputs.apply(x)  # pyright: ignore[reportAssignmentType]
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, scheme):
        values, scales = quantize_activations(x)
        ctx.save_for_backward(values, scales, weight)
        ctx.scheme, ctx.dtype = scheme, x.dtype
        return F.linear(_inputs(values, scales, x), _weight(weight, scheme, x.dtype))

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        values, scales, weight = ctx.saved_tensors
        grad_x = grad @ _weight(weight, ctx.scheme, grad.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            x = dequantize_activations(values, scales)[..., : weight.shape[1]].to(grad.dtype)
            grad_weight = (grad.flatten(0, -2).T @ x.flatten(0, -2)).to(weight.dtype)
        return grad_x, grad_weight, None


class _RoundedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, scheme):
        ctx.dtype = weight.dtype
        return _weight(weight, scheme, torch.float32)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.to(ctx.dtype), None


class _RoundedInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return round_activations(x).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad


def _weight(weight: Tensor, scheme: Scheme, dtype: torch.dtype) -> Tensor:
    return rounded(weight, scheme, scale_dtype=SCALE_DTYPE, dtype=dtype)


def _inputs(values: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    return dequantize_activations(values, scales)[..., : x.shape[-1]].to(x.dtype)
