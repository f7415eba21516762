"""Text to shards: deduplicated, split from what is held out, tokenized in parallel, in bounded memory."""

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gemsmith.data.dataset import Dataset, open_dataset
from gemsmith.data.documents import Document
from gemsmith.data.forms import TEXT_FORMS
from gemsmith.data.index import FORMAT, INDEX_FILE, Counts, Index, Origin, SourceRecord, read_index
from gemsmith.data.ordered import ordered_map
from gemsmith.data.readers import SourceFile
from gemsmith.data.shard_writer import MAX_TOKENS, HashedFile, ShardWriter, stored
from gemsmith.data.shards import id_type
from gemsmith.data.sources import Source
from gemsmith.data.survey import Fate, Survey, survey, surveyed
from gemsmith.data.tokenize import Chunk, Encoded, check_vocabulary, encode_chunk, start_encoder
from gemsmith.errors import DataError
from gemsmith.tokenizer import MODEL_FILE, Tokenizer
from gemsmith.weights.manifest import FileRecord, remembered_sha256, sha256_of

_say = logging.getLogger("gemsmith")
_CHUNK = 1 << 18  # bytes of text handed to a process at a time
_GRAMS_FILE = "known.npy"
# What a recipe may change without another dataset.
_FREE_FACTS = ("share", "late_share", "max_epochs")


@dataclass(frozen=True)
class BuildSpec:
    """What a dataset depends on beside its sources and vocabulary.

    Attributes:
        family: Whose template conversations are written in.
        max_leak: Largest share of a training document's 13-grams that held-out documents may have.
        max_tokens: Of one shard.
    """

    family: str = "gemma2"
    max_leak: float = 0.1
    max_tokens: int = MAX_TOKENS


def build_dataset(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    *,
    data_dir: Path,
    folder: Path,
    n_workers: int = 1,
    spec: BuildSpec = BuildSpec(),  # noqa: B008 (frozen)
) -> Dataset:
    """Tokenize sources into `folder`, or open what was built there from the same inputs.

    The folder's contents are a function of sources, texts, vocabulary and spec, never of `n_workers`. A
    dataset of other inputs is replaced when the new one is whole.

    Args:
        data_dir: Folder the sources' paths start from.
        n_workers: Processes that tokenize; 0 or 1 is this one.

    Raises:
        DataError: A source or the vocabulary cannot be used, or the folder holds something else.
        StorageError: The disk is full or not writable.
    """
    _check_names(sources)
    check_vocabulary(tokenizer, sources)
    files = {source.name: source.files(data_dir) for source in sources}
    inputs = {name: _hashed(found) for name, found in files.items()}
    with _building(folder) as building:
        tokenizer.save(building)
        vocabulary = FileRecord((building / MODEL_FILE).stat().st_size, sha256_of(building / MODEL_FILE))
        stamp = _stamp(sources, inputs, vocabulary, spec)
        if (folder / INDEX_FILE).is_file():
            if read_index(folder).stamp == stamp:
                return open_dataset(folder)
            _say.info("the dataset in %s was made from something else; it is built anew", folder)
        build = _Build(sources, files, inputs, building, tokenizer, spec)
        index = Index(stamp, vocabulary, tokenizer.vocab_size, build.run(n_workers))
        with stored(folder):
            (building / _GRAMS_FILE).unlink()
            (building / INDEX_FILE).write_text(index.render())
            _replace(folder, building)
    return open_dataset(folder)


@dataclass
class _Build:
    """One build under way."""

    sources: Sequence[Source]
    files: Mapping[str, Sequence[SourceFile]]
    inputs: Mapping[str, Mapping[str, FileRecord]]
    folder: Path
    tokenizer: Tokenizer
    spec: BuildSpec
    found: np.ndarray = field(default_factory=lambda: np.empty(0, np.bool_))

    def run(self, n_workers: int) -> dict[str, SourceRecord]:
        """Survey all sources, then write each."""
        _say.info("reading %d sources", len(self.sources))
        seen = survey(self.sources, self.files)
        known = seen.grams.unique(seen.stays)
        self.found = np.zeros(known.size, np.bool_)
        with stored(self.folder):
            np.save(self.folder / _GRAMS_FILE, known)
        start = (self.folder, self.spec.family, self.folder / _GRAMS_FILE, seen.grams.rarity)
        work = ordered_map(
            encode_chunk, self._chunks(seen), n_workers=n_workers, start=start_encoder, start_args=start
        )
        records = self._write(seen, work)
        covered = seen.owners[seen.stays][seen.grams.covered(known, self.found, seen.stays)]
        for number, source in enumerate(self.sources):
            records[source.name].counts.n_covered = int((covered == number).sum())
        return records

    def _chunks(self, seen: Survey) -> Iterator[Chunk]:
        """Yield documents to train on and held-out ones; each source ends with a chunk of its own."""
        for source in self.sources:
            documents, n_bytes = [], 0
            for document, fate in surveyed(source, self.files[source.name], seen.fates[source.name]):
                if fate <= Fate.HELD_OUT:
                    documents.append((document, fate == Fate.HELD_OUT))
                    n_bytes += document.n_bytes
                if n_bytes >= _CHUNK:
                    yield Chunk(*zip(*documents, strict=True))
                    documents, n_bytes = [], 0
            if documents:
                yield Chunk(*zip(*documents, strict=True))
            yield Chunk((), ())

    def _write(self, seen: Survey, work: Iterator[tuple[Chunk, list[Encoded | None]]]) -> dict[str, SourceRecord]:
        records = {}
        for source in self.sources:
            writer = _SourceWriter(source, self)
            for chunk, encoded in work:
                if not chunk.documents:
                    break
                for document, arrays in zip(chunk.documents, encoded, strict=True):
                    writer.add(document, arrays)
            records[source.name] = writer.close(seen.fates[source.name])
        return records


