"""index.json of a dataset: what it was made from, what it holds, and the SHA-256 of every file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from gemsmith.errors import DataError
from gemsmith.weights.manifest import FileRecord

INDEX_FILE = "index.json"
FORMAT = 1


class Origin(NamedTuple):
    """Where a document came from: number of the file, its line (0: the whole file), hash of its text."""

    file: int
    line: int
    sha256: bytes


@dataclass
class Counts:
    """What became of a source.

    Attributes:
        n_rows: Rows, or files that are one document each.
        n_empty: Rows that gave no text.
        n_binary: Files passed over because they are no text.
        n_duplicates: Documents that an earlier one equals but for case and spaces.
        n_held_out: Documents never trained on.
        n_covered: Of those, how many share more than half of their 13-grams with training texts.
        n_touched: Training documents with at least one 13-gram of a held-out one, dropped ones included.
        n_leaked: Documents dropped because too many of their 13-grams are held out.
        n_documents: Documents to train on.
        n_tokens: Their ids, with what ends each.
        n_scored: Of those, how many count in the loss.
        n_bytes: Their texts in UTF-8.
    """

    n_rows: int = 0
    n_empty: int = 0
    n_binary: int = 0
    n_duplicates: int = 0
    n_held_out: int = 0
    n_covered: int = 0
    n_touched: int = 0
    n_leaked: int = 0
    n_documents: int = 0
    n_tokens: int = 0
    n_scored: int = 0
    n_bytes: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Counts)))


@dataclass(frozen=True)
class ShardRecord:
    """One shard: a file of ids, its table of documents and, for conversations, the mask of the loss."""

    n_tokens: int
    n_documents: int
    max_id: int
    files: Mapping[str, FileRecord]

    def file(self, part: str) -> str:
        """Return the name of the file with "tokens", "documents" or "scored"."""
        return next(name for name in self.files if name.endswith(f".{part}"))


@dataclass(frozen=True)
class SourceRecord:
    """One source of a dataset.

    Attributes:
        facts: Its part of the recipe: repository, commit, licence, form and so on.
        inputs: The files it was read from; documents name them by number.
        held_out: Name, length and hash of the file of its held-out documents.
    """

    facts: Mapping[str, Any]
    inputs: Mapping[str, FileRecord]
    is_chat: bool
    counts: Counts
    shards: tuple[ShardRecord, ...]
    held_out: Mapping[str, FileRecord]

    @property
    def files(self) -> dict[str, FileRecord]:
        """All files of the source in the dataset."""
        return {name: file for shard in self.shards for name, file in shard.files.items()} | dict(self.held_out)


@dataclass(frozen=True)
class Index:
    """A whole index.

    Attributes:
        stamp: Hash of everything the dataset is a function of.
        vocabulary: SHA-256 of tokenizer.model.
        n_pieces: Ids lie below it.
    """

    stamp: str
    vocabulary: FileRecord
    n_pieces: int
    sources: Mapping[str, SourceRecord]

    @property
    def totals(self) -> Counts:
        """The counts of all sources together."""
        return sum((source.counts for source in self.sources.values()), Counts())

    def render(self) -> str:
        """Return the text of index.json; a function of inputs and settings alone."""
        return json.dumps({"format": FORMAT, **asdict(self), "totals": asdict(self.totals)}, indent=1) + "\n"


def read_index(folder: Path) -> Index:
    """Read the index of a dataset.

    Raises:
        DataError: The folder holds none, or it cannot be understood.
    """
    path = folder / INDEX_FILE
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"dataset must be a folder with {INDEX_FILE}; got {str(folder)!r}, which has none. "
            "Build one with gemsmith data build."
        ) from error
    except ValueError as error:
        raise _damaged(path, error) from error
    try:
        if raw["format"] != FORMAT:
            raise DataError(
                f"format must be {FORMAT}; got {raw['format']!r} in {str(path)!r}. Build the dataset again."
            )
        sources = {name: _source(row) for name, row in raw["sources"].items()}
        return Index(raw["stamp"], FileRecord(**raw["vocabulary"]), raw["n_pieces"], sources)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of a dataset's index, and so of everything in it."""
    return hashlib.sha256((folder / INDEX_FILE).read_bytes()).hexdigest()


def _source(row: Mapping[str, Any]) -> SourceRecord:
    shards = tuple(
        ShardRecord(shard["n_tokens"], shard["n_documents"], shard["max_id"], _files(shard["files"]))
        for shard in row["shards"]
    )
    counts, held_out = Counts(**row["counts"]), _files(row["held_out"])
    return SourceRecord(row["facts"], _files(row["inputs"]), row["is_chat"], counts, shards, held_out)


def _files(rows: Mapping[str, Any]) -> dict[str, FileRecord]:
    return {name: FileRecord(**row) for name, row in rows.items()}


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{INDEX_FILE} must be what gemsmith data build wrote; got {error!r} in {str(path)!r}. Build the dataset again."
    )
