"""A 5-gram model over token ids, to measure networks against."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing


@dataclass(frozen=True)
class _Order:
    """Counts of one order: per n-gram, and per context how much it was seen and by how many ids it went on."""

    grams: Keys
    counts: NDArray[np.int64]
    contexts: Keys
    totals: NDArray[np.int64]
    followers: NDArray[np.int64]
    discount: float


@dataclass(frozen=True)
class NgramModel:
    """Interpolated Kneser-Ney over ids; n-grams are found by 64-bit hashes.

    Source: Kneser and Ney 1995; in the interpolated form of Chen and Goodman 1999, section 3, with one
    discount per order estimated from the counts of ones and twos.
    """

    orders: tuple[_Order, ...]
    vocab_size: int
    bos_id: int

    @classmethod
    def train(cls, documents: Iterable[Sequence[int]], *, vocab_size: int, bos_id: int, n: int = 5) -> "NgramModel":
        """Count n-grams of every order up to `n` in documents of ids, each for itself."""
        token_ids, is_target = _lay_out(documents, bos_id, n)
        orders: list[_Order] = []
        higher: NDArray[np.intp] | None = None
        for order in range(n, 0, -1):
            grams = _hash(token_ids, order)[is_target]
            contexts = _hash(token_ids, order - 1, behind=1)[is_target]
            # Lower orders count in how many ways an n-gram was preceded, not how often it was seen.
            if higher is not None:
                grams, contexts = grams[higher], contexts[higher]
            grams, first, counts = np.unique(grams, return_index=True, return_counts=True)
            places = first if higher is None else higher[first]
            orders.append(_order(grams, counts, contexts[first]))
            higher = places.astype(np.intp)
        return cls(tuple(reversed(orders)), vocab_size, bos_id)

    def nll(self, document: Sequence[int]) -> float:
        """Return the summed nats of a document's ids, given BOS."""
        token_ids, is_target = _lay_out([document], self.bos_id, len(self.orders))
        chance = np.full(int(is_target.sum()), 1.0 / self.vocab_size)
        for order, table in enumerate(self.orders, 1):
            grams = _hash(token_ids, order)[is_target]
            contexts = _hash(token_ids, order - 1, behind=1)[is_target]
            place = _find(table.contexts, contexts)
            totals = np.where(place >= 0, table.totals[place], 1)
            followers = np.where(place >= 0, table.followers[place], 0)
            gram = _find(table.grams, grams)
            counts = np.where(gram >= 0, table.counts[gram] - table.discount, 0.0)
            mixed = (counts + table.discount * followers * chance) / totals
            chance = np.where(place >= 0, mixed, chance)
        return float(-np.log(chance).sum())


def _lay_out(documents: Iterable[Sequence[int]], bos_id: int, n: int) -> tuple[Keys, NDArray[np.bool_]]:
    """Lay documents end to end behind n - 1 BOS each, which no context reaches beyond; mark the real ids."""
    parts = [np.concatenate([np.full(n - 1, bos_id), np.asarray(d, np.int64)]) for d in documents]
    marks = [np.arange(len(part)) >= n - 1 for part in parts]
    return np.concatenate(parts).astype(np.uint64), np.concatenate(marks)


def _hash(token_ids: Keys, length: int, *, behind: int = 0) -> Keys:
    """Return at every place a key of the `length` ids that end there, or `behind` places earlier."""
    keys = np.full(len(token_ids), length, np.uint64)
    for back in range(length - 1 + behind, behind - 1, -1):
        ids = np.zeros_like(token_ids)
        ids[back:] = token_ids[: len(token_ids) - back]
        keys = (keys ^ (ids + np.uint64(1))) * _FACTOR
        keys ^= keys >> np.uint64(29)
    return keys


def _order(grams: Keys, counts: NDArray[np.int64], contexts: Keys) -> _Order:
    ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
    discount = ones / (ones + 2 * twos) if ones and twos else 0.5
    keys, inverse = np.unique(contexts, return_inverse=True)
    totals = np.bincount(inverse, weights=counts).astype(np.int64)
    return _Order(grams, counts, keys, totals, np.bincount(inverse), discount)


def _find(table: Keys, keys: Keys) -> NDArray[np.intp]:
    """Return where each key stands in a sorted table, -1 where it does not."""
    place = np.searchsorted(table, keys).clip(max=len(table) - 1)
    return np.where(table[place] == keys, place, -1)