class _SourceWriter:
    """Writes what becomes of one source."""

    def __init__(self, source: Source, build: _Build) -> None:
        self.source, self.build, self.counts = source, build, Counts()
        self.numbers = {file.name: number for number, file in enumerate(build.files[source.name])}
        self.is_chat = source.form not in TEXT_FORMS
        kind = id_type(build.tokenizer.vocab_size)
        max_tokens = build.spec.max_tokens
        self.writer = ShardWriter(build.folder, source.name, kind, has_mask=self.is_chat, max_tokens=max_tokens)
        self.held_out = HashedFile(build.folder / f"{source.name}.held_out.jsonl")

    def add(self, document: Document, arrays: Encoded | None) -> None:
        """Write a document where it belongs: to the held-out ones, to a shard, or nowhere if it leaks."""
        if arrays is None:
            self.held_out.write(_held_out_line(document))
            return
        self.counts.n_touched += bool(arrays.n_known)
        if arrays.n_known > self.build.spec.max_leak * arrays.n_grams:
            self.counts.n_leaked += 1
            return
        self.build.found[arrays.found] = True
        self.counts.n_documents += 1
        self.counts.n_tokens += arrays.token_ids.size
        self.counts.n_scored += arrays.token_ids.size if arrays.scored is None else int(arrays.scored.sum())
        self.counts.n_bytes += document.n_bytes
        origin = Origin(self.numbers[document.file], document.line, document.sha256())
        self.writer.add(arrays.token_ids, arrays.scored, origin)

    def close(self, fates: np.ndarray) -> SourceRecord:
        """Finish the files of the source.

        Raises:
            DataError: Nothing is left to train on.
        """
        shards, held_out = self.writer.close(), self.held_out.close()
        counts = replace(
            self.counts,
            n_rows=len(fates),
            n_empty=int((fates == Fate.EMPTY).sum()),
            n_binary=int((fates == Fate.BINARY).sum()),
            n_duplicates=int((fates == Fate.DUPLICATE).sum()),
            n_held_out=int((fates == Fate.HELD_OUT).sum()),
        )
        name = self.source.name
        if not counts.n_documents:
            lost = {k: v for k, v in asdict(counts).items() if v} or "an empty file"
            raise DataError(
                f"source must hold at least one document to train on; got none in {name!r} from "
                f"{self.source.path!r} ({lost}). Check the file, its form and held_out."
            )
        _say.info("%s: %s documents, %s tokens", name, f"{counts.n_documents:,}", f"{counts.n_tokens:,}")
        return SourceRecord(
            _facts(self.source), self.build.inputs[name], self.is_chat, counts, shards,
            {self.held_out.path.name: held_out},
        )  # fmt: skip


def _held_out_line(document: Document) -> bytes:
    row = {
        "text": document.text,
        "turns": document.turns,
        "file": document.file,
        "line": document.line,
        "sha256": document.sha256().hex(),
    }
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _facts(source: Source) -> dict[str, object]:
    facts = {name: value for name, value in asdict(source).items() if name not in _FREE_FACTS}
    return {name: None if value == float("inf") else value for name, value in facts.items()}


def _hashed(files: Sequence[SourceFile]) -> dict[str, FileRecord]:
    # The memory of hashes is small; a tree of small files is read anew.
    hash_of = remembered_sha256 if len(files) == 1 else sha256_of
    return {file.name: FileRecord(file.path.stat().st_size, hash_of(file.path)) for file in files}


def _stamp(
    sources: Sequence[Source],
    inputs: Mapping[str, Mapping[str, FileRecord]],
    vocabulary: FileRecord,
    spec: BuildSpec,
) -> str:
    facts = {
        "format": FORMAT,
        "writer": version("gemsmith"),
        "sources": [_facts(source) for source in sources],
        "inputs": {name: {file: r.sha256 for file, r in files.items()} for name, files in inputs.items()},
        "vocabulary": vocabulary.sha256,
        "spec": asdict(spec),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_names(sources: Sequence[Source]) -> None:
    names = [source.name for source in sources]
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice or not names:
        raise DataError(
            f"sources must have names of their own; got {twice[0] if twice else 'no source'!r}"
            f"{' twice' if twice else ''}. Correct the recipe."
        )


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that no other build has, and remove what is left of it.

    Raises:
        DataError: Another process is building there, or `folder` holds something that is no dataset.
    """
    if folder.exists() and not (folder / INDEX_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"folder must be empty or hold a dataset; got {str(folder)!r}, which holds something else. "
            "Choose another folder or remove what is in it."
        )
    building = folder.with_name(f".{folder.name}.building")
    with stored(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f"a dataset must be built by one process at a time; got a second one for {str(folder)!r}. Wait for it."
            ) from error
        try:
            shutil.rmtree(building, ignore_errors=True)
            with stored(folder):
                building.mkdir()
            yield building
        finally:
            shutil.rmtree(building, ignore_errors=True)
            Path(lock.name).unlink(missing_ok=True)


def _replace(folder: Path, building: Path) -> None:
    """Put a whole dataset in the place of an older one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    building.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
