"""A budget of bytes -> which tensors get how many bits.

The measure of a scheme is the divergence of the model's next tokens, in nats per token of calibration
text, when that tensor alone (with those that read the same input) is rounded so. Greedily, the step that
adds the least divergence for each byte it saves is taken until the whole fits; divergences of several
tensors are taken to add up.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gemsmith.errors import ConfigError
from gemsmith.kernels.quantized import Scheme
from gemsmith.model.attention import Pass
from gemsmith.model.layout import Layout
from gemsmith.model.linear import Linear
from gemsmith.model.transformer import Transformer
from gemsmith.recipes.quantize import CalibrationPass, rounded, stages_of
from gemsmith.recipes.schemes import fits
from gemsmith.weights.names import EMBEDDING_MODULE
from gemsmith.weights.quantized import put, store_module

# A tensor's line in the header of its file, and the ones its scales need.
_HEADER_BYTES = 480
_SCORES = 1 << 27  # log-probabilities kept to compare with, half a gigabyte
_SCORES_AT_ONCE = 1 << 23  # compared at one time
_N_TOKENS = 4096  # more take longer than what they add
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
CANDIDATES = (Scheme(8, None), Scheme(4, 32), Scheme(4, 64), Scheme(4, 128))


@dataclass(frozen=True)
class Choice:
    """One way to store tensors that share a scheme: None leaves them dense."""

    scheme: Scheme | None
    n_bytes: int
    divergence: float


def parse_size(text: str) -> int:
    """Return the bytes a size such as "24MB" or "1.5GiB" means.

    Raises:
        ConfigError: It is none, or not above 0.
    """
    number = text.rstrip("BbGgIiKkMm")
    try:
        size = float(number) * _UNITS[text[len(number) :].strip().upper()]
    except (KeyError, ValueError):
        size = 0.0
    if not 1 <= size < 2**60:
        raise ConfigError(f"size must be a number of bytes above 0; got {text!r}. Write it as 24MB or 1.5GiB.")
    return int(size)


@torch.no_grad()
def spend(
    network: Transformer, size: int, windows: Sequence[CalibrationPass], *, candidates: Sequence[Scheme] = CANDIDATES
) -> dict[str, Scheme]:
    """Return schemes under which the tensors of a model take at most `size` bytes.

    Raises:
        ConfigError: It cannot be made so small; the smallest size is named.
    """
    choices = measure(network, windows, candidates=candidates)
    dense = {name for names in choices for name in names}
    fixed = sum(
        parameter.numel() * parameter.element_size() + _HEADER_BYTES
        for name, parameter in network.named_parameters()
        if name.removesuffix(".weight") not in dense
    )
    chosen = choose(choices, size - fixed)
    if chosen is None:
        smallest = fixed + sum(min(choice.n_bytes for choice in options) for options in choices.values())
        raise ConfigError(
            f"size must be at least {smallest:,} bytes for this model; got {size:,}. Choose a larger one, or a smaller "
            "model."
        )
    return {name: choice.scheme for names, choice in chosen.items() for name in names if choice.scheme is not None}


def choose(choices: Mapping[tuple[str, ...], Sequence[Choice]], size: int) -> dict[tuple[str, ...], Choice] | None:
    """Return one choice for each, of at most `size` bytes in all; None where even the smallest are too large."""
    taken = {names: max(options, key=lambda choice: choice.n_bytes) for names, options in choices.items()}
    while sum(choice.n_bytes for choice in taken.values()) > size:
        steps = [
            ((option.divergence - taken[names].divergence) / (taken[names].n_bytes - option.n_bytes), names, option)
            for names, options in choices.items()
            for option in options
            if option.n_bytes < taken[names].n_bytes
        ]
        if not steps:
            return None
        _, names, option = min(steps, key=lambda step: step[0])
        taken[names] = option
    return taken


@torch.no_grad()
def measure(
    network: Transformer, windows: Sequence[CalibrationPass], *, candidates: Sequence[Scheme]
) -> dict[tuple[str, ...], list[Choice]]:
    """Return every choice for every group of tensors, with what it costs and saves; the network stays as it was."""
    windows = _few(windows, min(_N_TOKENS, max(16, _SCORES // network.config.vocab_size)))
    inputs = [[network.embed_tokens(window.token_ids) for window in windows]]
    for layer in network.layers:
        inputs.append([layer(x, Pass(w.layout, None)) for x, w in zip(inputs[-1], windows, strict=True)])
    wanted = [list(_logprobs(network, x)) for x in inputs[-1]]
    groups = [(0, (EMBEDDING_MODULE,))]
    groups += [(i, names) for i, layer in enumerate(network.layers) for names in stages_of(layer, f"layers.{i}.")]
    found = {}
    for index, names in groups:
        olds = {name: network.get_submodule(name) for name in names}
        n_items = {name: network.get_parameter(f"{name}.weight") for name in names}
        options = [Choice(None, sum(w.nbytes + _HEADER_BYTES for w in n_items.values()), 0.0)]
        for scheme in _suitable(candidates, olds, names):
            n_bytes = sum(_replace(network, name, weight.detach(), scheme) for name, weight in n_items.items())
            start = inputs[index]
            if names == (EMBEDDING_MODULE,):
                start = [network.embed_tokens(window.token_ids) for window in windows]
            divergence = _divergence(network, start, index, windows=windows, wanted=wanted)
            options.append(Choice(scheme, n_bytes, divergence))
            for name, old in olds.items():
                parent, _, attribute = name.rpartition(".")
                setattr(network.get_submodule(parent), attribute, old)
        found[names] = options
    return found


def _suitable(candidates: Sequence[Scheme], modules: Mapping[str, nn.Module], names: Iterable[str]) -> list[Scheme]:
    # transformers reads an embedding in 8 bits alone.
    if EMBEDDING_MODULE in names:
        return [scheme for scheme in candidates if scheme.bits == 8]
    widths = [module.d_in for module in modules.values() if isinstance(module, Linear)]
    return [scheme for scheme in candidates if all(fits(scheme, width) for width in widths)]


def _replace(network: Transformer, name: str, weight: Tensor, scheme: Scheme) -> int:
    """Put a rounded matrix into its place; return its length in a file."""
    q = rounded(weight, scheme)
    put(network, name, q)
    return _HEADER_BYTES + sum(tensor.n_bytes for tensor in store_module(name, q).values())


def _divergence(
    network: Transformer,
    states: list[Tensor],
    index: int,
    *,
    windows: Sequence[CalibrationPass],
    wanted: list[list[Tensor]],
) -> float:
    """Return the mean divergence of the next tokens from the ones wanted, from block `index` on."""
    total = n_tokens = 0.0
    for x, window, target in zip(states, windows, wanted, strict=True):
        step = Pass(window.layout, None)
        for layer in list(network.layers)[index:]:
            x = layer(x, step)
        for part, got in zip(target, _logprobs(network, x), strict=True):
            total += float((part.exp() * (part - got)).sum())
        n_tokens += len(window.token_ids)
    return max(0.0, total / n_tokens)


def _logprobs(network: Transformer, x: Tensor) -> Iterator[Tensor]:
    """Yield the log-probabilities of some tokens at a time."""
    for part in network.norm(x).split(max(1, _SCORES_AT_ONCE // network.config.vocab_size)):
        yield network.logits(part).log_softmax(-1)


def _few(windows: Sequence[CalibrationPass], n_tokens: int) -> list[CalibrationPass]:
    """Return the first passes that hold `n_tokens` together, the last one cut."""
    kept = []
    for window in windows:
        if n_tokens <= 0:
            break
        kept.append(window if len(window.token_ids) <= n_tokens else _cut(window, n_tokens))
        n_tokens -= len(window.token_ids)
    return kept


def _cut(window: CalibrationPass, n_tokens: int) -> CalibrationPass:
    """Return the first tokens of a pass."""
    lengths, n_left = [], n_tokens
    for segment in window.layout.segments:
        lengths.append(min(segment.n_tokens, n_left))
        n_left -= lengths[-1]
        if n_left == 0:
            break
    return CalibrationPass(window.token_ids[:n_tokens], Layout.packed(lengths))
