"""Perplexity of a text, with the interval it lies in."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gemsmith.data.readers import SourceFile, read_texts, read_whole
from gemsmith.errors import DataError
from gemsmith.evaluate.bpb import token_nats, windows_of
from gemsmith.evaluate.interval import ENOUGH, Interval, resampled
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer

# Neighboring tokens are alike, so runs of them are drawn again rather than tokens.
BLOCK = 64


@dataclass(frozen=True)
class Perplexity:
    """How well a model foretells texts.

    Attributes:
        perplexity: Per token, exp of the mean nats; its interval is by resampling texts, or blocks of
            tokens where there are fewer than ten texts.
        context: Longest run of tokens seen at once.
        nll: Sum over all tokens, in nats.
    """

    perplexity: Interval
    context: int
    n_texts: int
    n_tokens: int
    n_bytes: int
    nll: float

    @property
    def bpb(self) -> float:
        """Bits needed per byte of text."""
        return self.nll / math.log(2) / self.n_bytes


@torch.no_grad()
def perplexity(
    network: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    context: int | None = None,
    cache_dtype: torch.dtype | None = None,
) -> Perplexity:
    """Score texts, each for itself after BOS, in windows that move by half a context.

    Every token is scored once, all but the first ones from at least half a context before them.

    Args:
        context: Tokens of a window; the model's own context by default.
        cache_dtype: Read keys and values from a cache of this dtype; from none by default.

    Raises:
        DataError: The texts are shorter than two blocks of tokens, or the context is not one the model has.
    """
    most = network.config.max_seq_len
    context = most if context is None else context
    if not 2 <= context <= most:
        raise DataError(f"context must be 2 to {most} tokens; got {context}. Leave it out to use the model's own.")
    n_texts = n_bytes = 0
    found: list[Float[Tensor, " T"]] = []  # of each text
    for text in texts:
        n_texts, n_bytes = n_texts + 1, n_bytes + len(text.encode())
        windows = windows_of([tokenizer.bos_id, *tokenizer.encode(text)], context)
        nats = [token_nats(network, [window], cache_dtype) for window in windows]
        found += [torch.cat(nats)] if nats else []
    n_tokens = sum(map(len, found))
    if n_tokens < 2 * BLOCK:
        raise DataError(
            f"text must be at least {2 * BLOCK} tokens for an interval; got {n_tokens} in {n_bytes} bytes. "
            "Give a longer one; eval bpb takes any."
        )
    units = found if len(found) >= ENOUGH else [block for nats in found for block in nats.split(BLOCK)]
    table = torch.tensor([[len(unit), float(unit.sum())] for unit in units], dtype=torch.float64)
    interval = resampled(table, lambda sums: (sums[..., 1] / sums[..., 0]).exp())
    return Perplexity(interval, context, n_texts, n_tokens, n_bytes, float(table[:, 1].sum()))


def file_perplexity(
    network: Transformer,
    tokenizer: Tokenizer,
    path: Path,
    *,
    field: str = "text",
    context: int | None = None,
    cache_dtype: torch.dtype | None = None,
) -> Perplexity:
    """Score a file: one field of each line of JSON lines (plain or packed), or the whole of any other as one text.

    Raises:
        DataError: The file cannot be read, is not UTF-8, or is too short.
    """
    texts = read_texts(path, field) if SourceFile(path, path.name).holds_lines else [read_whole(path)]
    return perplexity(network, tokenizer, texts, context=context, cache_dtype=cache_dtype)
