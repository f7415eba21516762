"""A model in full precision -> the same model in few bits, one layer in memory at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gemsmith.errors import DataError
from gemsmith.kernels.quantized import SCALE_DTYPE, Quantized, Scheme, dequantize, quantize
from gemsmith.model.attention import Pass
from gemsmith.model.layout import Layout
from gemsmith.model.linear import Linear
from gemsmith.model.transformer import Transformer
from gemsmith.recipes.balance import balance
from gemsmith.recipes.gptq import Hessian, gptq
from gemsmith.recipes.schemes import check_schemes, words_of
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.names import EMBEDDING_MODULE
from gemsmith.weights.quantized import put, store_module

# The linears of a block that read the same input, in the order of the data: those of a line are rounded
# together, and the next line sees what came of it. Other programs fuse them, so they share a scheme.
STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
CONTEXT = 512
_TOKENS_PER_PASS = 2048


@dataclass(frozen=True)
class TensorLoss:
    """What became of one tensor.

    Attributes:
        scheme: In words.
        n_bytes: In the file, scales and all.
        error: Norm of the difference, relative to the norm of the tensor, its channels evened out.
    """

    name: str
    scheme: str
    n_items: int
    n_bytes: int
    error: float

    @property
    def bits(self) -> float:
        """Bits per weight, scales and all."""
        return 8 * self.n_bytes / self.n_items


@dataclass(frozen=True)
class CalibrationPass:
    """Calibration tokens of one pass, and where they lie."""

    token_ids: Tensor
    layout: Layout


def calibration_windows(
    texts: Iterable[str], tokenizer: Tokenizer, *, n_tokens: int, least: int, context: int = CONTEXT
) -> list[CalibrationPass]:
    """Return the first `n_tokens` of some texts, each text cut to one context and read after BOS.

    Args:
        least: How many tokens there must be at least.

    Raises:
        DataError: There are fewer, or fewer were asked for.
    """
    if n_tokens < least:
        raise DataError(
            f"calibration tokens must be at least {least:,}, as many as the widest input has numbers; got {n_tokens:,}"
            ". Ask for more."
        )
    documents: list[list[int]] = []
    n_left = n_tokens
    for text in texts:
        if n_left <= 0:
            break
        # No piece of a vocabulary is longer than 32 characters on average, so the rest would be cut anyway.
        token_ids = [tokenizer.bos_id, *tokenizer.encode(text[: 32 * context])][:context]
        if len(token_ids) > 1:
            documents.append(token_ids[: max(2, n_left)])
            n_left -= len(documents[-1])
    found = n_tokens - n_left
    if found < least:
        raise DataError(
            f"calibration text must hold at least {least:,} tokens, as many as the widest input has "
            f"numbers; got {found:,}. Give more text."
        )
    return list(_passes(documents))


def _passes(documents: list[list[int]]) -> Iterator[CalibrationPass]:
    """Lay documents side by side, a few thousand tokens in each pass."""
    held: list[list[int]] = []
    for index, document in enumerate(documents):
        held.append(document)
        if sum(map(len, held)) >= _TOKENS_PER_PASS or index == len(documents) - 1:
            yield CalibrationPass(torch.tensor([i for d in held for i in d]), Layout.packed([len(d) for d in held]))
            held = []


@torch.no_grad()
def quantize_network(
    network: Transformer,
    schemes: Mapping[str, Scheme],
    *,
    windows: list[CalibrationPass] | None = None,
    release: Callable[[Tensor], None] = lambda _: None,
    tell: Callable[[TensorLoss], None] = lambda _: None,
) -> list[TensorLoss]:
    """Put matrices in few bits into the places of dense ones, first layer first, channels evened out.

    With calibration windows, a layer is rounded by GPTQ for the inputs that the layers before it, already
    in few bits, give it; the embedding, whose rows are looked up as they are, is rounded plainly.

    Args:
        schemes: Module name to scheme; others stay as they are.
        release: Called with each dense weight that is no longer needed.
        tell: Called with each tensor when it is done.

    Raises:
        ConfigError: A group does not divide the inputs of its tensor.
    """
    check_schemes(network, schemes)
    losses: list[TensorLoss] = []

    def replace(name: str, scheme: Scheme, hessian: Hessian | None = None) -> None:
        weight = network.get_parameter(f"{name}.weight").detach()
        q = rounded(weight, scheme) if hessian is None else gptq(weight, scheme, hessian, scale_dtype=SCALE_DTYPE)
        put(network, name, q)
        losses.append(loss_of(name, weight, q))
        release(weight)
        tell(losses[-1])

    if EMBEDDING_MODULE in schemes:
        replace(EMBEDDING_MODULE, schemes[EMBEDDING_MODULE])
    shares_values = any(spec.kv_source is not None for spec in network.config.layers)
    states = [network.embed_tokens(window.token_ids) for window in windows or ()]
    for index, layer in enumerate(network.layers):
        stored = [linear.weight.detach() for linear in layer.modules() if isinstance(linear, Linear)]
        chosen = [name.removeprefix(f"layers.{index}.") for name in schemes]
        balance(layer, chosen, shares_values=shares_values)
        for names in stages_of(layer, f"layers.{index}."):
            chosen = [name for name in names if name in schemes]
            hessian = _hessian(network, layer, chosen[0], states, windows) if windows and chosen else None
            for name in chosen:
                replace(name, schemes[name], hessian)
        for weight in stored:
            release(weight)
        for place, window in enumerate(windows or ()):
            states[place] = layer(states[place], Pass(window.layout, None))
    return losses


def rounded(weight: Tensor, scheme: Scheme) -> Quantized:
    """Return the plainly rounded matrix."""
    return quantize(weight, scheme, scale_dtype=SCALE_DTYPE)


def stages_of(layer: nn.Module, prefix: str) -> list[tuple[str, ...]]:
    """Return the names of a block's linears, those that read the same input together, in the order of the data."""
    names = [name for name, module in layer.named_modules() if isinstance(module, Linear)]
    known = [tuple(name for name in stage if name in names) for stage in STAGES]
    others = [(name,) for name in names if not any(name in stage for stage in STAGES)]
    return [tuple(prefix + name for name in stage) for stage in (*known, *others) if stage]


def loss_of(name: str, weight: Tensor, q: Quantized) -> TensorLoss:
    """Return what a tensor has lost."""
    wide = weight.float()
    n_bytes = sum(tensor.n_bytes for tensor in store_module(name, q).values())
    error = float((dequantize(q) - wide).norm() / wide.norm().clamp(min=1e-30))
    return TensorLoss(name, words_of(q.scheme), wide.numel(), n_bytes, error)


def _hessian(
    network: Transformer, layer: nn.Module, name: str, states: list[Tensor], windows: list[CalibrationPass]
) -> Hessian:
    """Return the curvature of a linear's output, over what reaches it now."""
    linear = network.get_submodule(name)
    hessian = Hessian(network.get_parameter(f"{name}.weight").shape[1])

    def take(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        hessian.add(inputs[0])
        raise _Taken

    handle = linear.register_forward_pre_hook(take)
    try:
        for state, window in zip(states, windows, strict=True):
            with suppress(_Taken):
                layer(state, Pass(window.layout, None))
    finally:
        handle.remove()
    return hessian


class _Taken(Exception):
    """Ends a pass whose rest nobody needs."""
