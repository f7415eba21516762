"""Documents into rows of fixed length: cut what is too long, fit pieces together, waste little."""

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import overload

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


class Rows(Sequence[list[Piece]]):
    """What lies in each row, held in 16 bytes a piece, so that an epoch of a large source stays small."""

    def __init__(self) -> None:
        self.spans, self.ends = array("q"), array("q", (0,))

    def append(self, row: Iterable[Piece]) -> None:
        """Add a row."""
        for piece in row:
            self.spans.extend((piece.start, piece.stop))
        self.ends.append(len(self.spans))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> list[Piece]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[Piece]]: ...
    def __getitem__(self, index: int | slice) -> list[Piece] | list[list[Piece]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        flat = self.spans[self.ends[number] : self.ends[number + 1]]
        return [Piece(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]


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
        shard.check_ids(late, start + row, n_pieces=len(breaks))
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
) -> Rows:
    """Return one pass over a shard as rows; a function of its arguments alone.

    Args:
        seed: Decides the order of documents.
        is_backward: Walk the same order from its end, so that a part of a run which starts anew
            meets first what the part before it did not reach.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(shard.n_documents)
    pieces = _cut_all(shard, order[::-1] if is_backward else order, row=row, breaks=breaks)
    rows = Rows()
    while group := list(islice(pieces, _GROUP)):
        packed = fit(group, row=row)
        for index in rng.permutation(len(packed)):
            rows.append(packed[index])
    return rows


def _cut_all(shard: Shard, order: NDArray[np.integer], *, row: int, breaks: NDArray[np.bool_]) -> Iterator[Piece]:
    for document in order:
        yield from cut(shard, int(document), row=row, breaks=breaks)
