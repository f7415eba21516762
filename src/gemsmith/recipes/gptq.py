"""GPTQ: a matrix rounded column by column, the error of each made up for by the columns still to come.

Source: GPTQ, arXiv:2210.17323, algorithm 1. Columns go in falling order of their diagonal entry and
every group's grid is fixed beforehand ("act-order" with static groups, github.com/IST-DASLab/gptq), so
that the order leaves no trace in the file.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gemsmith.errors import DataError
from gemsmith.kernels.quantized import Quantized, Scheme, dequantize, middle, pack_nibbles, quantize

# Of the mean of the diagonal, added to it. Source: arXiv:2210.17323, section 3.3, step 3.
DAMPING = 0.01
_COLUMNS_AT_ONCE = 128
# How far a group's range is narrowed at most, in how many trials: clipping a few weights may serve the many.
_NARROWEST, _N_TRIALS = 0.6, 21


class Hessian:
    """The sum of x x^T over the inputs x a matrix has met: the curvature of its output's squared error."""

    def __init__(self, d_in: int) -> None:
        self.total = torch.zeros(d_in, d_in)
        self.n_tokens = 0

    def add(self, x: Float[Tensor, "T d_in"]) -> None:
        """Take in more inputs."""
        wide = x.float()
        self.total.addmm_(wide.T, wide)
        self.n_tokens += len(x)


def gptq(
    weight: Float[Tensor, "d_out d_in"], scheme: Scheme, hessian: Hessian, *, scale_dtype: torch.dtype = torch.bfloat16
) -> Quantized:
    """Return the matrix in few bits whose outputs, for the inputs met, are near those of `weight`.

    Raises:
        DataError: No finite inputs were met.
    """
    h = hessian.total.double()
    diagonal = h.diagonal().clone()
    if not bool(h.isfinite().all()) or float(diagonal.sum()) <= 0:
        raise DataError(
            f"calibration must meet finite inputs that are not all 0; got a sum of squares of {float(diagonal.sum())} "
            f"over {hessian.n_tokens} tokens. Is the model damaged?"
        )
    grid = fit_grid(weight, scheme, diagonal.float(), scale_dtype=scale_dtype)
    h.diagonal().add_(DAMPING * float(diagonal.mean()))
    order = diagonal.argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    n_in_group = weight.shape[1] // grid.scales.shape[1]
    values = _round_in_order(weight.float()[:, order], factor, grid, groups=order // n_in_group)
    back = torch.empty_like(values)
    back[:, order] = values
    stored = pack_nibbles(back.to(torch.uint8)) if scheme.bits == 4 else back.to(torch.int8)
    return Quantized(scheme, grid.shape, stored, grid.scales, grid.zeros)


def _round_in_order(
    weight: Float[Tensor, "d_out d_in"], factor: Float[Tensor, "d_in d_in"], grid: Quantized, *, groups: Tensor
) -> Float[Tensor, "d_out d_in"]:
    """Return the integer values; columns and their `groups` come in the order they are rounded in."""
    scales, lowest = grid.scales.float(), grid.scheme.lowest
    zeros = torch.full_like(scales, middle(grid.scheme)) if grid.zeros is None else grid.zeros.float()
    values = torch.empty_like(weight)
    left = weight.clone()
    for start in range(0, weight.shape[1], _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, weight.shape[1])
        errors = torch.empty(weight.shape[0], stop - start)
        for i in range(start, stop):
            step, zero = scales[:, groups[i]], zeros[:, groups[i]]
            values[:, i] = (left[:, i] / step + zero).round().clamp(lowest, lowest + 2**grid.scheme.bits - 1)
            error = (left[:, i] - (values[:, i] - zero) * step) / factor[i, i]
            left[:, i:stop] -= error[:, None] * factor[i, i:stop]
            errors[:, i - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return values


def fit_grid(
    weight: Float[Tensor, "d_out d_in"],
    scheme: Scheme,
    importance: Float[Tensor, " d_in"],
    *,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> Quantized:
    """Return the rounded matrix whose ranges, each narrowed as suits it, lose least.

    Args:
        importance: Of an error in each column.
    """
    d_out, d_in = weight.shape
    grouped = weight.float().view(d_out, scheme.n_groups(d_in), -1)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    best: Quantized | None = None
    least = torch.full(grouped.shape[:2], torch.inf)
    for share in torch.linspace(1.0, _NARROWEST, _N_TRIALS).tolist():
        q = quantize(grouped.clamp(low * share, high * share).view(d_out, d_in), scheme, scale_dtype=scale_dtype)
        error = ((dequantize(q) - weight.float()).square() * importance).view(grouped.shape).sum(-1)
        is_better = error < least
        least = torch.where(is_better, error, least)
        best = q if best is None else _merge(best, q, is_better)
    assert best is not None
    return best


def _merge(old: Quantized, new: Quantized, is_new: Tensor) -> Quantized:
    """Return the groups of `new` where it is better, of `old` elsewhere."""
    n_groups = is_new.shape[1]
    values = [q.values.view(len(is_new), n_groups, -1) for q in (old, new)]
    zeros = None
    if old.zeros is not None and new.zeros is not None:
        zeros = torch.where(is_new, new.zeros, old.zeros)
    return Quantized(
        old.scheme,
        old.shape,
        torch.where(is_new[..., None], values[1], values[0]).view(old.values.shape),
        torch.where(is_new, new.scales, old.scales),
        zeros,
    )
