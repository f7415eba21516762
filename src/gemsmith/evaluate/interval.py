"""How far a number of a sample may lie from that of the whole."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_N_RESAMPLES = 2000
_COVERED = 0.95
_AT_ONCE = 1 << 24  # rows drawn in one go
# Of fewer rows, draws are so alike that their quantiles cover far less than they should.
ENOUGH = 10


@dataclass(frozen=True)
class Interval:
    """A number with the range that covers it with 95%, by resampling.

    Attributes:
        n_units: Rows it was drawn from, such as texts; below ENOUGH the range is too narrow.
    """

    value: float
    low: float
    high: float
    n_units: int

    @property
    def is_rough(self) -> bool:
        """Whether there were too few rows to trust the range."""
        return self.n_units < ENOUGH

    def words(self, spec: str) -> str:
        """Return the range in words, its ends written by a format specification."""
        few = f", too narrow: from {self.n_units} parts of text only" if self.is_rough else ""
        return f"95%: {self.low:{spec}} to {self.high:{spec}}{few}"


def resampled(table: Float[Tensor, "n F"], of: Callable[[Tensor], Tensor]) -> Interval:
    """Return a number of the sums of a table's rows, and its quantiles over rows drawn again with replacement.

    Source: the percentile bootstrap, Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    generator = torch.Generator().manual_seed(0)
    n_rows, n_left, found = len(table), _N_RESAMPLES, []
    while n_left > 0:
        part = torch.randint(n_rows, (min(n_left, max(1, _AT_ONCE // n_rows)), n_rows), generator=generator)
        counts = torch.zeros(part.shape, dtype=torch.float64)
        counts.scatter_add_(1, part, torch.ones_like(counts))
        found.append(of(counts @ table))
        n_left -= len(part)
    tail = (1 - _COVERED) / 2
    low, high = torch.cat(found).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(float(of(table.sum(0))), low, high, n_rows)
