"""Runs of 13 words as 64-bit numbers, and which of them held-out documents contain.

Source: 13 words are the length by which GPT-3's test sets were searched for in its training texts,
arXiv:2005.14165, appendix C.
"""

import re
import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gemsmith.data.documents import Document

N_WORDS = 13
_WORD = re.compile(r"\w+")
# Odd numbers without a pattern: the golden ratio's and two of splitmix64's.
_STEP, _MIX_A, _MIX_B = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

Grams = NDArray[np.uint64]


def document_grams(document: Document) -> Grams:
    """Return the grams of a document; none reaches over from one turn into the next."""
    return np.concatenate([word_grams(text) for text in document.parts])


def word_grams(text: str) -> Grams:
    """Return a number for each run of 13 words, case and punctuation left out; equal runs, equal numbers."""
    codes = [zlib.crc32(word.encode()) for word in _WORD.findall(text.casefold())]
    if len(codes) < N_WORDS:
        return np.empty(0, np.uint64)
    words = _mixed(np.array(codes, np.uint64) + _STEP)
    total = np.zeros(len(words) - N_WORDS + 1, np.uint64)
    for place in range(N_WORDS):
        total = total * _STEP + words[place : place + len(total)]
    return _mixed(total)


def _mixed(numbers: Grams) -> Grams:
    """Spread the bits of each number over all 64.

    Source: the finalizer of splitmix64, Steele, Lea and Flood, OOPSLA 2014.
    """
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _MIX_A
    numbers = (numbers ^ (numbers >> np.uint64(27))) * _MIX_B
    return numbers ^ (numbers >> np.uint64(31))


@dataclass
class HeldOutGrams:
    """The grams of held-out documents, in bounded memory.

    Beyond `max_grams` only grams that are multiples of 2, 4, 8, ... are kept, the same ones in every text,
    so that shares of a document stay estimates without a bias.

    Attributes:
        ends: After how many grams each document ends, in the order they came.
        rarity: One gram in so many is kept.
    """

    max_grams: int = 1 << 24
    parts: list[Grams] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    rarity: int = 1

    def add(self, document: Document) -> None:
        """Take in one document."""
        part = self.sampled(document_grams(document))
        self.parts.append(part)
        self.ends.append(part.size + (self.ends[-1] if self.ends else 0))
        while self.ends[-1] > self.max_grams:
            self.rarity *= 2
            self.parts = [self.sampled(part) for part in self.parts]
            self.ends = np.cumsum([part.size for part in self.parts]).tolist()

    def sampled(self, grams: Grams) -> Grams:
        """Return those of some grams that are kept."""
        return grams if self.rarity == 1 else grams[grams % np.uint64(self.rarity) == 0]

    def unique(self, is_kept: NDArray[np.bool_]) -> Grams:
        """Return the grams of the documents that stay held out, sorted, each once."""
        kept = [part for part, stays in zip(self.parts, is_kept, strict=True) if stays]
        return np.unique(np.concatenate(kept)) if kept else np.empty(0, np.uint64)

    def covered(self, known: Grams, found: NDArray[np.bool_], is_kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tell of each document that stays whether more than half of its grams were found.

        Args:
            known: What `unique` returned.
            found: For each of them, whether a training text has it.
        """
        kept = [part for part, stays in zip(self.parts, is_kept, strict=True) if stays]
        return np.array([bool(p.size) and bool(found[np.searchsorted(known, p)].mean() > 0.5) for p in kept], np.bool_)


def found_in(known: Grams, grams: Grams) -> tuple[NDArray[np.intp], int]:
    """Return which of the sorted `known` grams a document has, and how many of its own are among them."""
    if not known.size or not grams.size:
        return np.empty(0, np.intp), 0
    places = np.searchsorted(known, grams).clip(max=known.size - 1)
    hits = places[known[places] == grams]
    return np.unique(hits), hits.size
