"""Text to shards: deduplicated, split from what is held out, tokenized in parallel, in bounded memory."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gemsmith.data.building import building_beside, put_in_place
from gemsmith.data.dataset import Dataset, open_dataset
from gemsmith.data.forms import TEXT_FORMS
from gemsmith.data.index import FORMAT, INDEX_FILE, Index, SourceRecord, read_index
from gemsmith.data.ordered import ordered_map
from gemsmith.data.readers import SourceFile
from gemsmith.data.shard_writer import MAX_TOKENS, ShardWriter, stored
from gemsmith.data.shards import id_type
from gemsmith.data.source_writer import SourceWriter, facts_of
from gemsmith.data.sources import Source
from gemsmith.data.survey import Fate, Survey, survey, surveyed
from gemsmith.data.tokenize import Chunk, Encoded, check_vocabulary, encode_chunk, start_encoder
from gemsmith.errors import DataError
from gemsmith.tokenizer import MODEL_FILE, Tokenizer
from gemsmith.weights.manifest import FileRecord, remembered_sha256, sha256_of

_say = logging.getLogger("gemsmith")
_CHUNK = 1 << 18  # bytes of text handed to a process at a time
_GRAMS_FILE = "known.npy"


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
    spec: BuildSpec = BuildSpec(),
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
    with building_beside(folder) as building:
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
            put_in_place(folder, building)
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
        work = ordered_map(encode_chunk, self._chunks(seen), n_workers=n_workers, start=start_encoder, start_args=start)
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
            writer = self._writer(source)
            for chunk, encoded in work:
                if not chunk.documents:
                    break
                for document, arrays in zip(chunk.documents, encoded, strict=True):
                    writer.add(document, arrays)
            records[source.name] = writer.close(seen.fates[source.name])
        return records

    def _writer(self, source: Source) -> SourceWriter:
        has_mask, kind = source.form not in TEXT_FORMS, id_type(self.tokenizer.vocab_size)
        shards = ShardWriter(self.folder, source.name, kind, has_mask=has_mask, max_tokens=self.spec.max_tokens)
        inputs = self.inputs[source.name]
        return SourceWriter(source, shards, inputs=inputs, found=self.found, max_leak=self.spec.max_leak)


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
        "sources": [facts_of(source) for source in sources],
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
