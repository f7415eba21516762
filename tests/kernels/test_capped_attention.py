import pytest
import torch

from gemsmith.kernels import capped_attention
from gemsmith.model import ops

CAP = 5.0
SHAPES = [(1, 16, 16, 4, 2, 8), (2, 33, 70, 6, 2, 12), (1, 300, 300, 4, 4, 16), (1, 17, 129, 8, 1, 32)]
pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch without oneDNN")


def inputs(shape: tuple[int, ...], *, has_gaps: bool) -> tuple[torch.Tensor, ...]:
    b, t, s, n, k, h = shape
    generator = torch.Generator().manual_seed(sum(shape))
    q = torch.randn(b, t, n, h, generator=generator)
    q = (q * h**-0.5 / CAP).bfloat16()
    if has_gaps:  # as a pass without a cache lays them out
        keys, values = (torch.randn(b, s, k, h, generator=generator).bfloat16().transpose(1, 2) for _ in range(2))
    else:
        keys, values = (torch.randn(b, k, s, h, generator=generator).bfloat16() for _ in range(2))
    mask = torch.rand(b, t, s, generator=generator) < 0.5
    mask[:, :, s // 2 :] &= torch.rand(s - s // 2, generator=generator) < 0.7
    mask[0, 3] = False
    return q, keys, values, mask


@torch.inference_mode()
@pytest.mark.parametrize("has_gaps", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_capped_attention_is_as_exact_as_the_plain_one(shape: tuple[int, ...], has_gaps: bool) -> None:
    q, k, v, mask = inputs(shape, has_gaps=has_gaps)
    assert capped_attention.is_suitable(q, scale=CAP, cap=CAP)
    for seen in (mask, None):
        truth = ops.plain_attention(q.double(), k.double(), v.double(), seen, scale=CAP, cap=CAP)
        plain = ops.plain_attention(q, k, v, seen, scale=CAP, cap=CAP).double() - truth
        ours = capped_attention.attention(q, k, v, seen, cap=CAP).double() - truth
        # One rounding more than the plain one: the weighted sum, before it is divided.
        assert ours.square().mean().sqrt() <= 1.5 * plain.square().mean().sqrt()
    assert torch.equal(capped_attention.attention(q, k, v, mask, cap=CAP)[0, 3], torch.zeros_like(q[0, 3]))


def test_only_what_it_can_do_is_given_to_it() -> None:
    q = torch.zeros(1, 16, 2, 4, dtype=torch.bfloat16)
    assert capped_attention.is_suitable(q, scale=CAP, cap=CAP)
    assert not capped_attention.is_suitable(q.float(), scale=CAP, cap=CAP)
    assert not capped_attention.is_suitable(q[:, :8], scale=CAP, cap=CAP)
    assert not capped_attention.is_suitable(q, scale=0.5, cap=CAP)
    assert not capped_attention.is_suitable(q, scale=1.0, cap=None)
    assert not capped_attention.is_suitable(q, scale=100.0, cap=100.0)  # exp(100) sums beyond float32
    assert not capped_attention.is_suitable(q.clone().requires_grad_(), scale=CAP, cap=CAP)
