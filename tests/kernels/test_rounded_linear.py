"""Linears of rounded activations with float32 masters."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gemsmith.kernels import rounded_linear
from gemsmith.model import ops


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 5, 24, generator=generator).bfloat16().requires_grad_()
    return x, torch.randn(16, 24, generator=generator).requires_grad_()


def gradients(y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, (x, weight), torch.ones_like(y))


def test_equals_a_linear_of_the_rounded_weight(pair: tuple[Tensor, Tensor]) -> None:
    x, weight = pair
    ours, plain = rounded_linear.linear(x, weight), torch.nn.functional.linear(x, weight.bfloat16())
    assert torch.equal(ours, plain)
    for mine, wanted in zip(gradients(ours, x, weight), gradients(plain, x, weight), strict=True):
        assert mine.dtype == wanted.dtype
        torch.testing.assert_close(mine, wanted, rtol=1e-2, atol=1e-2)


def test_gradient_of_the_master_is_float32(pair: tuple[Tensor, Tensor]) -> None:
    x, weight = pair
    grad_x, grad_weight = gradients(rounded_linear.linear(x, weight), x, weight)
    assert (grad_x.dtype, grad_weight.dtype) == (torch.bfloat16, torch.float32)


def test_no_rounded_copy_is_kept_for_the_backward_pass(pair: tuple[Tensor, Tensor]) -> None:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rounded_linear.linear(*pair)
    assert [t.data_ptr() for t in kept] == [t.data_ptr() for t in pair]


def test_ops_round_only_where_the_types_differ(pair: tuple[Tensor, Tensor]) -> None:
    x, weight = pair
    assert torch.equal(ops.linear(x, weight), rounded_linear.linear(x, weight))
    assert ops.linear(x.float(), weight).dtype == torch.float32
    assert torch.equal(ops.linear(x.float(), weight), x.float() @ weight.T)


def test_works_under_recomputation(pair: tuple[Tensor, Tensor]) -> None:
    x, weight = pair
    again = checkpoint(rounded_linear.linear, x, weight, use_reentrant=False)
    assert isinstance(again, Tensor)
    wanted = gradients(rounded_linear.linear(x, weight), x, weight)
    assert all(torch.equal(a, b) for a, b in zip(gradients(again, x, weight), wanted, strict=True))
