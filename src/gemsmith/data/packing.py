"""Documents into rows of fixed length: cut what is too long, fit pieces together, waste little."""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemsmith.data.shards import Shard

_GROUP = 2048  # pieces fitted together at a time; keeps a row's pieces near each other in the order


@dataclass(frozen=True)
class Piece:
    """Tokens [start, stop) of a shard's flat array: a document, or a part of a long one."""

    start: int
    stop: int

    @property
    def n_tokens(self) -> int:
        """Places the piece takes in a row."""
        return self.stop - self.start


def cut(shard: Shard, document: int, *, row: int, breaks: NDArray[np.bool_]) -> list[Piece]:
    """Cut a document into pieces that fit a row.

    A text is cut after the last break of the last quarter of a row, or hard where there is none. A
    conversation longer than a row would lose its question, so it gives nothing.

    Args:
        breaks: For every id of the vocabulary, whether a text may be cut after it.
    """
    start, end = int(shard.offsets[document]), int(shard.offsets[document + 1])
    if shard.is_chat:
        return [Piece(start, end)] if end - start <= row else []
    pieces = []
    while end - start > row:
        late = start + row * 3 // 4
        good = np.flatnonzero(breaks[shard.token_ids[late : start + row]])
        stop = late + int(good[-1]) + 1 if len(good) else start + row
        pieces.append(Piece(start, stop))
        start = stop
    return [*pieces, Piece(start, end)]


def fit(pieces: list[Piece], *, row: int) -> list[list[Piece]]:
    """Put pieces into rows, the longest first and each where the least room is left.

    Source: best-fit packing, arXiv:2404.10830.
    """
    rows: list[list[Piece]] = []
    room: list[tuple[int, int]] = []  # (places left, row), sorted
    for piece in sorted(pieces, key=lambda p: -p.n_tokens):
        place = bisect_left(room, (piece.n_tokens, -1))
        if place == len(room):
            rows.append([])
            left, index = row, len(rows) - 1
        else:
            left, index = room.pop(place)
        rows[index].append(piece)
        insort(room, (left - piece.n_tokens, index))
    return rows


def pack_epoch(
    shard: Shard, *, row: int, breaks: NDArray[np.bool_], seed: tuple[int, ...], is_backward: bool = False
) -> list[list[Piece]]:
    """Return one pass over a shard as rows; a function of its arguments alone.

    Args:
        seed: Decides the order of documents.
        is_backward: Walk the same order from its end, so that a part of a run which starts anew
            meets first what the part before it did not reach.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(shard.n_documents)
    pieces = [p for d in (order[::-1] if is_backward else order) for p in cut(shard, int(d), row=row, breaks=breaks)]
    rows = []
    for start in range(0, len(pieces), _GROUP):
        packed = fit(pieces[start : start + _GROUP], row=row)
        rows += [packed[i] for i in rng.permutation(len(packed))]
    return rows
