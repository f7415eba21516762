"""Where each token of a forward pass stands: its document, position, span and adapter.

The core forward knows one flat axis of tokens and no padding. Documents laid end to end, prompts
of several users, one decoded token of each: all are a Layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gemsmith.errors import ConfigError

Direction = Literal["causal", "bidirectional"]


@dataclass(frozen=True)
class Segment:
    """One document's run of tokens: rows [start, stop) of the flat axis, the first at `position`."""

    start: int
    stop: int
    slot: int
    position: int

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the run."""
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """Place of every token on the flat axis of one forward pass.

    Attributes:
        documents: Tokens see only tokens of their own document; with a cache it is the cache slot.
            A negative document is filler: it sees nothing and nobody sees it.
        positions: Absolute position within the document, from 0.
        segments: The same facts as plain numbers, one entry per run of consecutive tokens.
        n_rows: Above 1, the axis is that many rows of equal length, and attention never crosses from
            row to row, so that all rows are computed at once. Row r is segment r.
        spans: Tokens of one document with the same span number (>= 0) see each other in both
            directions, as the tokens of an image do; -1 belongs to no span. None means no spans.
        adapters: Which low-rank delta each row uses, -1 for none; None lets every row use number 0.
        direction: "causal", or "bidirectional" for encoders.
    """

    documents: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    segments: tuple[Segment, ...]
    n_rows: int = 1
    spans: Int[Tensor, " T"] | None = None
    adapters: Int[Tensor, " T"] | None = None
    direction: Direction = "causal"

    @classmethod
    def packed(
        cls,
        lengths: Sequence[int],
        *,
        starts: Sequence[int] | None = None,
        slots: Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> "Layout":
        """Lay documents end to end.

        Args:
            lengths: Tokens of each document in this pass, each at least 1.
            starts: Position of the first token of each document (0 for all by default).
            slots: Document number of each (0, 1, 2, ... by default); with a cache, the cache slot.

        Raises:
            ConfigError: The three lists disagree in length, or a length is below 1.
        """
        starts = [0] * len(lengths) if starts is None else list(starts)
        slots = list(range(len(lengths))) if slots is None else list(slots)
        if not lengths or min(lengths) < 1 or not len(lengths) == len(starts) == len(slots):
            raise ConfigError(
                f"lengths, starts and slots must be equally many and each length at least 1; got {list(lengths)}, "
                f"{starts} and {slots}. Leave out documents without tokens."
            )
        segments, row = [], 0
        for length, start, slot in zip(lengths, starts, slots, strict=True):
            segments.append(Segment(row, row + length, slot, start))
            row += length
        if len(segments) == 1:
            documents = torch.full((row,), slots[0], dtype=torch.long, device=device)
            positions = torch.arange(starts[0], starts[0] + row, device=device)
            return cls(documents, positions, tuple(segments))
        documents = torch.tensor(slots).repeat_interleave(torch.tensor(lengths))
        positions = torch.cat([torch.arange(s.position, s.position + s.n_tokens) for s in segments])
        return cls(documents.to(device), positions.to(device), tuple(segments), n_rows=_equal_rows(segments))

    @classmethod
    def rows(cls, documents: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> "Layout":
        """Lay out rows of equal length, each packed with documents of its own: a training batch.

        Args:
            documents: Document of each token, told apart within a row, each in one piece; negative for filler.
            positions: Place within the document, counting up by one along the row.
        """
        n_rows, length = documents.shape
        segments = tuple(Segment(r * length, (r + 1) * length, r, 0) for r in range(n_rows))
        return cls(documents.reshape(-1), positions.reshape(-1), segments, n_rows=n_rows)

    @property
    def n_tokens(self) -> int:
        """Length of the flat axis."""
        return self.documents.shape[0]

    def first_keys(self, window: int | None) -> Int[Tensor, " T"]:
        """Return the first place on the flat axis each token of a causal layer may see, int32.

        A token sees the places from there to its own. Filler sees none: its first lies after it.
        """
        places = torch.arange(self.n_tokens, device=self.documents.device)
        is_start = torch.ones_like(self.documents, dtype=torch.bool)
        is_start[1:] = (self.documents.diff() != 0) | (self.positions.diff() != 1)
        is_start.view(self.n_rows, -1)[:, 0] = True
        first = torch.where(is_start, places, 0).cummax(0).values
        if window is not None:
            first = torch.maximum(first, places - (window - 1))
        return torch.where(self.documents < 0, places + 1, first).int()

    def part(self, rows: Int[Tensor, " R"], segments: tuple[Segment, ...]) -> "Layout":
        """Return the layout of some rows, whose segments the caller has worked out."""
        pick = {name: None if (x := getattr(self, name)) is None else x[rows] for name in ("spans", "adapters")}
        n_rows = _equal_rows(segments)
        return Layout(self.documents[rows], self.positions[rows], segments, n_rows, direction=self.direction, **pick)

    def chunks(self, size: int) -> list[tuple[Int[Tensor, " R"], "Layout"]]:
        """Cut every document into pieces of at most `size` tokens, to be run one after the other.

        Returns:
            For each pass, the rows it takes of the flat axis and their layout.
        """
        passes = []
        for offset in range(0, max(s.n_tokens for s in self.segments), size):
            rows, segments, row = [], [], 0
            for s in self.segments:
                n = min(size, s.n_tokens - offset)
                if n > 0:
                    rows.append(torch.arange(s.start + offset, s.start + offset + n, device=self.documents.device))
                    segments.append(Segment(row, row + n, s.slot, s.position + offset))
                    row += n
            index = torch.cat(rows)
            passes.append((index, self.part(index, tuple(segments))))
        return passes


def _equal_rows(segments: Sequence[Segment]) -> int:
    """Return how many equal rows of consecutive slots the segments form, 1 if they do not."""
    first = segments[0]
    equal = all(s.n_tokens == first.n_tokens and s.slot == first.slot + i for i, s in enumerate(segments))
    return len(segments) if equal and first.slot >= 0 else 1


def visible(
    queries: tuple[Int[Tensor, "*B T"], Int[Tensor, "*B T"], Int[Tensor, "*B T"] | None],
    keys: tuple[Int[Tensor, "*B S"], Int[Tensor, "*B S"], Int[Tensor, "*B S"] | None],
    *,
    window: int | None,
    direction: Direction = "causal",
) -> Bool[Tensor, "*B T S"]:
    """Mark the keys each query may see: the one rule of attention.

    Key j is visible to query i of the same document when j <= i, or when both lie in one span, or
    always if the direction is bidirectional; and in a local layer only when it is nearer than
    `window`: i - window < j (also j < i + window where later keys are visible at all).

    Args:
        queries: Document, position and span (None: no spans) of each query; documents below 0 see nothing.
        keys: The same of each key; positions below 0 are places nothing was written to.
        window: Number of visible keys, the query's own included; None for all.

    Source: Gemma 2 report, arXiv:2408.00118, section 2 (local layers); Gemma 3 report,
    arXiv:2503.19786, section 2 (images see themselves both ways).
    """
    (q_doc, q_pos, q_span), (k_doc, k_pos, k_span) = queries, keys
    distance = q_pos[..., :, None] - k_pos[..., None, :]
    same = (q_doc[..., :, None] == k_doc[..., None, :]) & (q_doc >= 0)[..., :, None] & (k_pos >= 0)[..., None, :]
    if direction == "bidirectional":
        ahead = torch.ones_like(same)
    else:
        ahead = distance >= 0
        if q_span is not None and k_span is not None:
            ahead = ahead | ((q_span[..., :, None] == k_span[..., None, :]) & (q_span >= 0)[..., :, None])
    seen = same & ahead
    if window is not None:
        seen = seen & (distance < window)
        if direction == "bidirectional":
            seen = seen & (distance > -window)
    return seen
