"""A built dataset: shards mapped from disk, checked by hash, and what was held out of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gemsmith.data.documents import Document
from gemsmith.data.index import Index, ShardRecord, SourceRecord, fingerprint, read_index
from gemsmith.data.mixture import Mixture
from gemsmith.data.shards import DOCUMENT, Joined, Shard, id_type
from gemsmith.data.sources import Source
from gemsmith.errors import DataError
from gemsmith.tokenizer import MODEL_FILE, Tokenizer
from gemsmith.weights.manifest import FileRecord, remembered_sha256, sha256_of


@dataclass(frozen=True)
class Dataset:
    """A folder of shards.

    Attributes:
        fingerprint: SHA-256 over the index, which holds the hash of every file: equal fingerprints, equal data.
    """

    folder: Path
    index: Index
    fingerprint: str

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary it was tokenized with."""
        return Tokenizer.load(self.folder / MODEL_FILE)

    @cached_property
    def shards(self) -> dict[str, Shard]:
        """The shards of every source, mapped from disk."""
        return {name: self._shard(record) for name, record in self.index.sources.items()}

    def mixture(self, sources: Sequence[Source], *, seed: int) -> Mixture:
        """Mix sources of the dataset by their shares.

        Raises:
            DataError: A source is not in the dataset, or was another one when it was built.
        """
        for source in sources:
            self._check_source(source)
        pieces = [self.tokenizer.piece(token_id) for token_id in range(self.tokenizer.vocab_size)]
        breaks = np.array([bool(piece) and not piece.strip("\n") for piece in pieces])
        bos_id, pad_id = self.tokenizer.bos_id, self.tokenizer.pad_id
        return Mixture(sources, self.shards, breaks, seed, bos_id=bos_id, pad_id=pad_id)

    def held_out_documents(self, name: str) -> Iterator[Document]:
        """Yield the documents of a source that are never trained on."""
        (file,) = self._record(name).held_out
        with (self.folder / file).open("rb") as lines:
            for line in lines:
                row = json.loads(line)
                turns = tuple((role, content) for role, content in row["turns"])
                yield Document(row["text"], "", turns, row["file"], row["line"])

    def held_out(self, name: str) -> Iterator[str]:
        """Yield their texts; a conversation gives its turns, one after the other."""
        return (document.content for document in self.held_out_documents(name))

    def check_ids(self, n_pieces: int) -> None:
        """Refuse a model whose vocabulary is smaller than the ids in the shards.

        Raises:
            DataError: It is; shard and document of the first such id are named.
        """
        for source, record in self.index.sources.items():
            for number, shard in enumerate(record.shards):
                if shard.max_id >= n_pieces:
                    part = self._shard(record, only=number)
                    try:
                        part.check_ids(0, part.n_tokens, n_pieces=n_pieces)
                    except DataError as error:
                        raise DataError(
                            f"shard {shard.file('tokens')!r} of {source!r} does not fit: {error}"
                        ) from error

    def _record(self, name: str) -> SourceRecord:
        if name not in self.index.sources:
            raise DataError(
                f"source must be one of the dataset's, {', '.join(self.index.sources)}; got {name!r}. "
                "Build the dataset again with this recipe."
            )
        return self.index.sources[name]

    def _check_source(self, source: Source) -> None:
        for key, built in self._record(source.name).facts.items():
            asked = getattr(source, key)
            asked = None if asked == float("inf") else list(asked) if isinstance(asked, tuple) else asked
            if asked != built:
                raise DataError(
                    f"{key} of source {source.name!r} must be {built!r}, as when the dataset was built; got {asked!r}. "
                    "Build the dataset again with this recipe."
                )

    def _shard(self, record: SourceRecord, *, only: int | None = None) -> Shard:
        parts = record.shards if only is None else record.shards[only : only + 1]
        kind = id_type(self.index.n_pieces)
        token_ids = Joined([self._map(part, "tokens", kind) for part in parts])
        documents = [self._map(part, "documents", DOCUMENT) for part in parts]
        starts = np.cumsum([0, *(part.n_tokens for part in parts)])
        ends = [table["end"] + start for table, start in zip(documents, starts, strict=False)]
        offsets = np.concatenate([np.zeros(1, np.int64), *ends])
        scored = (
            Joined([self._map(part, "scored", np.dtype(np.bool_)) for part in parts])
            if record.is_chat
            else np.broadcast_to(np.True_, int(starts[-1]))
        )
        return Shard(token_ids, scored, offsets, record.is_chat, Joined(documents), tuple(record.inputs))

    def _map(self, shard: ShardRecord, part: str, kind: np.dtype) -> np.ndarray:
        return np.memmap(self.folder / shard.file(part), kind, mode="r")


def open_dataset(folder: Path, *, is_fresh: bool = False) -> Dataset:
    """Open a dataset, every file compared with the hash in its index.

    A file's hash is computed once and remembered by device, inode, size and time of change, so that
    opening large datasets is quick; damage that leaves all of these as they are needs `is_fresh`.

    Args:
        is_fresh: Compute every hash anew.

    Raises:
        DataError: The folder holds no dataset, or a file is missing or not what was written.
    """
    index = read_index(folder)
    hash_of = sha256_of if is_fresh else remembered_sha256
    files = {MODEL_FILE: index.vocabulary} | {n: r for s in index.sources.values() for n, r in s.files.items()}
    for name, record in files.items():
        _check_file(folder / name, record, hash_of=hash_of)
    dataset = Dataset(folder, index, fingerprint(folder))
    dataset.check_ids(index.n_pieces)
    return dataset


def _check_file(path: Path, record: FileRecord, *, hash_of: Callable[[Path], str]) -> None:
    remedy = f"Copy the file again, or remove the folder {str(path.parent)!r} and build the dataset again."
    if not path.is_file():
        raise DataError(f"dataset must hold every file of its index; got no {path.name!r}. {remedy}")
    n_bytes = path.stat().st_size
    if n_bytes != record.n_bytes:
        raise DataError(f"shard {path.name!r} must hold {record.n_bytes} bytes; got {n_bytes}. {remedy}")
    found = hash_of(path)
    if found != record.sha256:
        raise DataError(f"shard {path.name!r} must have the SHA-256 {record.sha256}; got {found}. {remedy}")
