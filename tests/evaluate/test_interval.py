"""Intervals by resampling against the normal law where it holds."""

import pytest
import torch

from gemsmith.evaluate import interval
from gemsmith.evaluate.interval import resampled


def test_interval_of_a_mean_is_two_standard_errors_wide() -> None:
    x = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 5.0
    table = torch.stack([torch.ones_like(x), x], dim=1)
    found = resampled(table, lambda sums: sums[..., 1] / sums[..., 0])
    error = float(x.std()) / 20
    assert found.value == pytest.approx(float(x.mean()))
    assert found.low == pytest.approx(float(x.mean()) - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(float(x.mean()) + 1.96 * error, abs=0.15 * error)
    assert found.n_units == 400
    assert not found.is_rough


def test_draws_by_parts_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.rand(30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def ratio(sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 1] / sums[..., 0]

    whole = resampled(table, ratio)
    sizes = []
    randint = torch.randint
    monkeypatch.setattr(interval, "_AT_ONCE", 700)
    monkeypatch.setattr(torch, "randint", lambda n, size, **given: sizes.append(size) or randint(n, size, **given))
    assert resampled(table, ratio) == whole
    assert set(sizes) == {(23, 30), (2000 % 23, 30)}


def test_few_rows_are_told() -> None:
    found = resampled(torch.ones(9, 2, dtype=torch.float64), lambda sums: sums[..., 0])
    assert found.n_units == 9
    assert found.is_rough
