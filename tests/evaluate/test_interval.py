"""Intervals by resampling against the normal law where it holds."""

import pytest
import torch

from gemsmith.evaluate.interval import resampled


def test_interval_of_a_mean_is_two_standard_errors_wide() -> None:
    x = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 5.0
    table = torch.stack([torch.ones_like(x), x], dim=1)
    found = resampled(table, lambda sums: sums[..., 1] / sums[..., 0])
    error = float(x.std()) / 20
    assert found.value == pytest.approx(float(x.mean()))
    assert found.low == pytest.approx(float(x.mean()) - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(float(x.mean()) + 1.96 * error, abs=0.15 * error)
