"""Log-probabilities of a given sequence, the head applied to a few positions at a time."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemsmith.infer.generate import PREFILL_CHUNK
from gemsmith.infer.sample import logprobs_of
from gemsmith.model.cache import KVCache
from gemsmith.model.layout import Layout
from gemsmith.model.transformer import Transformer

_HEAD_NUMBERS = 1 << 24  # logits held at once: 64 MB in float32, whatever the vocabulary


@torch.inference_mode()
def sequence_logprobs(
    network: Transformer,
    token_ids: Sequence[int],
    places: Sequence[int],
    *,
    cache_dtype: torch.dtype | None = None,
) -> list[float]:
    """Return the natural-log probability of the tokens at `places`, each given all before it.

    The sequence runs through a cache in chunks, so memory grows with its length neither in the
    attention nor in the head.

    Args:
        places: Ascending indices into `token_ids`, each at least 1.
        cache_dtype: What keys and values are kept in, the network's dtype by default.
    """
    ids = torch.tensor(list(token_ids), device=network.device)
    is_scored = torch.zeros(len(ids), dtype=torch.bool, device=network.device)
    is_scored[list(places)] = True
    n_read = max(places, default=0)
    cache = KVCache(
        network.config,
        capacity=max(1, n_read),
        slack=PREFILL_CHUNK,
        dtype=cache_dtype or network.dtype,
        device=network.device,
    )
    logprobs = []
    for start in range(0, n_read, PREFILL_CHUNK):
        stop = min(n_read, start + PREFILL_CHUNK)
        layout = Layout.packed([stop - start], starts=[start], device=network.device)
        hidden = network.hidden(ids[start:stop], layout, cache=cache)
        wanted = is_scored[start + 1 : stop + 1]
        logprobs += head_logprobs(network, hidden[wanted], ids[start + 1 : stop + 1][wanted]).tolist()
    return logprobs


def head_logprobs(
    network: Transformer, hidden: Float[Tensor, "T D"], targets: Int[Tensor, " T"]
) -> Float[Tensor, " T"]:
    """Return the natural-log probability of each target, never holding [T V] logits."""
    n_rows = max(1, _HEAD_NUMBERS // network.config.vocab_size)
    pieces = [
        logprobs_of(network.logits(hidden[i : i + n_rows]), targets[i : i + n_rows])
        for i in range(0, len(targets), n_rows)
    ]
    return torch.cat(pieces) if pieces else torch.zeros(0, device=hidden.device)
