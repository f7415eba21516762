"""The objective of pretraining: foretell the next token of packed rows."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from gemsmith.config import ModelConfig
from gemsmith.data.mixture import Batch
from gemsmith.model.rows import hidden_rows
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
    forward: Callable[..., Tensor] = partial(hidden_rows, config=config, dtype=dtype)
    if is_compiled:
        forward = torch.compile(forward, dynamic=False)

    def summed_loss(weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        hidden = forward(weights, batch.token_ids, documents=batch.documents, positions=batch.positions)
        return chunked_loss(
            hidden.flatten(0, 1),
            weights["embed_tokens.weight"],
            batch.targets.flatten(),
            loss_mask=batch.loss_mask.flatten(),
            spec=spec,
            is_compiled=is_compiled,
        )

    return summed_loss
