"""From the logits of one position to one token: Sampling says how, `pick` does it.

`plain_pick` says what that means; a Picker leaves it to a kernel where there is one. The operations run in
this order, which is also that of Hugging Face transformers:

    logits + bias -> repetition -> presence, frequency -> / temperature -> top_k -> top_p -> min_p -> draw

Tokens that tie with the last one admitted are admitted too, so that no result depends on the order
in which a sort leaves equals. The vocabulary is never sorted. Probabilities are summed as integers, and
logarithms computed in float64, so that kernel and plain path choose the same tokens.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsFloat, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemsmith.errors import SamplingError
from gemsmith.infer.noise import gumbel, wide
from gemsmith.infer.penalties import History, penalized
from gemsmith.kernels import native
from gemsmith.kernels.fused_pick import Rule

MAX_SEED = 2**63 - 1
_FIRST_LOOK = 256  # tokens among which top_p is sought first; real distributions seldom need more
_TIE_ROOM = 8
_SHARE_UNITS = 2.0**40  # of the best token's probability; sums over four million tokens are still exact
_TEMPERATURES = (2.0**-149, torch.finfo(torch.float32).max)  # what float32 holds but for 0

_Range = tuple[str, Callable[[float], bool], str]
_NUMBERS: dict[str, _Range] = {
    "temperature": ("be a number of at least 0", lambda x: x >= 0, "0 is greedy, 1 the model's own spread."),
    "top_p": ("lie above 0 and up to 1", lambda x: 0 < x <= 1, "1 keeps every token."),
    "min_p": ("lie between 0 and 1", lambda x: 0 <= x <= 1, "0 keeps every token."),
    "repetition_penalty": ("be a number above 0", lambda x: x > 0, "1 changes nothing."),
    "presence_penalty": ("be a finite number", lambda x: True, "0 changes nothing."),
    "frequency_penalty": ("be a finite number", lambda x: True, "0 changes nothing."),
}
_INTEGERS: dict[str, _Range] = {
    "top_k": ("be an integer of at least 1", lambda x: x >= 1, "None keeps every token."),
    "seed": ("be an integer between 0 and 2**63 - 1", lambda x: 0 <= x <= MAX_SEED, "None draws one."),
}
_BIAS_ID: _Range = ("be keyed by token ids", lambda x: x >= 0, "lm.tokenizer.id_of(piece) gives one.")
_BIAS: _Range = ("be finite", lambda x: True, "-1000 as good as forbids a token.")


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The default is the model's own distribution.

    Attributes:
        temperature: Scores are divided by it; 0 takes the best token (greedy).
        top_k: Keep the k best tokens; None keeps all.
        top_p: Keep the fewest best tokens whose probabilities sum to it; 1 keeps all.
        min_p: Keep tokens at least this many times as probable as the best; 0 keeps all.
        repetition_penalty: Positive scores of tokens in prompt or completion are divided by it,
            negative ones multiplied; 1 changes nothing.
        presence_penalty: Subtracted once from tokens the completion already holds.
        frequency_penalty: Subtracted as often as the completion holds the token.
        logit_bias: Added to the logit of a token id.
        seed: Same seed, same text; None draws a seed, which the Completion names.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        for name, allowed in _NUMBERS.items():
            _check(name, getattr(self, name), allowed)
        for name, allowed in _INTEGERS.items():
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), allowed, kind=SupportsIndex)
        for token_id, bias in self.logit_bias.items():
            _check("logit_bias", token_id, _BIAS_ID, kind=SupportsIndex)
            _check(f"logit_bias of token {token_id}", bias, _BIAS)

    @property
    def is_greedy(self) -> bool:
        """Whether the best token is taken and no noise is needed."""
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        """Whether a choice depends on earlier tokens other than through the network."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


class Picker:
    """Chooses tokens one way. Made once and used for every step of a generation, it costs a step one call.

    It serves one call at a time: threads need one each.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._rule = _rule(sampling) if native.is_loaded() else None

    def pick(
        self,
        logits: Float[Tensor, "B V"],
        *,
        streams: Int[Tensor, " B"],
        positions: Int[Tensor, " B"],
        history: History | None = None,
    ) -> Int[Tensor, " B"]:
        """Choose one token id per row.

        A row's choice depends on its own logits, stream, position and history, never on its neighbors.

        Args:
            streams: From `completion_streams`: one per row.
            positions: Absolute position the chosen token will stand at.
            history: Tokens so far; needed where `sampling.has_penalties`.
        """
        if self._rule is None or not self._rule.serves(logits):
            return plain_pick(logits, self.sampling, streams=streams, positions=positions, history=history)
        seen = None
        if self.sampling.has_penalties:
            assert history is not None
            seen = history.tables
        return self._rule.pick(logits, streams=streams, positions=positions, seen=seen)


def pick(
    logits: Float[Tensor, "B V"],
    sampling: Sampling,
    *,
    streams: Int[Tensor, " B"],
    positions: Int[Tensor, " B"],
    history: History | None = None,
) -> Int[Tensor, " B"]:
    """Choose one token id per row, once: see `Picker.pick`."""
    return Picker(sampling).pick(logits, streams=streams, positions=positions, history=history)


def plain_pick(
    logits: Float[Tensor, "B V"],
    sampling: Sampling,
    *,
    streams: Int[Tensor, " B"],
    positions: Int[Tensor, " B"],
    history: History | None = None,
) -> Int[Tensor, " B"]:
    """Return what `Picker.pick` does, in plain torch.

    Among equals the lowest id wins. NaN counts as the best score, and a row whose best is not finite gives
    its first token of that score whatever the sampling: there is no distribution to draw from.
    """
    scores = adjusted(logits, sampling, history)
    best = scores.argmax(-1)
    if sampling.is_greedy:
        return best
    values, token_ids = candidates(scores, sampling)
    noisy = values + gumbel(streams, positions, token_ids=token_ids)
    is_behind = noisy < noisy.amax(-1, keepdim=True)
    drawn = token_ids.masked_fill(is_behind, scores.shape[1]).amin(-1)
    return torch.where(scores.amax(-1).isfinite(), drawn, best)


def _temperature(sampling: Sampling) -> float:
    """Return the temperature as float32 can hold it."""
    lowest, highest = _TEMPERATURES
    return min(max(sampling.temperature, lowest), highest)


def _rule(sampling: Sampling) -> Rule:
    """Put a Sampling into the kernel's terms."""
    return Rule(
        temperature=0.0 if sampling.is_greedy else _temperature(sampling),
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        penalties=(sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty),
        biases=sampling.logit_bias,
    )


