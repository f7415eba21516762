"""The loss over the vocabulary, computed in chunks so that [tokens x vocabulary] never exists."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gemsmith.kernels import fused_loss

# Scores that exist at one time. Every chunk of tokens goes once over the whole gradient of the head, so
# larger chunks are faster; with the two below, 2,048 tokens x 256,000 pieces stay under 300 MB.
_SCORE_BYTES = 128 << 20
# Rows of the head that are rounded, and products added to its gradient, at one time.
_HEAD_BYTES = 16 << 20
# Tokens of a chunk are filled up to a multiple of it. How many count differs from step to step, and oneDNN
# keeps what it prepares for every new shape of a product: several megabytes a step, for the life of a run.
_STEP = 64
# Scores whose loss is worked out at one time, in float32 and with a few copies: what caches hold.
_PIECE = 1 << 20


@dataclass(frozen=True)
class LossSpec:
    """How scores become a loss.

    Attributes:
        softcap: Logits become cap * tanh(logits / cap) before the softmax; None leaves them alone.
        z_weight: Weight of the squared log normalizer, which keeps logits from drifting (PaLM,
            arXiv:2204.02311, section 5).
        chunk: Tokens whose scores exist at one time; None takes what the vocabulary leaves room for.
    """

    softcap: float | None = None
    z_weight: float = 0.0
    chunk: int | None = None

    def chunk_tokens(self, vocab_size: int, itemsize: int) -> int:
        """Return how many tokens have scores at one time, each of `itemsize` bytes."""
        return self.chunk or max(1, _SCORE_BYTES // (vocab_size * itemsize))


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

    Args:
        head: May be a float32 master beside rounded hidden states: it is then rounded a part at a
            time, and its gradient comes in float32.
    """
    if not (torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad)):
        scored = _Scored(targets, loss_mask, spec, is_compiled)
        return _loss_and_gradients(hidden, head, scored, wanted=(False, False))[0]
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


def scratch_bytes(n_tokens: int, vocab_size: int, *, width: int, dtype: torch.dtype) -> int:
    """Return what `chunked_loss` needs beside its inputs and their gradients, for a chunk of its own choice."""
    n_scores = min(n_tokens, LossSpec().chunk_tokens(vocab_size, dtype.itemsize)) * vocab_size
    of_head = min(_HEAD_BYTES, vocab_size * width * dtype.itemsize)
    return n_scores * dtype.itemsize + 2 * of_head + 6 * 4 * min(_PIECE, n_scores)


@dataclass(frozen=True)
class _Scored:
    """Which tokens are asked for what, and how."""

    targets: Tensor
    loss_mask: Tensor
    spec: LossSpec
    is_compiled: bool


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, targets, loss_mask, spec, is_compiled):
        scored = _Scored(targets, loss_mask, spec, is_compiled)
        total, *ctx.gradients = _loss_and_gradients(hidden, head, scored, wanted=ctx.needs_input_grad[:2])
        return total

    @staticmethod
    def backward(ctx, grad_total):  # pyright: ignore[reportIncompatibleMethodOverride]
        # Given away, not saved: so they are scaled, and added to, where they lie. A backward pass
        # through this loss again finds none.
        gradients, ctx.gradients = ctx.gradients, None
        if float(grad_total) != 1.0:
            gradients = [None if grad is None else grad.mul_(grad_total) for grad in gradients]
        return *gradients, None, None, None, None


def _loss_and_gradients(
    hidden: Tensor, head: Tensor, scored: _Scored, *, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the summed loss and the gradients of hidden and head that are wanted."""
    places = scored.loss_mask.nonzero()[:, 0]
    grad_hidden = torch.zeros_like(hidden) if wanted[0] else None
    grad_head = (torch.empty_like if len(places) else torch.zeros_like)(head) if wanted[1] else None
    total = hidden.new_zeros((), dtype=torch.float64)
    size = scored.spec.chunk_tokens(len(head), hidden.element_size())
    scores = hidden.new_empty(_filled(min(size, len(places)), size), len(head))
    for number, rows in enumerate(places.split(size) if len(places) else ()):
        n_rows, n_filled = len(rows), _filled(len(rows), size)
        chunk, logits = hidden[torch.cat((rows, rows[:1].expand(n_filled - n_rows)))], scores[:n_filled]
        for block, part in _blocks(head, hidden.dtype):
            torch.mm(chunk, part.T, out=logits[:, block])
        total += _turn_into_gradient(logits[:n_rows], scored.targets[rows], scored)
        logits[n_rows:] = 0.0
        if grad_hidden is not None:
            grad_hidden[rows] = _times_head(logits, head)[:n_rows].to(hidden.dtype)
        if grad_head is not None:
            _add_head_gradient(grad_head, logits, chunk, is_first=number == 0)
    return total.float(), grad_hidden, grad_head


def _filled(n_tokens: int, size: int) -> int:
    """Return how many tokens a chunk of at most `size` is filled up to."""
    return min(-(-n_tokens // _STEP) * _STEP, size)


def _blocks(head: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of the head in this dtype, a part at a time if they must be rounded."""
    if head.dtype == dtype:
        yield slice(0, len(head)), head
        return
    n_rows = max(1, _HEAD_BYTES // (head.shape[1] * dtype.itemsize))
    rounded = head.new_empty(min(n_rows, len(head)), head.shape[1], dtype=dtype)
    for start in range(0, len(head), n_rows):
        part = head[start : start + n_rows]
        yield slice(start, start + len(part)), rounded[: len(part)].copy_(part)


def _times_head(grad_logits: Tensor, head: Tensor) -> Tensor:
    """Return grad_logits @ head, summed over the parts of the head in float32."""
    total = head.new_zeros(len(grad_logits), head.shape[1], dtype=torch.float32)
    for block, part in _blocks(head, grad_logits.dtype):
        total += grad_logits[:, block] @ part
    return total


def _add_head_gradient(grad_head: Tensor, grad_logits: Tensor, chunk: Tensor, *, is_first: bool) -> None:
    """Add grad_logits.T @ chunk to the head's gradient, or put it there first.

    Sums of chunks are in the dtype of the head; a part at a time, so that a product in another one
    is added while caches hold it.
    """
    n_rows = max(1, _HEAD_BYTES // (chunk.shape[1] * chunk.element_size()))
    product = chunk.new_empty(min(n_rows, len(grad_head)), chunk.shape[1])
    for start in range(0, len(grad_head), n_rows):
        part = grad_head[start : start + n_rows]
        torch.mm(grad_logits[:, start : start + n_rows].T, chunk, out=product[: len(part)])
        (part.copy_ if is_first else part.add_)(product[: len(part)])


def _turn_into_gradient(logits: Tensor, targets: Tensor, scored: _Scored) -> Tensor:
    """Overwrite the logits of a chunk by the gradient of their loss, and return it, summed."""
    if fused_loss.is_suitable(logits):
        return fused_loss.loss_and_gradient(logits, targets, scored.spec.softcap, scored.spec.z_weight)[0]
    of_piece = _compiled_piece() if scored.is_compiled else _loss_and_gradient
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    n_rows = max(1, _PIECE // logits.shape[1])
    for piece, of_it in zip(logits.split(n_rows), targets.split(n_rows), strict=True):
        loss, grad = of_piece(piece, of_it, scored.spec.softcap, scored.spec.z_weight)
        piece.copy_(grad)
        total += loss
    return total


@cache
def _compiled_piece() -> Callable[..., tuple[Tensor, Tensor]]:
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
