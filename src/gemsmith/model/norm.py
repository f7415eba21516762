"""RMSNorm as a module."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gemsmith.model import ops


class RMSNorm(nn.Module):
    """Scale rows to unit root mean square, then by 1 + weight."""

    def __init__(
        self, width: int, eps: float, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width, dtype=dtype, device=device))

    def forward(self, x: Float[Tensor, "*T D"]) -> Float[Tensor, "*T D"]:
        """Return the normalized rows in the dtype of x."""
        return ops.rms_norm(x, self.weight, self.eps)

    def added(self, residual: Float[Tensor, "*T D"], y: Float[Tensor, "*T D"]) -> Float[Tensor, "*T D"]:
        """Return the residual plus the normalized rows of y."""
        return ops.norm_add(residual, y, self.weight, self.eps)
