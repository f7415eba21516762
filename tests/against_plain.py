"""Comparison of a faster function with the plain one: on values and gradients, beside the exact result."""

from collections.abc import Callable

import torch
from torch import Tensor

ROWS = (1, 17, 33)
WIDTHS = (1, 2, 15, 96, 257)
DTYPES = (torch.float32, torch.bfloat16)


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32, size: float = 1.0) -> Tensor:
    """Return normal numbers that are the same every time."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)


def value_and_gradients(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """Return the function's value and its gradient for each tensor, under an uneven weighting."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = function(*leaves)
    weighting = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, weighting)]


def assert_equals_plain(
    function: Callable[..., Tensor], plain: Callable[..., Tensor], exact: Callable[..., Tensor], *tensors: Tensor
) -> None:
    """Compare value and gradients with the plain function's; in bfloat16, ours may not be less exact.

    Args:
        exact: The plain function without roundings in between, called with float64.
    """
    ours, theirs = value_and_gradients(function, *tensors), value_and_gradients(plain, *tensors)
    truths = value_and_gradients(exact, *(x.double() for x in tensors))
    for mine, other, truth in zip(ours, theirs, truths, strict=True):
        assert mine.dtype == other.dtype
        if tensors[0].dtype == torch.float32:
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
        else:
            torch.testing.assert_close(mine, other, rtol=2e-2, atol=2e-2)
            assert error(mine, truth) <= 1.1 * error(other, truth) + 1e-3 * float(truth.square().mean().sqrt()) + 1e-6


def error(x: Tensor, truth: Tensor) -> float:
    return float((x.double() - truth).square().mean().sqrt())
