"""Which row of which source comes when: a function of the seed and the row's number, of nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from threading import RLock

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from gemsmith.data.packing import Piece, Rows, pack_epoch
from gemsmith.data.shards import Shard
from gemsmith.data.sources import Source
from gemsmith.errors import DataError

_BLOCK = 1 << 16  # rows that hold each source in exact proportion; shares are kept to one row of them
_MAX_EPOCHS_HELD = 8  # packed passes in memory, of all sources and parts of a run


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents and what should follow each token.

    Attributes:
        targets: The id that follows, within the same document.
        loss_mask: Whether the target counts.
        documents: Number of the document within its row; filler at a row's end is a document of its own.
        sources: For each row, what lies in it, for messages.
    """

    token_ids: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]
    documents: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A part of a run with its own shares and row length; rows are numbered from its start."""

    row: int
    weights: tuple[float, ...]
    is_late: bool


@dataclass
class Mixture:
    """Sources mixed by share; safe to ask from several threads.

    Attributes:
        breaks: For every id of the vocabulary, whether a text may be cut after it.
        pad_id: Id in the filler at a row's end.
    """

    sources: Sequence[Source]
    shards: Mapping[str, Shard]
    breaks: NDArray[np.bool_]
    seed: int
    bos_id: int = 2
    pad_id: int = 0
    _held: dict[tuple[str, int, Stage], Rows] = field(default_factory=dict, repr=False)
    _n_rows: dict[tuple[str, int, Stage], int] = field(default_factory=dict, repr=False)
    _lock: RLock = field(default_factory=RLock, repr=False)

    def stage(self, *, row: int, is_late: bool = False) -> Stage:
        """Return the main or the last part of a run.

        Raises:
            DataError: All shares are 0, or one is too small to ever get a row.
        """
        weights = [source.weight(is_late=is_late) for source in self.sources]
        total = sum(weights)
        if not total > 0:
            raise DataError("share must be above 0 for one source at least; got 0 for all. Correct the recipe.")
        stage = Stage(row, tuple(weight / total for weight in weights), is_late)
        for source, weight, n_rows in zip(self.sources, weights, _rows_in_block(stage), strict=True):
            if weight and not n_rows:
                raise DataError(
                    f"share must be above 1/{_BLOCK} of all; got {weight!r} of {total!r} in source "
                    f"{source.name!r}. Raise it or leave the source out."
                )
        return stage

    def place(self, stage: Stage, number: int) -> tuple[str, int]:
        """Return the source of a row, and how many rows of that source came before it in its stage."""
        block, offset = divmod(number, _BLOCK)
        drawn, before = _draw(self.seed, stage, block)
        source = int(drawn[offset])
        return self.sources[source].name, block * int(_rows_in_block(stage)[source]) + int(before[offset])

    def pieces(self, stage: Stage, number: int) -> tuple[str, list[Piece]]:
        """Return the source of a row and what lies in it.

        Raises:
            DataError: The source has been seen `max_epochs` times.
        """
        name, epoch, index = self.seen(stage, number)
        return name, self._rows(name, epoch, stage)[index]

    def seen(self, stage: Stage, number: int) -> tuple[str, int, int]:
        """Return the source of a row, its epoch, and how many rows came before it in that epoch.

        Raises:
            DataError: The source has been seen `max_epochs` times.
        """
        name, index = self.place(stage, number)
        source = next(s for s in self.sources if s.name == name)
        for epoch in range(source.max_epochs):
            n_rows = self._count(name, epoch, stage)
            if index < n_rows:
                return name, epoch, index
            index -= n_rows
        raise DataError(
            f"source {name!r} must not be seen more than {source.max_epochs} times; got row {number} of the run. "
            "Lower its share or raise max_epochs."
        )

    def batch(self, stage: Stage, first: int, n_rows: int) -> Batch:
        """Return rows `first` to `first + n_rows` of a stage."""
        placed = [self.pieces(stage, number) for number in range(first, first + n_rows)]
        rows = [self._row(name, pieces, stage.row) for name, pieces in placed]
        parts = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        return Batch(*parts, sources=tuple(self._names(name, pieces) for name, pieces in placed))

    def _count(self, name: str, epoch: int, stage: Stage) -> int:
        key = (name, epoch, stage)
        with self._lock:
            if key not in self._n_rows:
                self._n_rows[key] = len(self._rows(name, epoch, stage))
            return self._n_rows[key]

    def _rows(self, name: str, epoch: int, stage: Stage) -> Rows:
        key = (name, epoch, stage)
        with self._lock:
            # Taken out and put back, so that the one used longest ago stands first.
            rows = self._held.pop(key, None)
            if rows is None:
                rows = self._pack(name, epoch, stage)
            self._held[key] = rows
            if len(self._held) > _MAX_EPOCHS_HELD + len(self.sources):
                del self._held[next(iter(self._held))]
            return rows

    def _pack(self, name: str, epoch: int, stage: Stage) -> Rows:
        seed = (self.seed, int.from_bytes(name.encode(), "big") % 2**63, epoch)
        rows = pack_epoch(self.shards[name], row=stage.row, breaks=self.breaks, seed=seed, is_backward=stage.is_late)
        if not rows:
            raise DataError(
                f"row must be long enough for the conversations of {name!r}; got {stage.row}. Use longer rows."
            )
        return rows

    def _names(self, name: str, pieces: list[Piece]) -> str:
        shard = self.shards[name]
        return f"{name}: {', '.join(shard.origin(piece.start) for piece in pieces)}"

    def _row(self, name: str, pieces: list[Piece], row: int) -> tuple[NDArray, ...]:
        shard = self.shards[name]
        token_ids, targets = np.full((2, row), self.pad_id, np.int64)
        loss_mask = np.zeros(row, np.bool_)
        documents, positions = np.full(row, len(pieces), np.int64), np.arange(row)
        place = 0
        for document, piece in enumerate(pieces):
            here = slice(place, place + piece.n_tokens)
            shard.check_ids(piece.start, piece.stop, n_pieces=len(self.breaks))
            targets[here] = shard.token_ids[piece.start : piece.stop]
            loss_mask[here] = shard.scored[piece.start : piece.stop]
            token_ids[place], token_ids[place + 1 : here.stop] = self.bos_id, targets[place : here.stop - 1]
            documents[here], positions[here] = document, np.arange(piece.n_tokens)
            place = here.stop
        return token_ids, targets, loss_mask, documents, positions


@lru_cache(maxsize=64)
def _rows_in_block(stage: Stage) -> NDArray[np.int64]:
    """Return how many rows of each source every block of a stage holds."""
    ends = np.rint(np.cumsum(stage.weights) * _BLOCK).astype(np.int64)
    return np.diff(ends, prepend=0)


@lru_cache(maxsize=16)
def _draw(seed: int, stage: Stage, block: int) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    """Shuffle the sources of one block of rows; return them, and how many of its own came before each.

    Every block holds equally many rows of a source, so what came before a block needs no counting.
    """
    counts = _rows_in_block(stage)
    rng = np.random.default_rng((seed, int(stage.is_late), block))
    drawn = rng.permutation(np.repeat(np.arange(len(counts), dtype=np.uint16), counts))
    before = np.empty(len(drawn), np.int32)
    for source, count in enumerate(counts):
        before[drawn == source] = np.arange(count)
    return drawn, before
