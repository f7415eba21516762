"""Rounding in training: forward what few bits compute, backward as if nothing were rounded."""

import pytest
import torch
import torch.nn.functional as F

from against_plain import numbers
from gemsmith.errors import ConfigError
from gemsmith.kernels.quantized import (
    SCALE_DTYPE,
    Scheme,
    dequantize,
    plain_quantized_linear,
    quantize,
    round_activations,
    rounded,
)
from gemsmith.kernels.trained_rounding import linear, round_inputs, round_weight

SCHEMES = [Scheme(4, 32), Scheme(4, 32, False), Scheme(8, None), Scheme(8, 16, False), Scheme(4, None)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_rounded_is_what_is_stored(scheme: Scheme, scale_dtype: torch.dtype) -> None:
    weight = numbers(5, 96, seed=1)
    weight[2, :32] = 0.0
    stored = dequantize(quantize(weight, scheme, scale_dtype=scale_dtype), torch.bfloat16)
    assert torch.equal(rounded(weight, scheme, scale_dtype=scale_dtype, dtype=torch.bfloat16), stored)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_forward_is_that_of_the_quantized_matrix(scheme: Scheme) -> None:
    x, weight = numbers(7, 96, seed=2), numbers(5, 96, seed=3)
    stored = quantize(weight, scheme, scale_dtype=SCALE_DTYPE)
    wanted = plain_quantized_linear(x, stored, rounds_activations=True)
    assert torch.equal(linear(x, weight, scheme), wanted)
    near = linear(x.bfloat16(), weight, scheme)
    assert near.dtype == torch.bfloat16
    torch.testing.assert_close(near.float(), wanted, rtol=0.05, atol=0.2)


def test_gradients_are_those_of_the_rounded_factors() -> None:
    scheme = Scheme(4, 20)  # inputs that do not fill a group of 32
    x, weight = numbers(2, 3, 40, seed=4).requires_grad_(), numbers(5, 40, seed=5).requires_grad_()
    grad = numbers(2, 3, 5, seed=6)
    linear(x, weight, scheme).backward(grad)
    seen, stored = round_activations(x.detach()), rounded(weight, scheme, scale_dtype=SCALE_DTYPE)
    torch.testing.assert_close(x.grad, grad @ stored)
    torch.testing.assert_close(weight.grad, torch.einsum("abo,abi->oi", grad, seen))
    assert (seen - x).abs().max() > 1e-3
    assert (stored - weight).abs().max() > 1e-2


def test_gradients_of_masters_come_in_float32_from_bfloat16_inputs() -> None:
    x, weight = numbers(6, 32, seed=4).bfloat16().requires_grad_(), numbers(4, 32, seed=5).requires_grad_()
    linear(x, weight, Scheme(4, 32)).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert (x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)
    wanted = F.linear(torch.ones(4, 6), round_activations(x.detach()).T)
    torch.testing.assert_close(weight.grad, wanted, rtol=0.02, atol=0.02)


def test_rows_and_inputs_pass_gradients_through() -> None:
    weight, x = numbers(5, 64, seed=7).requires_grad_(), numbers(3, 64, seed=8).requires_grad_()
    rows, seen = round_weight(weight, Scheme(8, None)), round_inputs(x)
    assert torch.equal(rows, dequantize(quantize(weight, Scheme(8, None), scale_dtype=SCALE_DTYPE)))
    assert torch.equal(seen, round_activations(x))
    rows.backward(torch.full_like(rows, 2.0))
    seen.backward(torch.full_like(seen, 3.0))
    assert weight.grad is not None
    assert x.grad is not None
    assert torch.equal(weight.grad, torch.full((5, 64), 2.0))
    assert torch.equal(x.grad, torch.full((3, 64), 3.0))


def test_a_weight_that_is_not_finite_is_named() -> None:
    weight = numbers(2, 32, seed=1)
    weight[1, 3] = torch.inf
    with pytest.raises(ConfigError, match="weight must be finite; got inf"):
        linear(numbers(1, 32, seed=2), weight, Scheme(4, 32))
