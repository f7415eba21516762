"""The loss over the vocabulary, computed in chunks so that [tokens x vocabulary] never exists."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LossSpec:
    """How scores become a loss.

    Attributes:
        softcap: Logits become cap * tanh(logits / cap) before the softmax; None leaves them alone.
        z_weight: Weight of the squared log normalizer, which keeps logits from drifting.
        chunk: Tokens whose scores exist at one time.
    """

    softcap: float | None = None
    z_weight: float = 0.0
    chunk: int = 512


def chunked_loss(
    hidden: Float[Tensor, "T D"],
    head: Float[Tensor, "V D"],
    targets: Int[Tensor, " T"],
    *,
    loss_mask: Bool[Tensor, " T"],
    spec: LossSpec,
    is_compiled: bool = False,
) -> Tensor:
    """Return the summed loss in nats of the tokens that count; unscored tokens cost nothing.

    Gradients of `hidden` and `head` are computed chunk by chunk along with the loss, so a chunk's
    scores are thrown away before the next one's are made. Sum, not mean: the caller divides by
    the count of the whole step, which makes accumulated batches equal to one big batch.
    """
    total: Tensor = _ChunkedLoss.apply(hidden, head, targets, loss_mask, spec, is_compiled)  # pyright: ignore[reportAssignmentType]
    return total


def plain_loss(
    hidden: Float[Tensor, "T D"],
    head: Float[Tensor, "V D"],
    targets: Int[Tensor, " T"],
    *,
    loss_mask: Bool[Tensor, " T"],
    spec: LossSpec,
) -> Tensor:
    """Return what `chunked_loss` returns, the obvious way; tests compare the two."""
    logits = (hidden @ head.to(hidden.dtype).T).float()
    if spec.softcap is not None:
        logits = spec.softcap * torch.tanh(logits / spec.softcap)
    normalizer = logits.logsumexp(-1)
    nll = normalizer - logits.gather(-1, targets[:, None])[:, 0]
    return ((nll + spec.z_weight * normalizer.square()) * loss_mask).sum()


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, targets, loss_mask, spec, is_compiled):
        of_chunk = _compiled_chunk() if is_compiled else _loss_and_gradient
        scored = loss_mask.nonzero()[:, 0]
        rounded = head.to(hidden.dtype)
        grad_hidden = torch.zeros_like(hidden)
        grad_head = torch.zeros_like(head)
        total = torch.zeros((), dtype=torch.float32)
        for rows in scored.split(spec.chunk):
            chunk = hidden[rows]
            loss, grad = of_chunk(chunk @ rounded.T, targets[rows], spec.softcap, spec.z_weight)
            total += loss
            grad_hidden[rows] = grad @ rounded
            grad_head += grad.T @ chunk
        ctx.save_for_backward(grad_hidden, grad_head)
        return total

    @staticmethod
    def backward(ctx, grad_total):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad_total, grad_head * grad_total, None, None, None, None


@cache
def _compiled_chunk() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_loss_and_gradient, dynamic=True)


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, softcap: float | None, z_weight: float
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of a chunk and its gradient with respect to the uncapped logits."""
    wide = logits.float()
    capped = wide if softcap is None else softcap * torch.tanh(wide / softcap)
    normalizer = capped.logsumexp(-1, keepdim=True)
    chosen = capped.gather(-1, targets[:, None])
    loss = (normalizer - chosen + z_weight * normalizer.square()).sum()
    is_target = torch.arange(wide.shape[-1])[None] == targets[:, None]
    grad = (capped - normalizer).exp() * (1.0 + 2.0 * z_weight * normalizer) - is_target.float()
    if softcap is not None:
        grad = grad * (1.0 - (capped / softcap).square())
    return loss, grad.to(logits.dtype)
