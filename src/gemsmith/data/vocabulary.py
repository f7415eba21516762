"""The vocabulary of a dataset: one that is given, or one learned from a sample of the sources."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gemsmith.data.sources import Source, sample_texts
from gemsmith.errors import DataError
from gemsmith.tokenizer import MODEL_FILE, Tokenizer, train_tokenizer

_STAMP_FILE = "learned.json"


@dataclass(frozen=True)
class Learning:
    """How a vocabulary is learned.

    Attributes:
        size: Number of pieces.
        megabytes: Text to learn from, taken from the sources by their shares.
    """

    size: int
    megabytes: float


def given_vocabulary(path: Path, *, size: int | None = None) -> Tokenizer:
    """Return a vocabulary from a file or folder.

    Raises:
        DataError: It has not the size that is asked for.
    """
    tokenizer = Tokenizer.load(path)
    if size is not None and tokenizer.vocab_size != size:
        raise DataError(
            f"vocabulary must have the {size} pieces the recipe says; got {tokenizer.vocab_size} in {str(path)!r}. "
            "Correct size or path."
        )
    return tokenizer


def learned_vocabulary(sources: Sequence[Source], data_dir: Path, *, folder: Path, learning: Learning) -> Tokenizer:
    """Return the vocabulary in `folder`, learning it first where there is none or one learned otherwise.

    A tokenizer.model that someone put there, without the note of how it was learned, is taken as it is.
    """
    stamp, note = _stamp(sources, learning), folder / _STAMP_FILE
    is_known = (folder / MODEL_FILE).is_file() and (not note.is_file() or note.read_text() == stamp)
    if not is_known:
        texts = sample_texts(sources, data_dir, megabytes=learning.megabytes)
        note.unlink(missing_ok=True)
        train_tokenizer(texts, vocab_size=learning.size).save(folder)
        note.write_text(stamp)
    return Tokenizer.load(folder)


def _stamp(sources: Sequence[Source], learning: Learning) -> str:
    facts = {"learning": asdict(learning), "sources": [asdict(source) for source in sources]}
    return json.dumps({"sha256": hashlib.sha256(json.dumps(facts).encode()).hexdigest(), **asdict(learning)}) + "\n"
