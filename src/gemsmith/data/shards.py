"""Tokenized sources: ids end to end, which of them count in the loss, and where documents begin."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gemsmith.errors import DataError

# A document as ids without BOS, and which of them count in the loss.
Tokenized = tuple[list[int], list[bool]]

DOCUMENT = np.dtype([("end", "<i8"), ("file", "<u4"), ("line", "<u4"), ("sha256", "u1", (32,))])
"""What a shard file's document table holds: its end within the file, and where it came from."""


class Joined:
    """Arrays in several files, read as one; nothing is loaded but what a slice asks for."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0, *map(len, parts)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, _ = span.indices(len(self))
        found = []
        for index in range(bisect_right(self.starts, start) - 1, len(self.parts)):
            if self.starts[index] >= stop:
                break
            found.append(self.parts[index][max(0, start - self.starts[index]) : stop - self.starts[index]])
        return found[0] if len(found) == 1 else np.concatenate(found or [self.parts[0][:0]])


@dataclass(frozen=True)
class Shard:
    """The documents of one source as token ids, without BOS, each ending with what ends a text.

    Attributes:
        token_ids: All documents end to end.
        scored: Whether an id counts as a target.
        offsets: Start of each document, and the end of the last.
        is_chat: Conversations are kept whole; texts may be cut to fit a row.
        origins: A row of DOCUMENT for each document.
        files: What the origins' file numbers stand for.
    """

    token_ids: np.ndarray | Joined
    scored: np.ndarray | Joined
    offsets: np.ndarray
    is_chat: bool
    origins: Joined | None = None
    files: tuple[str, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Number of ids."""
        return len(self.token_ids)

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    def origin(self, place: int) -> str:
        """Say which document an id belongs to, by file and line where they are known."""
        document = int(np.searchsorted(self.offsets, place, side="right")) - 1
        if self.origins is None:
            return f"document {document + 1}"
        row = self.origins[document : document + 1][0]
        file, line = self.files[int(row["file"])], int(row["line"])
        return f"{file} line {line}" if line else file

    def check_ids(self, start: int, stop: int, *, n_pieces: int) -> None:
        """Refuse ids in [start, stop) that the vocabulary does not have.

        Raises:
            DataError: There is one; its document is named.
        """
        found = np.flatnonzero(self.token_ids[start:stop] >= n_pieces)
        if found.size:
            place = start + int(found[0])
            raise DataError(
                f"token ids must be below the vocabulary's {n_pieces}; got {int(self.token_ids[place : place + 1][0])} "
                f"in {self.origin(place)}. Build the dataset with this vocabulary."
            )


def id_type(n_pieces: int) -> np.dtype:
    """Return the smallest type that holds every id of a vocabulary."""
    return np.dtype("<u2" if n_pieces <= 1 << 16 else "<u4")


def build_shard(documents: Iterable[Tokenized], *, is_chat: bool) -> Shard:
    """Lay tokenized documents end to end, in memory.

    Raises:
        DataError: There are none.
    """
    rows = list(documents)
    if not rows:
        raise DataError("source must hold at least one document to train on; got none. Check the file and held_out.")
    kind = id_type(1 + max(max(token_ids) for token_ids, _ in rows))
    token_ids = np.concatenate([np.array(ids, kind) for ids, _ in rows])
    scored = np.concatenate([np.array(mask, np.bool_) for _, mask in rows])
    return Shard(token_ids, scored, np.cumsum([0, *(len(ids) for ids, _ in rows)]), is_chat)
