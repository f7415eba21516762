"""What training costs in arithmetic, and how fast this machine does it at best."""

import time
from dataclasses import dataclass

import torch

from gemsmith.config import LayerSpec, ModelConfig

_SECONDS = 0.3  # of measuring
_SIZES = (1024, 2048)


@dataclass(frozen=True)
class TokenCost:
    """Floating-point operations that one token of training needs, forward and backward.

    A product of matrices takes 2 per weight and token forward and twice as many backward. Lookups,
    norms, rotations and the softmax are left out; what is computed again to save memory does not count.

    Attributes:
        blocks: Products with the weights of blocks.
        attention: Scores and their weighted sums, over the keys a causal layer of a full row sees.
        head: Scores over the vocabulary.

    Source: the count of PaLM, arXiv:2204.02311, appendix B, with masked keys left out.
    """

    blocks: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.blocks + self.attention + self.head


def token_cost(config: ModelConfig, *, row: int) -> TokenCost:
    """Return what a token of rows of `row` tokens costs.

    Document borders inside a row hide more keys; they are not counted, as they vary with the data.
    """
    blocks = sum(6.0 * _n_matrix_params(layer, config.d_model) for layer in config.layers)
    attention = sum(12.0 * layer.n_heads * layer.head_dim * mean_keys(row, layer.window) for layer in config.layers)
    return TokenCost(blocks, attention, 6.0 * config.vocab_size * config.d_model)


def mean_keys(row: int, window: int | None) -> float:
    """Return how many keys a token of a causal row sees on average, itself included."""
    span = row if window is None else min(window, row)
    return (span * (span + 1) / 2 + (row - span) * span) / row


def measure_matrix_rate(dtype: torch.dtype) -> float:
    """Return the operations per second of this machine's matrix product, the best of a third of a second.

    The first, small product warms up; where it is slow already, no larger one is tried.
    """
    best = 0.0
    for size in _SIZES:
        left, right = torch.randn(2, size, size).to(dtype)
        torch.mm(left, right)
        end = time.perf_counter() + _SECONDS / len(_SIZES)
        while True:
            start = time.perf_counter()
            torch.mm(left, right)
            now = time.perf_counter()
            best = max(best, 2.0 * size**3 / (now - start))
            if now > end:
                break
        if now - start > _SECONDS / 10:
            break
    return best


def _n_matrix_params(layer: LayerSpec, d_model: int) -> int:
    n_kv = layer.n_kv_heads if layer.kv_source is None else 0
    return 2 * d_model * layer.head_dim * (layer.n_heads + n_kv) + 3 * d_model * layer.d_ff
