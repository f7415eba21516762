import pytest
import torch
from torch import Tensor

from against_plain import DTYPES, ROWS, WIDTHS, assert_equals_plain, numbers
from gemsmith.kernels import fused_geglu
from gemsmith.model import ops


def plain_joined(both: Tensor) -> Tensor:
    return ops.plain_gated_gelu(*both.chunk(2, dim=-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("n_rows", ROWS)
def test_gated_gelu_equals_the_plain_one(isa: str, n_rows: int, width: int, dtype: torch.dtype) -> None:
    gate, up = (numbers(n_rows, width, seed=seed, dtype=dtype, size=2.0) for seed in (1, 2))
    assert fused_geglu.is_suitable(gate, up)
    assert_equals_plain(fused_geglu.gated_gelu, ops.plain_gated_gelu, ops.plain_gated_gelu, gate, up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_joined_gated_gelu_equals_the_plain_one(isa: str, width: int, dtype: torch.dtype) -> None:
    both = numbers(17, 2 * width, seed=3, dtype=dtype, size=2.0)
    assert_equals_plain(fused_geglu.gated_gelu_joined, plain_joined, plain_joined, both)


def test_gelu_is_rounded_before_the_product(isa: str) -> None:
    """As the plain code does it, so that a model trained with one path runs on the other."""
    gate, up = (numbers(64, 96, seed=seed, dtype=torch.bfloat16, size=2.0) for seed in (7, 8))
    ours, plain = fused_geglu.gated_gelu(gate, up), ops.plain_gated_gelu(gate, up)
    assert (ours != plain)[gate > 0].float().mean() < 0.001  # far below 0 the plain share is 1 + tanh, which rounds


def test_far_ends_are_nothing_and_all(isa: str) -> None:
    gate = torch.tensor([[-1e30, -100.0, -20.0, 20.0, 100.0, 1e10]])
    out = fused_geglu.gated_gelu(gate, torch.ones(1, 6))
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0, 0.0, 20.0, 100.0, 1e10]]), rtol=1e-6, atol=1e-6)
    slope, _ = torch.ops.gemsmith.gated_gelu_backward(torch.ones(1, 4), gate[:, 1:5], torch.ones(1, 4))
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_stays_so(isa: str, dtype: torch.dtype) -> None:
    gate, up = (numbers(3, 33, seed=seed, dtype=dtype) for seed in (4, 5))
    gate[1, 32], up[2, 5] = float("nan"), float("nan")
    found = fused_geglu.gated_gelu(gate, up).isnan()
    assert found[1, 32]
    assert found[2, 5]
    assert found.sum() == 2
    dgate, dup = torch.ops.gemsmith.gated_gelu_backward(torch.ones_like(gate), gate, up)
    assert dgate[1, 32].isnan()
    assert dgate[2, 5].isnan()
    assert dup[1, 32].isnan()


def test_only_what_it_can_do_is_given_to_it() -> None:
    gate = numbers(3, 8, seed=6)
    assert not fused_geglu.is_suitable(gate, gate[:2])
    assert not fused_geglu.is_suitable(gate, gate.bfloat16())
    assert not fused_geglu.is_suitable(gate.T, gate.T)
