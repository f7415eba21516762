"""Writes the shard files of one source, document by document."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemsmith.data.index import Origin, ShardRecord
from gemsmith.data.shards import DOCUMENT
from gemsmith.errors import StorageError
from gemsmith.weights.manifest import FileRecord

_BUFFER = 1 << 20  # bytes held back before they are written
MAX_TOKENS = 1 << 25  # of one shard file, if a single document is not longer


@contextmanager
def stored(folder: Path) -> Iterator[None]:
    """Turn a failed write into an error that says where.

    Raises:
        StorageError: The disk is full or not writable.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"dataset must be written to a disk with room; got {error.strerror or error} in {str(folder)!r}. "
            "Make room or choose another folder; a dataset that was there before is unchanged."
        ) from error


class HashedFile:
    """A file being written, and the hash of what was written; open only while a full buffer goes to disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.n_bytes, self.hash, self.held = path, 0, hashlib.sha256(), bytearray()
        with stored(path.parent):
            path.write_bytes(b"")

    def write(self, data: bytes) -> None:
        """Write and hash some bytes."""
        self.hash.update(data)
        self.n_bytes += len(data)
        self.held += data
        if len(self.held) >= _BUFFER:
            self._flush()

    def close(self) -> FileRecord:
        """Write what was held back and return length and hash."""
        self._flush()
        return FileRecord(self.n_bytes, self.hash.hexdigest())

    def _flush(self) -> None:
        with stored(self.path.parent), self.path.open("ab") as file:
            file.write(self.held)
        self.held.clear()


@dataclass
class ShardWriter:
    """The shard files of a source; a new one begins when a document would make the last too long.

    Attributes:
        id_type: Of the ids on disk.
        has_mask: Whether some ids do not count in the loss and a mask is written.
    """

    folder: Path
    source: str
    id_type: np.dtype
    has_mask: bool
    max_tokens: int = MAX_TOKENS
    records: list[ShardRecord] = field(default_factory=list)
    _files: dict[str, HashedFile] = field(default_factory=dict)
    _n_tokens: int = 0
    _n_documents: int = 0
    _max_id: int = 0

    def add(self, token_ids: NDArray[np.integer], scored: NDArray[np.bool_] | None, origin: Origin) -> None:
        """Write one document."""
        if self._files and self._n_tokens + len(token_ids) > self.max_tokens:
            self._finish()
        if not self._files:
            self._begin()
        self._n_tokens += len(token_ids)
        self._n_documents += 1
        self._max_id = max(self._max_id, int(token_ids.max()))
        self._files["tokens"].write(token_ids.astype(self.id_type).tobytes())
        if scored is not None:
            self._files["scored"].write(scored.tobytes())
        row = np.array((self._n_tokens, origin.file, origin.line, np.frombuffer(origin.sha256, np.uint8)), DOCUMENT)
        self._files["documents"].write(row.tobytes())

    def close(self) -> tuple[ShardRecord, ...]:
        """Finish the last file and describe all of them."""
        if self._files:
            self._finish()
        return tuple(self.records)

    def _begin(self) -> None:
        stem = f"{self.source}.{len(self.records):05}"
        parts = ("tokens", "documents", *(("scored",) if self.has_mask else ()))
        self._files = {part: HashedFile(self.folder / f"{stem}.{part}") for part in parts}

    def _finish(self) -> None:
        files = {part: (file.path.name, file.close()) for part, file in self._files.items()}
        self.records.append(
            ShardRecord(
                self._n_tokens,
                self._n_documents,
                self._max_id,
                dict(files.values()),
            )
        )
        self._files, self._n_tokens, self._n_documents, self._max_id = {}, 0, 0, 0
