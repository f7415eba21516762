"""Bits per byte: how well a model foretells texts, in a unit that no vocabulary changes."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gemsmith.data.readers import read_texts
from gemsmith.errors import DataError
from gemsmith.model.cache import KVCache
from gemsmith.model.layout import Layout
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer

_TOKENS_PER_PASS = 4096
_SCORES_AT_ONCE = 1 << 22  # logits in memory at one time


@dataclass(frozen=True)
class BitsPerByte:
    """The result over a set of texts; `nll` is the sum over all tokens, in nats."""

    n_documents: int
    n_bytes: int
    n_tokens: int
    nll: float

    @property
    def bpb(self) -> float:
        """Bits needed per byte of text."""
        return self.nll / math.log(2) / self.n_bytes


@dataclass(frozen=True)
class Window:
    """Ids seen in one go, of which the last `n_scored` are scored."""

    token_ids: list[int]
    n_scored: int


@torch.no_grad()
def bits_per_byte(
    network: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    max_seq_len: int | None = None,
    cache_dtype: torch.dtype | None = None,
) -> BitsPerByte:
    """Score texts, each for itself after BOS; the end of a text is not scored.

    A text longer than the context is read in windows that move by half a context, so every token but
    the first ones is foretold from at least half a context, and none is scored twice.

    Args:
        max_seq_len: Context to use; the network's own by default.
        cache_dtype: Read keys and values from a cache of this dtype; from none by default.

    Raises:
        DataError: There is not one byte to score, or the context is below 2 tokens.
    """
    context = network.config.max_seq_len if max_seq_len is None else max_seq_len
    if context < 2:
        raise DataError(f"max_seq_len must be at least 2; got {context}. Leave it out to use the model's own.")
    n_documents = n_bytes = n_tokens = 0
    windows: list[Window] = []
    nll = 0.0
    for text in texts:
        token_ids = tokenizer.encode(text)
        n_documents, n_bytes, n_tokens = n_documents + 1, n_bytes + len(text.encode()), n_tokens + len(token_ids)
        for window in windows_of([tokenizer.bos_id, *token_ids], context):
            if sum(len(w.token_ids) for w in windows) + len(window.token_ids) > max(_TOKENS_PER_PASS, context):
                nll += float(token_nats(network, windows, cache_dtype).sum())
                windows = []
            windows.append(window)
    if n_bytes == 0:
        raise DataError(f"texts must hold at least one byte; got none in {n_documents} texts. Check file and field.")
    return BitsPerByte(
        n_documents,
        n_bytes,
        n_tokens,
        nll + (float(token_nats(network, windows, cache_dtype).sum()) if windows else 0.0),
    )


def file_bits_per_byte(
    network: Transformer,
    tokenizer: Tokenizer,
    path: Path,
    *,
    field: str = "text",
    cache_dtype: torch.dtype | None = None,
) -> BitsPerByte:
    """Score one field of a JSON lines file (plain, .xz, .gz or .bz2), keys and values as in `bits_per_byte`.

    Raises:
        DataError: The file cannot be read, or holds nothing to score.
    """
    return bits_per_byte(network, tokenizer, read_texts(path, field), cache_dtype=cache_dtype)


def windows_of(token_ids: list[int], context: int) -> Iterator[Window]:
    """Cut ids, BOS first, into windows in which every id but BOS is scored once."""
    if len(token_ids) < 2:
        return
    stop = min(context, len(token_ids))
    yield Window(token_ids[:stop], stop - 1)
    while stop < len(token_ids):
        end = min(stop + context // 2, len(token_ids))
        yield Window(token_ids[max(0, end - context) : end], end - stop)
        stop = end


def cache_of(network: Transformer, lengths: list[int], dtype: torch.dtype | None) -> KVCache | None:
    """Return a cache of `dtype` for documents of these lengths, each read in one pass; None for no dtype."""
    if dtype is None:
        return None
    return KVCache(
        network.config,
        n_slots=len(lengths),
        capacity=max(lengths),
        slack=max(lengths),
        dtype=dtype,
        device=network.device,
    )


def token_nats(network: Transformer, windows: list[Window], cache_dtype: torch.dtype | None) -> Float[Tensor, " T"]:
    """Return the nats of the scored ids of some windows, run side by side, in float64."""
    device = network.device
    flat = torch.tensor([i for w in windows for i in w.token_ids], device=device)
    lengths = [len(w.token_ids) for w in windows]
    layout = Layout.packed(lengths, device=device)
    rows, start = [], 0
    for window in windows:
        start += len(window.token_ids)
        rows += range(start - window.n_scored - 1, start - 1)
    index = torch.tensor(rows, device=device)
    cache = cache_of(network, lengths, cache_dtype)
    hidden, targets = network.hidden(flat, layout, cache=cache)[index], flat[index + 1]
    chunk = max(1, _SCORES_AT_ONCE // network.config.vocab_size)
    nats = []
    for part, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        logprobs = network.logits(part).log_softmax(-1)
        nats.append(-logprobs.gather(-1, wanted[:, None])[:, 0].double().cpu())
    return torch.cat(nats)
