"""Weights to start from."""

import torch
from torch import Tensor

from gemsmith.config import ModelConfig
from gemsmith.model.transformer import Transformer


def initial_weights(config: ModelConfig, *, seed: int) -> dict[str, Tensor]:
    """Return float32 parameters by name, ready to be trained.

    Matrices are normal with variance 1 / their input width, so that a unit input gives a unit output;
    the embedding likewise, since it is the head too and its inputs are scaled by the root of the width;
    norms start at 0, which Gemma reads as a factor of 1.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in Transformer(config, device="meta").named_parameters():
        weight = torch.zeros(parameter.shape)
        if weight.ndim == 2:
            weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)
        weights[name] = weight.requires_grad_()
    return weights
