"""Which row of which source comes when: a function of the seed and the row's number, of nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from gemsmith.data.packing import Piece, pack_epoch
from gemsmith.data.shards import Shard
from gemsmith.data.sources import Source
from gemsmith.errors import DataError

_BLOCK = 4096  # rows whose sources are drawn at once


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents and what should follow each token.

    Attributes:
        targets: The id that follows, within the same document.
        loss_mask: Whether the target counts.
        documents: Number of the document within its row; filler at a row's end is a document of its own.
    """

    token_ids: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]
    documents: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]


@dataclass(frozen=True)
class Stage:
    """A part of a run with its own shares and row length; rows are numbered from its start."""

    row: int
    weights: tuple[float, ...]
    is_late: bool


@dataclass
class Mixture:
    """Sources mixed by share.

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
    _epochs: dict[tuple[str, int, Stage], list[list[Piece]]] = field(default_factory=dict)

    def stage(self, *, row: int, is_late: bool = False) -> Stage:
        """Return the main or the last part of a run."""
        weights = np.array([source.weight(is_late=is_late) for source in self.sources], float)
        return Stage(row, tuple(weights / weights.sum()), is_late)

    def place(self, stage: Stage, number: int) -> tuple[str, int]:
        """Return the source of a row, and how many rows of that source came before it in its stage."""
        block, offset = divmod(number, _BLOCK)
        drawn = _draw(self.seed, stage, block)
        source = int(drawn[offset])
        before = sum(int((_draw(self.seed, stage, b) == source).sum()) for b in range(block))
        return self.sources[source].name, before + int((drawn[:offset] == source).sum())

    def pieces(self, stage: Stage, number: int) -> tuple[str, list[Piece]]:
        """Return the source of a row and what lies in it.

        Raises:
            DataError: The source has been seen `max_epochs` times.
        """
        name, index = self.place(stage, number)
        source = next(s for s in self.sources if s.name == name)
        for epoch in range(source.max_epochs):
            rows = self._rows(name, epoch, stage)
            if index < len(rows):
                return name, rows[index]
            index -= len(rows)
        raise DataError(
            f"source {name!r} must not be seen more than {source.max_epochs} times; got row {number} of the run. "
            "Lower its share or raise max_epochs."
        )

    def batch(self, stage: Stage, first: int, n_rows: int) -> Batch:
        """Return rows `first` to `first + n_rows` of a stage."""
        rows = [self._row(*self.pieces(stage, number), stage.row) for number in range(first, first + n_rows)]
        return Batch(*(torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)))

    def _rows(self, name: str, epoch: int, stage: Stage) -> list[list[Piece]]:
        key = (name, epoch, stage)
        if key not in self._epochs:
            seed = (self.seed, int.from_bytes(name.encode(), "big") % 2**63, epoch)
            rows = pack_epoch(
                self.shards[name], row=stage.row, breaks=self.breaks, seed=seed, is_backward=stage.is_late
            )
            if not rows:
                raise DataError(
                    f"row must be long enough for the conversations of {name!r}; got {stage.row}. Use longer rows."
                )
            self._epochs[key] = rows
        return self._epochs[key]

    def _row(self, name: str, pieces: list[Piece], row: int) -> tuple[NDArray, ...]:
        shard = self.shards[name]
        token_ids, targets = np.full((2, row), self.pad_id, np.int64)
        loss_mask = np.zeros(row, np.bool_)
        documents, positions = np.full(row, len(pieces), np.int64), np.arange(row)
        place = 0
        for document, piece in enumerate(pieces):
            here = slice(place, place + piece.n_tokens)
            targets[here] = shard.token_ids[piece.start : piece.stop]
            loss_mask[here] = shard.scored[piece.start : piece.stop]
            token_ids[place], token_ids[place + 1 : here.stop] = self.bos_id, targets[place : here.stop - 1]
            documents[here], positions[here] = document, np.arange(piece.n_tokens)
            place = here.stop
        return token_ids, targets, loss_mask, documents, positions


@lru_cache(maxsize=256)
def _draw(seed: int, stage: Stage, block: int) -> NDArray[np.intp]:
    """Draw the sources of one block of rows."""
    rng = np.random.default_rng((seed, int(stage.is_late), block))
    return np.searchsorted(np.cumsum(stage.weights), rng.random(_BLOCK), side="right").clip(max=len(stage.weights) - 1)
