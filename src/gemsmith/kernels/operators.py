"""Kernels as operators of torch, which compile, recomputation and meta tensors see; their namespace is "gemsmith"."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("gemsmith", "FRAGMENT")


def define(schema: str, *, compute: Callable[..., Any], shape: Callable[..., Any]) -> Any:
    """Return the operator of a schema such as "f(Tensor x) -> Tensor".

    Args:
        compute: What it does on the CPU.
        shape: What it returns, as empty tensors, without looking at values.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, compute, "CPU")
    torch.library.register_fake(f"gemsmith::{name}", shape, lib=_LIBRARY)
    return getattr(torch.ops.gemsmith, name).default


def differentiate(operator: Any, *, keep: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Give an operator its gradient.

    Args:
        keep: Takes ctx, inputs, output, and saves in ctx what the gradient needs.
        backward: Takes ctx and the output's gradient, returns one gradient per input.
    """
    torch.library.register_autograd(operator, backward, setup_context=keep, lib=_LIBRARY)


def rows(x: Tensor) -> Tensor:
    """Return x such that its rows have no gaps, copied if need be."""
    return x if x.stride(-1) == 1 else x.contiguous()
