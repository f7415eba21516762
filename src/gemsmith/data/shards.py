"""Tokenized sources on disk: one flat array of ids, which of them count in the loss, and where documents begin."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemsmith.errors import DataError

# A document as ids without BOS, and which of them count in the loss.
Tokenized = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Shard:
    """The documents of one source as token ids, without BOS, each ending with what ends a text.

    Attributes:
        token_ids: All documents end to end.
        scored: Whether an id counts as a target.
        offsets: Start of each document, and the end of the last.
        is_chat: Conversations are kept whole; texts may be cut to fit a row.
    """

    token_ids: np.ndarray
    scored: np.ndarray
    offsets: np.ndarray
    is_chat: bool

    @property
    def n_tokens(self) -> int:
        """Number of ids."""
        return len(self.token_ids)

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1


def build_shard(documents: Iterable[Tokenized], *, is_chat: bool) -> Shard:
    """Lay tokenized documents end to end.

    Raises:
        DataError: There are none, or an id does not fit 16 bits.
    """
    ids: list[np.ndarray] = []
    scored: list[np.ndarray] = []
    for token_ids, mask in documents:
        if max(token_ids) >= 2**16:
            raise DataError(f"token ids must be below 65536; got {max(token_ids)}. Use a smaller vocabulary.")
        ids.append(np.array(token_ids, np.uint16))
        scored.append(np.array(mask, np.bool_))
    if not ids:
        raise DataError("source must hold at least one document to train on; got none. Check the file and held_out.")
    offsets = np.cumsum([0, *map(len, ids)])
    return Shard(np.concatenate(ids), np.concatenate(scored), offsets, is_chat)


def cached_shard(folder: Path, name: str, stamp: Mapping[str, object], build: Callable[[], Shard]) -> Shard:
    """Return the shard of a source from `folder`, building it when it is missing or made from something else.

    Args:
        stamp: What the shard depends on; stored beside it and compared.
    """
    info_path = folder / f"{name}.json"
    if info_path.is_file():
        info = json.loads(info_path.read_text())
        if info.pop("is_chat") is not None and info["stamp"] == dict(stamp):
            return _read(folder, name)
    shard = build()
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("token_ids", "scored", "offsets"):
        np.save(folder / f"{name}.{part}.npy", getattr(shard, part))
    info_path.write_text(json.dumps({"stamp": dict(stamp), "is_chat": shard.is_chat}))
    return shard


def _read(folder: Path, name: str) -> Shard:
    arrays = {part: np.load(folder / f"{name}.{part}.npy") for part in ("token_ids", "scored", "offsets")}
    return Shard(**arrays, is_chat=json.loads((folder / f"{name}.json").read_text())["is_chat"])
