import pytest
import torch

from gemsmith.kernels import blocked_attention
from gemsmith.model import ops


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    b, t, s, n, k, h = shape
    generator = torch.Generator().manual_seed(sum(shape))
    q, keys, values = (
        torch.randn(x, generator=generator).to(dtype).requires_grad_()
        for x in ((b, t, n, h), (b, k, s, h), (b, k, s, h))
    )
    mask = torch.rand(b, t, s, generator=generator) < 0.6
    mask[..., 0] = True
    return q, keys, values, mask


SHAPES = [(1, 1, 1, 1, 1, 2), (1, 7, 5, 6, 2, 10), (3, 1, 33, 4, 4, 16), (2, 65, 129, 8, 1, 6), (1, 31, 31, 3, 3, 34)]


@pytest.mark.parametrize("is_masked", [True, False])
@pytest.mark.parametrize("cap", [None, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_equal_plain_attention_on_value_and_gradient(
    shape: tuple[int, ...], cap: float | None, is_masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked_attention, "MAX_BLOCK_SCORES", 900)  # so that small tensors take several blocks
    *tensors, mask = inputs(shape)
    mask = mask if is_masked else None
    results = []
    for function in (blocked_attention.attention, ops.plain_attention):
        out = function(*tensors, mask, scale=0.7, cap=cap)
        weight = torch.linspace(-1, 1, out.numel()).view_as(out)
        results.append((out, *torch.autograd.grad((out * weight).sum(), tensors)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cap", [None, 4.0])
def test_bfloat16_blocks_are_as_exact_as_plain_ones(cap: float | None) -> None:
    q, k, v, mask = inputs((1, 50, 90, 8, 4, 32), torch.bfloat16)
    truth = ops.plain_attention(q.double(), k.double(), v.double(), mask, scale=0.2, cap=cap)
    ours = blocked_attention.attention(q, k, v, mask, scale=0.2, cap=cap)
    plain = ops.plain_attention(q, k, v, mask, scale=0.2, cap=cap)
    assert (ours.double() - truth).square().mean() <= 1.1 * (plain.double() - truth).square().mean()
