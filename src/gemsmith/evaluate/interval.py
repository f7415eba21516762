"""How far a number of a sample may lie from that of the whole."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_N_RESAMPLES = 2000
_COVERED = 0.95


@dataclass(frozen=True)
class Interval:
    """A number with the range that covers it with 95%, by resampling."""

    value: float
    low: float
    high: float


def resampled(table: Float[Tensor, "n F"], of: Callable[[Tensor], Tensor]) -> Interval:
    """Return a number of the sums of a table's rows, and its quantiles over rows drawn again with replacement.

    Source: the percentile bootstrap, Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    draws = torch.randint(len(table), (_N_RESAMPLES, len(table)), generator=torch.Generator().manual_seed(0))
    found = []
    for part in draws.split(max(1, (1 << 24) // len(table))):
        counts = torch.zeros(len(part), len(table), dtype=torch.float64)
        counts.scatter_add_(1, part, torch.ones_like(part, dtype=torch.float64))
        found.append(of(counts @ table))
    tail = (1 - _COVERED) / 2
    low, high = torch.cat(found).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(float(of(table.sum(0))), low, high)
