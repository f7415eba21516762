"""GPTQ: against the definition, better than rounding where inputs are alike, and refused without inputs."""

import pytest
import torch
from torch import Tensor

from gemsmith.errors import DataError
from gemsmith.kernels.quantized import Scheme, dequantize, quantize, unpack_nibbles
from gemsmith.recipes import gptq as module
from gemsmith.recipes.gptq import DAMPING, Hessian, fit_grid, gptq

SCHEMES = [Scheme(4, 8), Scheme(4, 16, is_symmetric=False), Scheme(8, None), Scheme(8, 8, is_symmetric=False)]


def inputs(n: int = 400, d: int = 48) -> Tensor:
    """Return inputs that are much alike, as those of a network are."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(n, 6, generator=generator) @ torch.randn(6, d, generator=generator)
    return mixed + 0.2 * torch.randn(n, d, generator=generator)


def weight(d_out: int = 20, d: int = 48) -> Tensor:
    return torch.randn(d_out, d, generator=torch.Generator().manual_seed(2))


def met(x: Tensor) -> Hessian:
    hessian = Hessian(x.shape[1])
    for part in x.split(150):
        hessian.add(part)
    return hessian


def test_hessian_is_the_sum_over_all_inputs() -> None:
    x = inputs()
    torch.testing.assert_close(met(x).total, x.T @ x, rtol=1e-4, atol=1e-2)
    assert met(x).n_tokens == 400


@pytest.mark.parametrize("scheme", SCHEMES)
def test_outputs_are_nearer_than_after_rounding(scheme: Scheme) -> None:
    w, x = weight(), inputs()
    found = gptq(w, scheme, met(x), scale_dtype=torch.float32)

    def lost(q: Tensor) -> float:
        return float((x @ (q - w).T).square().mean())

    assert lost(dequantize(found)) < 0.6 * lost(dequantize(quantize(w, scheme)))


def test_equals_one_column_at_a_time_in_the_obvious_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COLUMNS_AT_ONCE", 20)
    w, x, scheme = weight(), inputs(), Scheme(4, 8)
    found = gptq(w, scheme, met(x), scale_dtype=torch.float32)
    h = met(x).total.double()
    grid = fit_grid(w, scheme, h.diagonal().float(), scale_dtype=torch.float32)
    order = h.diagonal().argsort(descending=True).tolist()
    h += DAMPING * h.diagonal().mean() * torch.eye(48)
    left, values = w.double(), torch.empty(20, 48)
    for place, i in enumerate(order):
        rest = order[place:]
        # The best change of the columns left, given that column i is fixed: by the inverse of their Hessian.
        inverse = torch.linalg.inv(h[rest][:, rest])
        step = grid.scales[:, i // 8].double()
        values[:, i] = (left[:, i] / step + 8).round().clamp(0, 15)
        error = (left[:, i] - (values[:, i] - 8) * step) / inverse[0, 0]
        left[:, rest] -= error[:, None] * inverse[0]
    # A number halfway between two values may go either way.
    assert (unpack_nibbles(found.values) != values).float().mean() < 0.01


def test_uncorrelated_inputs_leave_plain_rounding_on_the_same_grid() -> None:
    w, scheme = weight(), Scheme(8, 8)
    hessian = Hessian(48)
    hessian.add(torch.eye(48))
    grid = fit_grid(w, scheme, torch.ones(48), scale_dtype=torch.float32)
    found = gptq(w, scheme, hessian, scale_dtype=torch.float32)
    assert (found.values != grid.values).float().mean() < 0.01


def test_narrowed_ranges_lose_no_more_than_full_ones() -> None:
    w = weight()
    w[:, 3] *= 4
    lost = []
    for scheme in SCHEMES:
        fitted = fit_grid(w, scheme, torch.ones(48), scale_dtype=torch.float32)
        lost.append([float((dequantize(q) - w).norm()) for q in (quantize(w, scheme), fitted)])
    assert all(fit <= full + 1e-6 for full, fit in lost)
    assert lost[0][1] < 0.99 * lost[0][0]


def test_a_channel_that_is_never_used_does_no_harm() -> None:
    x = inputs()
    x[:, 5] = 0.0
    assert dequantize(gptq(weight(), Scheme(4, 8), met(x))).isfinite().all()


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_inputs_that_say_nothing_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match=f"finite inputs that are not all 0; got a sum of squares of {bad} over 400"):
        gptq(weight(), Scheme(4, 8), met(torch.full((400, 48), bad)))
