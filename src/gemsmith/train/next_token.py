"""The objective of pretraining: foretell the next token of packed rows."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gemsmith.config import ModelConfig
from gemsmith.data.mixture import Batch
from gemsmith.kernels.quantized import Scheme
from gemsmith.model.layout import Layout
from gemsmith.model.rounded import round_in_training
from gemsmith.model.transformer import Transformer
from gemsmith.train.loop import LossFn
from gemsmith.train.loss import LossSpec, chunked_loss


def next_token_loss(
    config: ModelConfig,
    spec: LossSpec,
    *,
    dtype: torch.dtype = torch.float32,
    is_compiled: bool = False,
    is_recomputed: bool = False,
    schemes: Mapping[str, Scheme] | None = None,
) -> LossFn:
    """Return the function (weights, batch) -> summed loss of a network of this configuration.

    Args:
        dtype: What the arithmetic of the blocks runs in; weights stay float32 masters.
        is_compiled: Fuse with torch.compile; needs a C++ compiler, and a minute at the first call.
        is_recomputed: Compute the blocks twice instead of keeping what their backward pass needs.
        schemes: Modules to round, with their inputs, where they are used: the network learns to live in few bits.
    """
    network = round_in_training(Transformer(config, device="meta"), schemes or {})
    network.is_recomputed = is_recomputed
    forward = partial(_hidden, network, dtype=dtype)
    hidden: Callable[..., Tensor] = torch.compile(forward, dynamic=False) if is_compiled else forward

    def summed_loss(weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        adopt(network, weights)
        states, head = network.embed_tokens.factors(hidden(batch.token_ids, batch.documents, batch.positions))
        return chunked_loss(
            states,
            head,
            batch.targets.flatten(),
            loss_mask=batch.loss_mask.flatten(),
            spec=spec,
            is_compiled=is_compiled,
        )

    return summed_loss


def adopt(network: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Make these tensors the parameters of a network, by name.

    They stay its parameters: blocks that are computed again in the backward pass read them there,
    which `torch.func.functional_call` would have put back by then.
    """
    for name, weight in weights.items():
        module, _, parameter = name.rpartition(".")
        network.get_submodule(module)._parameters[parameter] = cast(nn.Parameter, weight)


def _hidden(
    network: Transformer,
    token_ids: Int[Tensor, "B T"],
    documents: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    *,
    dtype: torch.dtype,
) -> Float[Tensor, "N D"]:
    """Run the network's one forward pass over the rows of a batch."""
    return network.hidden(token_ids.flatten(), Layout.rows(documents, positions), dtype=dtype)
