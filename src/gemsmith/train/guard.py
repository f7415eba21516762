"""When not to update: a loss or gradient that is not finite, or far from what the last steps showed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from gemsmith.data.mixture import Batch
from gemsmith.errors import TrainingError

HISTORY = 128  # steps whose loss and gradient norm are remembered
MAX_SKIPPED = 16  # steps left out one after the other, before a run is stopped
_ENOUGH = 64  # steps that must be remembered before any is left out
_SIGMAS = 6.0
_SMALLEST_SPREAD = 1e-3  # of the mean: below it a curve that has come to rest differs by rounding only
_MAX_NAMED = 4


def is_outlier(recent: Sequence[Sequence[float]], values: Sequence[float]) -> bool:
    """Tell whether a value lies more than six sigma above what it was in the steps before.

    Args:
        recent: The same values (loss, gradient norm) of earlier steps; too few of them judge nothing.
    """
    if len(recent) < _ENOUGH:
        return False
    return any(value > _limit(earlier) for earlier, value in zip(zip(*recent, strict=True), values, strict=True))


def _limit(earlier: Sequence[float]) -> float:
    mean = math.fsum(earlier) / len(earlier)
    sigma = math.sqrt(math.fsum((value - mean) ** 2 for value in earlier) / len(earlier))
    return mean + _SIGMAS * max(sigma, _SMALLEST_SPREAD * abs(mean))


def not_finite(
    weights: Mapping[str, Tensor],
    micro_batches: Sequence[Batch],
    loss_fn: Callable[[Mapping[str, Tensor], Batch], Tensor],
    *,
    step: int,
    found: tuple[float, float],
) -> TrainingError:
    """Return the error for a loss or gradient that is not finite; gradients are cleared.

    The first bad tensor is a weight if one is bad, for that spoils every gradient; else a gradient.
    Rows are run again one by one to find those that give a bad loss or gradient by themselves.
    """
    tensor = _first_bad(weights)
    _clear(weights)
    rows = [
        (number, row, part)
        for number, batch in enumerate(micro_batches)
        for row, part in enumerate(map(lambda r, b=batch: _row(b, r), range(batch.token_ids.shape[0])))
    ]
    bad = [place for place in rows if not _is_fine(weights, place[2], loss_fn)] or rows
    named = "; ".join(_name(*place) for place in bad[:_MAX_NAMED])
    more = f" and {len(bad) - _MAX_NAMED} more rows" if len(bad) > _MAX_NAMED else ""
    return TrainingError(
        f"loss and gradient must be finite; got {found[0]} and {found[1]} in step {step}, first in {tensor}, "
        f"with {named}{more}. Look at these documents; lower the rate, or resume from an earlier checkpoint."
    )


def _first_bad(weights: Mapping[str, Tensor]) -> str:
    """Name the first tensor with a value that is not finite, in the network's order."""
    for name, weight in weights.items():
        if not weight.detach().isfinite().all():
            return f"weight {name!r}"
    for name, weight in weights.items():
        if weight.grad is not None and not weight.grad.isfinite().all():
            return f"the gradient of {name!r}"
    return "the loss"


def _is_fine(
    weights: Mapping[str, Tensor], row: Batch, loss_fn: Callable[[Mapping[str, Tensor], Batch], Tensor]
) -> bool:
    if not row.loss_mask.any():
        return True
    with torch.enable_grad():
        loss = loss_fn(weights, row)
        loss.backward()
    is_fine = bool(loss.isfinite()) and _first_bad(weights) == "the loss"
    _clear(weights)
    return is_fine


def _row(batch: Batch, row: int) -> Batch:
    """Return one row of a batch as a batch of its own; what is not kept by rows stays behind."""
    parts = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        parts[field.name] = value[row : row + 1] if len(value) == batch.token_ids.shape[0] else value[:0]
    return Batch(**parts)


def _name(number: int, row: int, part: Batch) -> str:
    """Name a row by its place in the step, its source where the batch says so, and its documents."""
    scored = part.documents[part.loss_mask]
    documents = f"documents {int(scored.min())} to {int(scored.max())}" if scored.numel() else "no scored document"
    sources = ", ".join(map(str, getattr(part, "sources", ())))
    return f"row {row} of micro-batch {number} ({f'{sources}: ' if sources else ''}{documents})"


def _clear(weights: Mapping[str, Tensor]) -> None:
    for weight in weights.values():
        weight.grad = None