def adjusted(logits: Float[Tensor, "B V"], sampling: Sampling, history: History | None = None) -> Float[Tensor, "B V"]:
    """Return float32 scores: the logits with bias and penalties."""
    scores = logits.float()
    if sampling.logit_bias:
        token_ids = torch.tensor(list(sampling.logit_bias), device=scores.device)
        bias = torch.tensor(list(sampling.logit_bias.values()), dtype=scores.dtype, device=scores.device)
        scores = scores.index_add(1, token_ids, bias.expand(scores.shape[0], -1))
    if sampling.has_penalties:
        assert history is not None
        penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        scores = penalized(scores, history, penalties)
    return scores


def candidates(scores: Float[Tensor, "B V"], sampling: Sampling) -> tuple[Float[Tensor, "B C"], Int[Tensor, "B C"]]:
    """Return the scores over temperature of the tokens that survive, and their ids.

    Scores are counted from the best, which is 0. Rows keep different numbers of tokens: what does
    not survive has -inf.
    """
    n_rows, vocab_size = scores.shape
    if sampling.top_k is not None and sampling.top_k < vocab_size:
        values, token_ids = _best(scores, sampling.top_k)
    else:
        values, token_ids = scores, torch.arange(vocab_size, device=scores.device).expand(n_rows, -1)
    values = (values - values.amax(-1, keepdim=True)) / _temperature(sampling)
    if sampling.top_p < 1:
        values, token_ids = _nucleus(values, token_ids, sampling.top_p)
    if sampling.min_p > 0:
        values = values.masked_fill(values < math.log(sampling.min_p), -math.inf)
    return values, token_ids


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best scores, those equal to the k-th included, and their ids."""
    vocab_size = scores.shape[1]
    room = min(k + _TIE_ROOM, vocab_size)
    values, token_ids = scores.topk(room)
    edge = values[:, k - 1 : k]
    while room < vocab_size and bool((values[:, -1:] == edge).any()):  # more equals may follow
        room = min(2 * room, vocab_size)
        values, token_ids = scores.topk(room)
    return values.masked_fill(values < edge, -math.inf), token_ids


def _nucleus(values: Tensor, token_ids: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Keep the fewest best tokens whose shares sum to `top_p`, and those equal to the last of them."""
    exact = wide(values.device)
    shares = (values.to(exact).exp() * _SHARE_UNITS).round().long()
    needed = (shares.sum(-1, keepdim=True).to(exact) * top_p).ceil().long()
    best, places = values.topk(min(_FIRST_LOOK, values.shape[1]))
    sums = shares.gather(1, places).cumsum(-1)
    if bool((sums[:, -1:] >= needed).all()):
        cut = best.gather(1, (sums < needed).sum(-1, keepdim=True))
        if bool((best[:, -1:] < cut).all()):
            return best.masked_fill(best < cut, -math.inf), token_ids.gather(1, places)
    else:
        cut = _nucleus_edge(values, shares, needed)
    return values.masked_fill(values < cut, -math.inf), token_ids


def _nucleus_edge(values: Tensor, shares: Tensor, needed: Tensor) -> Tensor:
    """Return the highest value such that the shares from there on suffice, by bisection over the bits of float32.

    Values are 0 or less. The bits of their distances from 0, read as integers, are ordered as the distances are.
    """
    bits = values.abs().view(torch.int32)
    low = torch.full_like(bits[:, :1], -1)  # never enough: it admits no token
    high = torch.full_like(low, 0x7F800000)  # infinity: always enough
    for _ in range(31):
        middle = low + (high - low) // 2
        is_enough = (shares * (bits <= middle)).sum(-1, keepdim=True) >= needed
        low, high = torch.where(is_enough, low, middle), torch.where(is_enough, middle, high)
    return -high.view(torch.float32)


def logprobs_of(logits: Float[Tensor, "B V"], token_ids: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return the model's natural-log probability of one token per row, whatever the sampling."""
    logits = logits.float()
    return logits.gather(1, token_ids[:, None])[:, 0] - logits.logsumexp(-1)


def top_logprobs(
    logits: Float[Tensor, "B V"], n: int, *, n_pieces: int
) -> tuple[Float[Tensor, "B n"], Int[Tensor, "B n"]]:
    """Return the n largest natural-log probabilities of each row and their ids.

    Args:
        n_pieces: Rows of the head that belong to a piece; those above share the sum but are not shown.
    """
    logits = logits.float()
    values, token_ids = logits[:, :n_pieces].topk(n)
    return values - logits.logsumexp(-1, keepdim=True), token_ids


def _check(name: str, value: Any, allowed: _Range, *, kind: type = SupportsFloat) -> None:
    rule, holds, way_out = allowed
    if isinstance(value, bool | str) or not isinstance(value, kind) or not math.isfinite(value) or not holds(value):
        raise SamplingError(f"{name} must {rule}; got {value!r}. {way_out}")
