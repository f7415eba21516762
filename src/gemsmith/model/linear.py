"""A linear map: how its weight is stored, plus low-rank deltas chosen per row.

Dense storage is written here. Another storage (int8, int4, blocks of a GGUF file) is a subclass
with its own `product`; it takes the place of a dense one through Transformer.replace_linears, and
the deltas on top of it stay the same.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gemsmith.kernels.quantized_linear import Packed
from gemsmith.model import ops

Device = torch.device | str | None


class LowRank(nn.Module):
    """Adapters of one linear: row t gets lora_b[a] lora_a[a] x[t] * scale[a], where a = adapters[t].

    Source: LoRA, arXiv:2106.09685, section 4.1.
    """

    scale: Tensor

    def __init__(
        self,
        lora_a: Float[Tensor, "A rank d_in"],
        lora_b: Float[Tensor, "A d_out rank"],
        scale: Float[Tensor, " A"],
    ) -> None:
        super().__init__()
        self.lora_a, self.lora_b = nn.Parameter(lora_a), nn.Parameter(lora_b)
        self.register_buffer("scale", scale)

    def forward(self, x: Float[Tensor, "T d_in"], adapters: Int[Tensor, " T"] | None) -> Float[Tensor, "T d_out"]:
        """Return what the adapters add: number 0 for every row if `adapters` is None, nothing at -1."""
        if adapters is None:
            return ((x @ self.lora_a[0].T) @ self.lora_b[0].T) * self.scale[0]
        total = x.new_zeros(x.shape[0], self.lora_b.shape[1])
        for index in adapters.unique().tolist():
            if index >= 0:
                rows = (adapters == index).nonzero()[:, 0]
                delta = ((x[rows] @ self.lora_a[index].T) @ self.lora_b[index].T) * self.scale[index]
                total = total.index_add(0, rows, delta)
        return total


class Linear(nn.Module):
    """Map rows of d_in numbers to d_out: y = x @ weight.T, plus the delta of each row's adapter."""

    def __init__(self, d_in: int, d_out: int, *, dtype: torch.dtype | None = None, device: Device = None) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.delta: LowRank | None = None
        self.store(d_in, d_out, dtype=dtype, device=device)

    def store(self, d_in: int, d_out: int, *, dtype: torch.dtype | None = None, device: Device = None) -> None:
        """Create the weight; a quantised storage creates its own tensors instead."""
        self.weight = nn.Parameter(torch.empty(d_out, d_in, dtype=dtype, device=device))

    def product(self, x: Float[Tensor, "T d_in"]) -> Float[Tensor, "T d_out"]:
        """Return x @ weight.T in the dtype of x."""
        return ops.linear(x, self.weight)

    def stored(self) -> list[Tensor]:
        """Return the tensors the weight lies in."""
        return [self.weight.detach()]

    @property
    def packed(self) -> Packed | None:
        """The weight in few bits as kernels read it; None where it is stored otherwise."""
        return None

    def pack(self) -> bool:
        """Bring the weight into the form that is fastest to multiply; False where it is in it, as rows are."""
        return False

    def forward(
        self, x: Float[Tensor, "T d_in"], adapters: Int[Tensor, " T"] | None = None
    ) -> Float[Tensor, "T d_out"]:
        """Return the product and, where one is attached, the low-rank delta of each row."""
        y = self.product(x)
        return y if self.delta is None else y + self.delta(x, adapters)


def of_one_input(
    linears: Sequence[Linear], x: Float[Tensor, "T d_in"], adapters: Int[Tensor, " T"] | None = None
) -> list[Float[Tensor, "T _"]]:
    """Return linear(x) of each; matrices in few bits round x once for all of them."""
    packed = [_alone(linear) for linear in linears]
    known = [matrix for matrix in packed if matrix is not None]
    if len(known) == len(packed):
        return ops.quantized_linears(x, known)
    return [linear(x, adapters) for linear in linears]


def feed_forward(
    gate: Linear, up: Linear, down: Linear, x: Float[Tensor, "T d_in"], adapters: Int[Tensor, " T"] | None = None
) -> Float[Tensor, "T d_out"]:
    """Return down(gelu(gate(x)) * up(x))."""
    one, other, last = _alone(gate), _alone(up), _alone(down)
    if one is not None and other is not None and last is not None:
        return ops.quantized_feed_forward(x, one, other, last)
    return down(ops.gated_gelu(gate(x, adapters), up(x, adapters)), adapters)


def _alone(linear: Linear) -> Packed | None:
    """Return the packed matrix of a linear that is this and nothing else: no delta, and nobody looks at it."""
    is_watched = bool(linear._forward_hooks or linear._forward_pre_hooks)
    return None if linear.delta is not None or is_watched else linear.packed
