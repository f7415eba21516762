"""Small training batches: rows of documents of random ids, and the same documents each alone."""

from collections.abc import Sequence
from dataclasses import fields

import torch

from gemsmith.data.mixture import Batch


def packed(lengths: Sequence[int], *, row: int, seed: int = 0, vocab_size: int = 300, scored: float = 1.0) -> Batch:
    """Return one row of documents with filler at its end.

    Args:
        scored: Share of the targets that count, drawn at random, as in conversations.
    """
    generator = torch.Generator().manual_seed(seed)
    token_ids, targets = torch.randint(1, vocab_size, (2, 1, row), generator=generator)
    counts = torch.rand(1, row, generator=generator) < scored
    documents, positions = torch.full((1, row), len(lengths)), torch.arange(row)[None].clone()
    start = 0
    for number, length in enumerate(lengths):
        documents[0, start : start + length] = number
        positions[0, start : start + length] = torch.arange(length)
        start += length
    counts[:, start:] = False
    return Batch(token_ids, targets, counts, documents, positions)


def alone(batch: Batch) -> list[Batch]:
    """Return every document of every row as a batch of its own, without filler."""
    parts = []
    for row in range(batch.token_ids.shape[0]):
        for document in batch.documents[row].unique():
            here = batch.documents[row] == document
            if batch.loss_mask[row, here].any():
                parts.append(Batch(*(_tensor(batch, name)[row, here][None] for name in _NAMES)))  # pyright: ignore[reportArgumentType]
    return [Batch(p.token_ids, p.targets, p.loss_mask, p.documents * 0, p.positions) for p in parts]


def stacked(batches: Sequence[Batch]) -> Batch:
    """Return the rows of several batches as one."""
    return Batch(*(torch.cat([_tensor(batch, name) for batch in batches]) for name in _NAMES))  # pyright: ignore[reportArgumentType]


def _tensor(batch: Batch, name: str) -> torch.Tensor:
    return getattr(batch, name)


_NAMES = tuple(field.name for field in fields(Batch))[:5]
