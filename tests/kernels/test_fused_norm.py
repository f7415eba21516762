import pytest
import torch
from torch import Tensor

from against_plain import DTYPES, ROWS, WIDTHS, assert_equals_plain, numbers
from gemsmith.kernels import fused_norm
from gemsmith.model import ops

EPS = 1e-6


def plain_sum(residual: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    return residual + ops.plain_rms_norm(y, weight, EPS)


def exact(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * (1 + weight)


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("n_rows", ROWS)
def test_norm_equals_the_plain_one(
    isa: str, n_rows: int, width: int, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    x, weight = numbers(n_rows, width, seed=1, dtype=dtype), numbers(width, seed=2, dtype=weight_dtype)
    assert fused_norm.is_suitable(x, weight)
    assert_equals_plain(
        lambda x, w: fused_norm.rms_norm(x, w, EPS), lambda x, w: ops.plain_rms_norm(x, w, EPS), exact, x, weight
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("n_rows", ROWS)
def test_norm_with_residual_equals_the_plain_sum(isa: str, n_rows: int, width: int, dtype: torch.dtype) -> None:
    residual, y = (numbers(n_rows, width, seed=seed, dtype=dtype) for seed in (3, 4))
    weight = numbers(width, seed=5)
    assert_equals_plain(
        lambda r, y, w: fused_norm.norm_add(r, y, w, EPS),
        plain_sum,
        lambda r, y, w: r + exact(y, w),
        residual,
        y,
        weight,
    )


def test_norm_is_rounded_before_the_sum(isa: str) -> None:
    """As the plain code does it, so that a model trained with one path runs on the other."""
    residual, y = (numbers(64, 96, seed=seed, dtype=torch.bfloat16) for seed in (6, 7))
    weight = numbers(96, seed=8)
    ours, plain = fused_norm.norm_add(residual, y, weight, EPS), plain_sum(residual, y, weight)
    assert (ours != plain).float().mean() < 0.001


def test_leading_axes_are_rows(isa: str) -> None:
    x, weight = numbers(2, 3, 5, 24, seed=9), numbers(24, seed=10)
    torch.testing.assert_close(fused_norm.rms_norm(x, weight, EPS), ops.plain_rms_norm(x, weight, EPS))
    turned = x.transpose(0, 2)
    torch.testing.assert_close(fused_norm.rms_norm(turned, weight, EPS), ops.plain_rms_norm(turned, weight, EPS))
    assert fused_norm.rms_norm(x[:0], weight, EPS).shape == (0, 3, 5, 24)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_stays_so(isa: str, dtype: torch.dtype, bad: float) -> None:
    x, weight = numbers(5, 33, seed=11, dtype=dtype), numbers(33, seed=12)
    x[2, 32] = bad
    out = fused_norm.rms_norm(x, weight, EPS)
    assert out[2, 32].isnan()
    assert out[[0, 1, 3, 4]].isfinite().all()
    dx, dweight = torch.ops.gemsmith.rms_norm_backward(torch.ones_like(x), x, weight, EPS)
    assert dx[2, 32].isnan()
    assert dweight[32].isnan()


def test_gradient_does_not_depend_on_the_number_of_threads(isa: str) -> None:
    x, grad, weight = numbers(300, 96, seed=13), numbers(300, 96, seed=14), numbers(96, seed=15)
    results = []
    before = torch.get_num_threads()
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        results.append(torch.ops.gemsmith.rms_norm_backward(grad, x, weight, EPS))
    torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_only_what_it_can_do_is_given_to_it() -> None:
    x, weight = numbers(3, 8, seed=16), numbers(8, seed=17)
    assert not fused_norm.is_suitable(x.double(), weight)
    assert not fused_norm.is_suitable(x, weight.half())
    assert not fused_norm.is_suitable(x.to("meta"), weight)
    assert not fused_norm.is_suitable(x, weight[:4])
