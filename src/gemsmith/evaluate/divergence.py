"""What a changed model loses: perplexity and divergence from the original, with intervals over documents."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gemsmith.data.readers import read_texts
from gemsmith.errors import ConfigError, DataError, TokenizerError
from gemsmith.evaluate.bpb import cache_of, windows_of
from gemsmith.evaluate.interval import ENOUGH, Interval, resampled
from gemsmith.model.layout import Layout
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer

_SCORES_AT_ONCE = 1 << 22  # logits in memory at one time, of each model


@dataclass(frozen=True)
class Divergence:
    """What a model loses against the one it was made from.

    Attributes:
        perplexity: Of the original, then of the changed model, per token.
        change: Of perplexity, relative: 0.01 is one percent worse.
        kl: Mean divergence of the changed next-token distribution from the original, in nats.
        same_choice: Share of tokens after which both find the same token most probable.
    """

    n_documents: int
    n_tokens: int
    perplexity: tuple[float, float]
    change: Interval
    kl: Interval
    same_choice: float

    def words(self) -> list[str]:
        """Return it in three lines."""
        (before, after), change, kl = self.perplexity, self.change, self.kl
        return [
            f"perplexity: {before:.4f} -> {after:.4f}, {change.value:+.3%} ({change.words('+.3%')})",
            f"divergence: {kl.value:.3e} nats per token ({kl.words('.3e')})",
            f"same most probable token: {self.same_choice:.2%}, over {self.n_tokens:,} tokens of "
            f"{self.n_documents:,} texts",
        ]


@dataclass(frozen=True)
class _Sums:
    """Over the scored tokens of one document."""

    n_tokens: int
    nll_a: float
    nll_b: float
    kl: float
    n_same: int


@torch.no_grad()
def divergence(
    original: Transformer,
    changed: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    n_tokens: int = 100_000,
    cache_dtype: torch.dtype | None = None,
) -> Divergence:
    """Run both models over texts, each for itself after BOS, and compare.

    Args:
        n_tokens: How many to score at most. No text gives more than a tenth of them, so that an interval
            rests on ten texts where there are so many.
        cache_dtype: The changed model reads keys and values from a cache of this dtype; from none by default.

    Raises:
        ConfigError: The models have vocabularies of different sizes.
        DataError: There are fewer than two documents with anything to score, so there is no interval.
    """
    _check_sizes(original, changed)
    context = min(original.config.max_seq_len, changed.config.max_seq_len)
    documents: list[_Sums] = []
    n_left, most = n_tokens, max(1, n_tokens // ENOUGH)
    for text in texts:
        if n_left <= 0:
            break
        token_ids = tokenizer.encode(text)[: min(most, n_left)]
        sums = [
            _score((original, changed), window.token_ids, n_scored=window.n_scored, cache_dtype=cache_dtype)
            for window in windows_of([tokenizer.bos_id, *token_ids], context)
        ]
        if sums:
            documents.append(_Sums(*(sum(getattr(s, f) for s in sums) for f in _Sums.__dataclass_fields__)))
            n_left -= len(token_ids)
    _check_count(len(documents))
    return _summary(documents)


def file_divergence(
    original: Transformer,
    changed: Transformer,
    tokenizer: Tokenizer,
    path: Path,
    *,
    field: str = "text",
    n_tokens: int,
    cache_dtype: torch.dtype | None = None,
) -> Divergence:
    """Compare two models on one field of a JSON lines file (plain, .xz, .gz or .bz2), as `divergence` does.

    Raises:
        DataError: The file cannot be read, or holds too little.
    """
    return divergence(original, changed, tokenizer, read_texts(path, field), n_tokens=n_tokens, cache_dtype=cache_dtype)


def check_file(path: Path, field: str) -> None:
    """Refuse a file that `file_divergence` would find too little in; only its beginning is read.

    Raises:
        DataError: The file cannot be read, or holds too little.
    """
    _check_count(len(list(islice(filter(None, read_texts(path, field)), 2))))


def _check_count(n_texts: int) -> None:
    if n_texts < 2:
        raise DataError(f"texts must be at least 2 with something to score; got {n_texts}. Check file and field.")


def check_same_vocabulary(original: Tokenizer, changed: Tokenizer) -> None:
    """Refuse models whose pieces differ: the probabilities of their ids could not be compared.

    Raises:
        TokenizerError: Their sizes or pieces differ; the first difference is named.
    """
    if original.vocab_size != changed.vocab_size:
        found = f"{original.vocab_size:,} and {changed.vocab_size:,} pieces"
    else:
        ids = range(original.vocab_size)
        other = next((i for i in ids if original.surface(i) != changed.surface(i)), None)
        if other is None:
            return
        found = f"{original.surface(other)!r} and {changed.surface(other)!r} for id {other}"
    raise TokenizerError(
        f"models must have the same vocabulary to be compared; got {found}. Compare bits per byte: gemsmith eval bpb."
    )


def _check_sizes(original: Transformer, changed: Transformer) -> None:
    sizes = original.config.vocab_size, changed.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"models must have vocabularies of one size to be compared; got {sizes[0]:,} and {sizes[1]:,}. "
            "Compare bits per byte: gemsmith eval bpb."
        )


def _score(
    pair: tuple[Transformer, Transformer], token_ids: list[int], *, n_scored: int, cache_dtype: torch.dtype | None
) -> _Sums:
    lengths = [len(token_ids)]
    ids = torch.tensor(token_ids)
    first = len(token_ids) - n_scored
    caches = (None, cache_of(pair[1], lengths, cache_dtype))
    states = [
        n.hidden(ids.to(n.device), Layout.packed(lengths, device=n.device), cache=cache)[first - 1 : -1]
        for n, cache in zip(pair, caches, strict=True)
    ]
    device = pair[0].device  # the changed model may stand elsewhere
    targets = ids[first:, None].to(device)
    chunk = max(1, _SCORES_AT_ONCE // pair[0].config.vocab_size)
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, n_scored, chunk):
        part = slice(start, start + chunk)
        p, q = (n.logits(x[part]).to(device).log_softmax(-1) for n, x in zip(pair, states, strict=True))
        sums += _part_sums(p, q, targets[part])
    nll_a, nll_b, kl, n_same = sums.tolist()
    return _Sums(n_scored, nll_a, nll_b, kl, int(n_same))


def _part_sums(p: Float[Tensor, "T V"], q: Float[Tensor, "T V"], targets: Tensor) -> Float[Tensor, " four"]:
    return torch.stack(
        [
            -p.gather(-1, targets).double().sum(),
            -q.gather(-1, targets).double().sum(),
            (p.exp() * (p - q)).double().sum(),
            (p.argmax(-1) == q.argmax(-1)).double().sum(),
        ]
    ).cpu()


def _summary(documents: list[_Sums]) -> Divergence:
    table = torch.tensor([[d.n_tokens, d.nll_a, d.nll_b, d.kl] for d in documents], dtype=torch.float64)
    n_tokens, nll_a, nll_b, _ = table.sum(0).tolist()
    return Divergence(
        n_documents=len(documents),
        n_tokens=int(n_tokens),
        perplexity=(math.exp(nll_a / n_tokens), math.exp(nll_b / n_tokens)),
        change=resampled(table, lambda sums: ((sums[..., 2] - sums[..., 1]) / sums[..., 0]).expm1()),
        kl=resampled(table, lambda sums: sums[..., 3] / sums[..., 0]),
        same_choice=sum(document.n_same for document in documents) / n_tokens,
    )
