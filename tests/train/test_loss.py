"""The chunked loss equals the plain one, in value and gradient."""

import pytest
import torch

from gemsmith.train.loss import LossSpec, chunked_loss, plain_loss


def _case(softcap: float | None, chunk: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, LossSpec]:
    torch.manual_seed(3)
    tensors = [torch.randn(37, 16), torch.randn(50, 16) * 2]
    mask = torch.rand(37) < 0.7
    return tensors, torch.randint(0, 50, (37,)), mask, LossSpec(softcap, 1e-3, chunk)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("chunk", [1, 8, 100])
def test_equals_plain_loss_in_value_and_gradient(softcap: float | None, chunk: int) -> None:
    tensors, targets, mask, spec = _case(softcap, chunk)
    results = []
    for function in (chunked_loss, plain_loss):
        hidden, head = (t.clone().requires_grad_() for t in tensors)
        loss = function(hidden, head, targets, loss_mask=mask, spec=spec)
        (loss * 0.25).backward()
        results.append((loss, hidden.grad, head.grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_unscored_tokens_change_nothing() -> None:
    (hidden, head), targets, mask, spec = _case(5.0, 8)
    loss = chunked_loss(hidden, head, targets, loss_mask=mask, spec=spec)
    other = hidden + (~mask)[:, None].float()
    assert chunked_loss(other, head, targets, loss_mask=mask, spec=spec) == loss


def test_no_target_gives_no_loss() -> None:
    (hidden, head), targets, mask, spec = _case(None, 8)
    assert chunked_loss(hidden, head, targets, loss_mask=torch.zeros_like(mask), spec=spec) == 0


def test_softcap_bounds_the_loss() -> None:
    """Without the cap a wrong and certain guess costs 100 nats; with one of 5 at most 10 and the normalizer."""
    hidden, head = torch.tensor([[100.0]]), torch.tensor([[1.0], [0.0]])
    args = (hidden, head, torch.tensor([1]))
    mask = torch.tensor([True])
    assert chunked_loss(*args, loss_mask=mask, spec=LossSpec(None)) > 99
    assert chunked_loss(*args, loss_mask=mask, spec=LossSpec(5.0)) < 6
