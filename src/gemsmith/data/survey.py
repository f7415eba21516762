"""The first pass over all sources: which documents are held out, which repeat an earlier one."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from gemsmith.data.documents import Document, held_out
from gemsmith.data.ngrams import HeldOutGrams
from gemsmith.data.readers import SourceFile
from gemsmith.data.sources import Source, all_documents
from gemsmith.errors import DataError


class Fate(IntEnum):
    """What becomes of a document."""

    TRAINED, HELD_OUT, DUPLICATE, EMPTY, BINARY = range(5)


@dataclass(frozen=True)
class Survey:
    """What the first pass found.

    Attributes:
        fates: For each source, the Fate of its documents in order.
        grams: 13-grams of everything that hashes to the held-out side, repeated documents included.
        stays: For each document in `grams`, whether it is no repetition.
        owners: And the number of its source.
    """

    fates: Mapping[str, NDArray[np.uint8]]
    grams: HeldOutGrams
    stays: NDArray[np.bool_]
    owners: NDArray[np.intp]


def survey(sources: Sequence[Source], files: Mapping[str, Sequence[SourceFile]]) -> Survey:
    """Read every source once and decide about each of its documents.

    Of documents that are equal but for case and spaces the first stays, in the order of sources, files and
    rows. Memory holds 9 bytes a document and the grams.
    """
    alike, fates, owners, grams, ends = array("Q"), bytearray(), array("q"), HeldOutGrams(), []
    for number, source in enumerate(sources):
        for document in all_documents(source, files[source.name]):
            fate = _first_fate(document, source)
            fates.append(fate)
            alike.append(0 if fate >= Fate.EMPTY else document.alike())
            if fate == Fate.HELD_OUT:
                grams.add(document)
                owners.append(number)
        ends.append(len(fates))
    decided = np.frombuffer(fates, np.uint8).copy() if fates else np.empty(0, np.uint8)
    was_held_out = decided == Fate.HELD_OUT
    decided[_repeats(np.array(alike, np.uint64), decided)] = Fate.DUPLICATE
    parts = np.split(decided, ends[:-1])
    by_source = {source.name: part for source, part in zip(sources, parts, strict=True)}
    return Survey(by_source, grams, decided[was_held_out] == Fate.HELD_OUT, np.array(owners, np.intp))


def surveyed(source: Source, files: Sequence[SourceFile], fates: NDArray[np.uint8]) -> Iterator[tuple[Document, Fate]]:
    """Yield the documents of a source again, each with its fate.

    Raises:
        DataError: The source has changed since it was surveyed.
    """
    number = -1
    for number, document in enumerate(all_documents(source, files)):
        if number >= len(fates) or (_first_fate(document, source) == Fate.EMPTY) != (fates[number] == Fate.EMPTY):
            break
        yield document, Fate(fates[number])
    else:
        if number + 1 == len(fates):
            return
    raise DataError(
        f"source {source.name!r} must not change while it is read; got other documents the second time. Build again."
    )


def _first_fate(document: Document, source: Source) -> Fate:
    if document.is_binary:
        return Fate.BINARY
    if document.is_empty:
        return Fate.EMPTY
    return Fate.HELD_OUT if held_out(document.key, source.held_out) else Fate.TRAINED


def _repeats(alike: NDArray[np.uint64], fates: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return the places of documents that an earlier one equals."""
    places = np.flatnonzero(fates < Fate.EMPTY)
    if not places.size:
        return places
    _, first = np.unique(alike[places], return_index=True)
    return np.delete(places, first)
