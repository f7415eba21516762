"""What comes back: a Completion of a prompt, and the Score of a text."""

import math
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Completion:
    """One continuation of one prompt.

    Attributes:
        token_ids: Every id that was sampled, the one that ended the text included.
        finish_reason: "stop" (a stop id or stop string, neither of which is in `text`), "length"
            (`max_new_tokens` or the end of the context) or "cancelled".
        logprobs: Natural-log probability of each token in the model's own distribution, before
            bias, penalties, temperature and truncation; None unless asked for.
        top_logprobs: For each token the likeliest (id, natural-log probability), the best first.
        n_cached_tokens: How many of the prompt's tokens were taken from a prompt cache.
        index: Which of the prompt's completions it is, from 0.
        seed: What reproduces it.
        ttft_s: Seconds from the call to the first token; None if there was none.
        total_s: Seconds from the call to the last token.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    n_prompt_tokens: int
    index: int
    seed: int
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    ttft_s: float | None = None
    total_s: float = 0.0
    n_cached_tokens: int = 0

    @property
    def n_tokens(self) -> int:
        """Number of tokens sampled."""
        return len(self.token_ids)

    @property
    def tokens_per_s(self) -> float | None:
        """Speed of decoding, the first token (which is prefill) aside; None below two tokens."""
        if self.ttft_s is None or self.n_tokens < 2 or self.total_s <= self.ttft_s:
            return None
        return (self.n_tokens - 1) / (self.total_s - self.ttft_s)


@dataclass(frozen=True)
class Score:
    """How probable a model finds a text.

    Attributes:
        token_ids: The whole sequence, BOS included.
        places: Index into `token_ids` of each scored token: all but the first of a text, the
            model's own words of a conversation.
        logprobs: Natural-log probability of each scored token, given everything before it.
        n_bytes: UTF-8 length of the text; None where ids or turns were scored.
    """

    token_ids: tuple[int, ...]
    places: tuple[int, ...]
    logprobs: tuple[float, ...]
    n_bytes: int | None = None

    @property
    def n_scored(self) -> int:
        """Number of scored tokens."""
        return len(self.logprobs)

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, in nats per scored token."""
        return -math.fsum(self.logprobs) / len(self.logprobs)

    @property
    def ppl(self) -> float:
        """Perplexity: exp(nll)."""
        return math.exp(self.nll)

    @property
    def bpb(self) -> float | None:
        """Bits per byte of the text; None where ids or turns were scored."""
        return None if self.n_bytes is None else -math.fsum(self.logprobs) / math.log(2) / self.n_bytes
