"""Writes one source of a dataset: what is trained on, what is held out, and what became of the rest."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from gemsmith.data.documents import Document
from gemsmith.data.index import Counts, Origin, SourceRecord
from gemsmith.data.shard_writer import HashedFile, ShardWriter
from gemsmith.data.sources import Source
from gemsmith.data.survey import Fate
from gemsmith.data.tokenize import Encoded
from gemsmith.errors import DataError
from gemsmith.weights.manifest import FileRecord

_say = logging.getLogger("gemsmith")
# What a recipe may change without another dataset.
_FREE_FACTS = ("share", "late_share", "max_epochs")


class SourceWriter:
    """Writes what becomes of one source.

    Attributes:
        found: For each 13-gram of held-out documents, whether a document that is trained on has it; shared by
            the writers of a build.
    """

    def __init__(
        self,
        source: Source,
        shards: ShardWriter,
        *,
        inputs: Mapping[str, FileRecord],
        found: NDArray[np.bool_],
        max_leak: float,
    ) -> None:
        self.source, self.shards, self.inputs, self.found, self.max_leak = source, shards, inputs, found, max_leak
        self.counts = Counts()
        self.numbers = {name: number for number, name in enumerate(inputs)}
        self.held_out = HashedFile(shards.folder / f"{source.name}.held_out.jsonl")

    def add(self, document: Document, arrays: Encoded | None) -> None:
        """Write a document where it belongs: to the held-out ones, to a shard, or nowhere if it leaks."""
        if arrays is None:
            self.held_out.write(_held_out_line(document))
            return
        self.counts.n_touched += bool(arrays.n_known)
        if arrays.n_known > self.max_leak * arrays.n_grams:
            self.counts.n_leaked += 1
            return
        self.found[arrays.found] = True
        self.counts.n_documents += 1
        self.counts.n_tokens += arrays.token_ids.size
        self.counts.n_scored += arrays.token_ids.size if arrays.scored is None else int(arrays.scored.sum())
        self.counts.n_bytes += document.n_bytes
        origin = Origin(self.numbers[document.file], document.line, document.sha256())
        self.shards.add(arrays.token_ids, arrays.scored, origin)

    def close(self, fates: np.ndarray) -> SourceRecord:
        """Finish the files of the source.

        Raises:
            DataError: Nothing is left to train on.
        """
        shards, held_out = self.shards.close(), self.held_out.close()
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
            facts_of(self.source), self.inputs, self.shards.has_mask, counts, shards,
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


def facts_of(source: Source) -> dict[str, object]:
    """Return what a dataset depends on: all a recipe says of a source but how much of it is seen."""
    facts = {name: value for name, value in asdict(source).items() if name not in _FREE_FACTS}
    return {name: None if value == float("inf") else value for name, value in facts.items()}
