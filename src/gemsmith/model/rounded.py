"""Linears and the embedding of a network that is trained for few bits; their weights stay dense masters."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gemsmith.kernels import trained_rounding
from gemsmith.kernels.quantized import Scheme
from gemsmith.model.layers import Embedding
from gemsmith.model.linear import Device, Linear
from gemsmith.model.transformer import Transformer

_TABLE = "embed_tokens"


class RoundedLinear(Linear):
    """A linear whose product is that of its quantized self."""

    def __init__(
        self, d_in: int, d_out: int, scheme: Scheme, *, dtype: torch.dtype | None = None, device: Device = None
    ) -> None:
        super().__init__(d_in, d_out, dtype=dtype, device=device)
        self.scheme = scheme

    def product(self, x: Float[Tensor, "T d_in"]) -> Float[Tensor, "T d_out"]:
        """Return x, rounded to 8 bits, times the rounded weight; gradients pass as if neither were."""
        return trained_rounding.linear(x, self.weight, self.scheme)


class RoundedEmbedding(Embedding):
    """A table whose rows and scores are those of its quantized self."""

    def __init__(
        self, n_rows: int, width: int, scheme: Scheme, *, dtype: torch.dtype | None = None, device: Device = None
    ) -> None:
        super().__init__(n_rows, width, dtype=dtype, device=device)
        self.scheme = scheme

    def factors(self, hidden: Float[Tensor, "*T D"]) -> tuple[Float[Tensor, "*T D"], Float[Tensor, "V D"]]:
        """Return the rounded states and the rounded table."""
        return trained_rounding.round_inputs(hidden), trained_rounding.round_weight(self.weight, self.scheme)

    def scores(self, hidden: Float[Tensor, "*T D"]) -> Float[Tensor, "*T V"]:
        """Return hidden, rounded to 8 bits, times the rounded table."""
        return trained_rounding.linear(hidden, self.weight, self.scheme)

    def look_up(self, token_ids: Int[Tensor, " T"], dtype: torch.dtype | None) -> Float[Tensor, "T D"]:
        """Return rounded rows of the table, in the table's dtype by default."""
        rows = F.embedding(token_ids, self.weight)
        return trained_rounding.round_weight(rows, self.scheme).to(dtype or self.weight.dtype)


def round_in_training(network: Transformer, schemes: Mapping[str, Scheme]) -> Transformer:
    """Put modules that compute in few bits, over the same weights, in the places of dense ones; return the network.

    Args:
        schemes: Module name, "embed_tokens" for the embedding, to the scheme it is trained for.
    """

    def change(name: str, linear: Linear) -> nn.Module:
        if name not in schemes:
            return linear
        new = RoundedLinear(linear.d_in, linear.d_out, schemes[name], device="meta")
        new.weight, new.delta = linear.weight, linear.delta
        return new.train(linear.training)

    network.replace_linears(change)
    if _TABLE in schemes:
        table = network.embed_tokens
        n_rows, width = table.weight.shape
        new = RoundedEmbedding(n_rows, width, schemes[_TABLE], device="meta")
        new.weight = table.weight
        network.embed_tokens = new.train(table.training)
    return network
