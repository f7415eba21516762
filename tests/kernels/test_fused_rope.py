import pytest
import torch
from torch import Tensor

from against_plain import DTYPES, ROWS, assert_equals_plain, numbers
from gemsmith.kernels import fused_rope
from gemsmith.model import ops


def angles(n_tokens: int, head_dim: int) -> tuple[Tensor, Tensor]:
    return ops.rope_angles(torch.arange(n_tokens) * 7, head_dim=head_dim, theta=10_000.0, factor=1.0)


@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [2, 30, 34, 64, 96])
@pytest.mark.parametrize("n_tokens", ROWS)
def test_rotation_equals_the_plain_one(
    isa: str, n_tokens: int, head_dim: int, dtype: torch.dtype, factor: float
) -> None:
    x, turn = numbers(n_tokens, 3, head_dim, seed=1, dtype=dtype), angles(n_tokens, head_dim)
    cosine, sine = (part[:, None].double() * factor for part in turn)

    def exact(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)

    assert fused_rope.is_suitable(x)
    assert_equals_plain(
        lambda x: fused_rope.rotate(x, turn, factor=factor),
        lambda x: ops.plain_rotate(x, turn, factor=factor),
        exact,
        x,
    )


def test_tokens_and_heads_may_lie_apart(isa: str) -> None:
    """As they do in the product of one matrix for queries, keys and values."""
    joined = numbers(9, 7 * 12, seed=2).view(9, 7, 12)
    keys = joined[:, 2:6:2]
    assert fused_rope.is_suitable(keys)
    torch.testing.assert_close(fused_rope.rotate(keys, angles(9, 12)), ops.plain_rotate(keys, angles(9, 12)))


def test_turning_back_gives_the_same(isa: str) -> None:
    x = numbers(5, 2, 16, seed=3)
    there = torch.ops.gemsmith.rotate(x, *angles(5, 16), 1.0, 1.0)
    torch.testing.assert_close(torch.ops.gemsmith.rotate(there, *angles(5, 16), 1.0, -1.0), x)


def test_what_is_not_a_number_stays_so(isa: str) -> None:
    x = numbers(4, 2, 34, seed=4)
    x[2, 1, 16] = float("nan")
    found = fused_rope.rotate(x, angles(4, 34)).isnan()
    assert found[2, 1, [16, 33]].all()
    assert found.sum() == 2


def test_only_what_it_can_do_is_given_to_it() -> None:
    x = numbers(4, 2, 8, seed=5)
    assert not fused_rope.is_suitable(x.double())
    assert not fused_rope.is_suitable(x[..., :7])
    assert not fused_rope.is_suitable(x[..., ::2])
    assert not fused_rope.is_suitable(x[0])
