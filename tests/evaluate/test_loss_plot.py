"""The picture of a quantize report: what it says, and that it is one."""

from pathlib import Path

import pytest

from gemsmith.evaluate.divergence import Divergence, Interval
from gemsmith.evaluate.loss_plot import plot_losses
from gemsmith.recipes.quantize import TensorLoss

QUALITY = Divergence(3, 4000, (5.0, 5.1), Interval(0.02, 0.01, 0.03, 10), Interval(1e-3, 5e-4, 2e-3, 3), 0.98)


def losses(n: int) -> list[TensorLoss]:
    return [TensorLoss(f"layers.{i}.up", ("int4-g32", "int8")[i % 2], 100, 50 + i, 0.1) for i in range(n)]


@pytest.mark.parametrize(("n", "quality"), [(3, QUALITY), (60, None)])
def test_a_picture_comes_out(tmp_path: Path, n: int, quality: Divergence | None) -> None:
    pytest.importorskip("matplotlib")
    content = plot_losses(losses(n), quality, tmp_path / "deep/report.png", title="tiny").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert 5_000 < len(content) < 300_000


def test_quality_is_told_with_its_intervals() -> None:
    first, second, third = QUALITY.words()
    assert first == "perplexity: 5.0000 -> 5.1000, +2.000% (95%: +1.000% to +3.000%)"
    few = "too narrow: from 3 parts of text only"
    assert second == f"divergence: 1.000e-03 nats per token (95%: 5.000e-04 to 2.000e-03, {few})"
    assert third == "same most probable token: 98.00%, over 4,000 tokens of 3 texts"
