"""The objective of pretraining: foretell the next token of packed rows."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gemsmith.config import ModelConfig
from gemsmith.data.mixture import Batch
from gemsmith.model.layout import Layout
from gemsmith.model.transformer import Transformer
from gemsmith.train.loop import LossFn
from gemsmith.train.loss import LossSpec, chunked_loss


def next_token_loss(
    config: ModelConfig, spec: LossSpec, *, dtype: torch.dtype = torch.float32, is_compiled: bool = False
) -> LossFn:
    """Return the function (weights, batch) -> summed loss of a network of this configuration.

    Args:
        dtype: What the arithmetic of the blocks runs in; weights stay float32 masters.
        is_compiled: Fuse with torch.compile; needs a C++ compiler, and a minute at the first call.
    """
    forward: Callable[..., Tensor] = partial(_hidden, _Rows(config), dtype=dtype)
    if is_compiled:
        forward = torch.compile(forward, dynamic=False)

    def summed_loss(weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return chunked_loss(
            forward(weights, batch.token_ids, batch.documents, batch.positions),
            weights["embed_tokens.weight"],
            batch.targets.flatten(),
            loss_mask=batch.loss_mask.flatten(),
            spec=spec,
            is_compiled=is_compiled,
        )

    return summed_loss


class _Rows(nn.Module):
    """The network's one forward pass, over the rows of a batch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.network = Transformer(config, device="meta")

    def forward(
        self, token_ids: Int[Tensor, "B T"], documents: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]
    ) -> Float[Tensor, "N D"]:
        return self.network.hidden(token_ids.flatten(), Layout.rows(documents, positions))


def _hidden(
    rows: _Rows, weights: Mapping[str, Tensor], *batch: Int[Tensor, "B T"], dtype: torch.dtype
) -> Float[Tensor, "N D"]:
    """Run the network with these masters, rounded where they are used."""
    rounded = {f"network.{name}": weight.to(dtype) for name, weight in weights.items()}
    return torch.func.functional_call(rows, rounded, batch)
