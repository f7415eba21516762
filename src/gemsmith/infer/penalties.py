"""What a completion already holds, and what repeating it costs.

Source: repetition penalty: CTRL, arXiv:1909.05858, section 4.1, over prompt and completion;
presence and frequency penalty: the OpenAI API, over the completion only.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gemsmith.kernels import native
from gemsmith.kernels.fused_pick import Tables


class History:
    """Which tokens each row has seen, and how often it wrote them itself.

    Attributes:
        seen: Tokens in the prompt or the completion.
        counts: How often the completion holds each token.
        tables: The same as the kernel that chooses tokens reads it, without a search; None where there is none.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], vocab_size: int, *, device: torch.device | str | None = None
    ) -> None:
        self.seen: Bool[Tensor, "B V"] = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
        self.counts: Float[Tensor, "B V"] = torch.zeros(len(prompts), vocab_size, device=device)
        for row, token_ids in enumerate(prompts):
            known = [token_id for token_id in token_ids if token_id < vocab_size]
            self.seen[row, torch.tensor(known, dtype=torch.long, device=device)] = True
        self._list()

    def add(self, token_ids: Int[Tensor, " B"]) -> None:
        """Count one more token of each row's completion."""
        if self.tables is not None:
            self.tables.record(token_ids)
            return
        self.seen.scatter_(1, token_ids[:, None], True)
        self.counts.scatter_add_(1, token_ids[:, None], torch.ones_like(token_ids[:, None], dtype=torch.float32))

    def keep(self, rows: Int[Tensor, " R"]) -> None:
        """Forget all rows but these."""
        self.seen, self.counts = self.seen[rows], self.counts[rows]
        self._list()

    def _list(self) -> None:
        """List the tokens seen where the kernel will ask for them."""
        self.tables: Tables | None = None
        if self.seen.device.type != "cpu" or not native.is_loaded():
            return
        # As long as it can ever get; memory that is not written to costs nothing.
        self._token_ids = torch.empty(self.seen.shape, dtype=torch.int32)
        self._lengths = self.seen.sum(-1)
        for row, length in enumerate(self._lengths.tolist()):
            self._token_ids[row, :length] = self.seen[row].nonzero()[:, 0]
        self.tables = Tables.of(self.seen, self.counts, self._token_ids, self._lengths)


def penalized(
    scores: Float[Tensor, "B V"], history: History, penalties: tuple[float, float, float]
) -> Float[Tensor, "B V"]:
    """Return the scores after the repetition, presence and frequency penalty, in this order."""
    repetition, presence, frequency = penalties
    if repetition != 1:
        lowered = torch.where(scores < 0, scores * repetition, scores / repetition)
        scores = torch.where(history.seen, lowered, scores)
    if presence:
        scores = scores - presence * (history.counts > 0)
    if frequency:
        scores = scores - frequency * history.counts
    return scores
