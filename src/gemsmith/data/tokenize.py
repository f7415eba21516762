"""Documents into token ids and loss masks, in whichever process is free."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemsmith.chat import END_OF_TURN, START_OF_TURN, Turn, compile_chat
from gemsmith.data.documents import Document
from gemsmith.data.forms import TEXT_FORMS
from gemsmith.data.ngrams import document_grams, found_in
from gemsmith.data.shards import Tokenized, id_type
from gemsmith.data.sources import Source
from gemsmith.errors import ChatError, DataError
from gemsmith.tokenizer import Tokenizer


def tokenize(document: Document, tokenizer: Tokenizer, *, family: str) -> Tokenized:
    """Return a document's ids without BOS, and which of them count in the loss.

    A text counts in full and ends with EOS; of a conversation only the answers count, with the
    terminators that end them.
    """
    if not document.turns:
        token_ids = [*tokenizer.encode(document.text), tokenizer.eos_id]
        return token_ids, [True] * len(token_ids)
    chat = compile_chat([Turn(role, content) for role, content in document.turns], tokenizer, family=family)
    return list(chat.token_ids[1:]), list(chat.loss_mask[1:])


def check_vocabulary(tokenizer: Tokenizer, sources: Sequence[Source]) -> None:
    """Refuse a vocabulary that cannot write the conversations of these sources; texts it always can.

    Raises:
        DataError: A turn marker has no piece.
    """
    chat = next((source.name for source in sources if source.form not in TEXT_FORMS), None)
    for piece in (START_OF_TURN, END_OF_TURN):
        token_id = tokenizer.id_of(piece)
        if chat is not None and (token_id is None or token_id not in tokenizer.control_ids):
            raise DataError(
                f"vocabulary must have {piece!r} among its control pieces for the conversations of source {chat!r}; "
                "got none. Use the vocabulary of a Gemma 1, 2 or 3 model, or leave the source out."
            )


@dataclass(frozen=True)
class Chunk:
    """Some documents of a source in a row, and which of them are held out."""

    documents: tuple[Document, ...]
    is_held_out: tuple[bool, ...]


@dataclass(frozen=True)
class Encoded:
    """A document as arrays.

    Attributes:
        scored: Absent where every id counts.
        n_grams: 13-grams of the text that were looked up.
        n_known: How many of them held-out documents have.
        found: Which of the held-out grams those are.
    """

    token_ids: NDArray[np.integer]
    scored: NDArray[np.bool_] | None
    n_grams: int
    n_known: int
    found: NDArray[np.intp]


@dataclass(frozen=True)
class Encoder:
    """What a process needs to encode documents.

    Attributes:
        known: Sorted 13-grams of held-out documents.
        rarity: One gram in so many was kept there.
    """

    tokenizer: Tokenizer
    family: str
    known: NDArray[np.uint64]
    rarity: int

    def encode(self, document: Document) -> Encoded:
        """Encode one document and look its 13-grams up.

        Raises:
            DataError: It is a conversation the template cannot express; its place is named.
        """
        try:
            token_ids, scored = tokenize(document, self.tokenizer, family=self.family)
        except ChatError as error:
            raise DataError(
                f"conversation must fit the template; got one that does not in {document.place}. {error}"
            ) from error
        grams = document_grams(document) if self.known.size else self.known
        if self.rarity > 1:
            grams = grams[grams % np.uint64(self.rarity) == 0]
        found, n_known = found_in(self.known, grams)
        mask = np.array(scored, np.bool_) if document.turns else None
        return Encoded(np.array(token_ids, id_type(self.tokenizer.vocab_size)), mask, grams.size, n_known, found)


_encoder: Encoder | None = None


def start_encoder(vocabulary: Path, family: str, known: Path, rarity: int) -> None:
    """Make a process ready for `encode_chunk`."""
    global _encoder
    grams = np.load(known, mmap_mode="r") if known.stat().st_size > _NPY_HEADER else np.empty(0, np.uint64)
    _encoder = Encoder(Tokenizer.load(vocabulary), family, grams, rarity)


def encode_chunk(chunk: Chunk) -> list[Encoded | None]:
    """Encode what may be trained on; held-out documents give None."""
    assert _encoder is not None, "start_encoder comes first"
    pairs = zip(chunk.documents, chunk.is_held_out, strict=True)
    return [None if is_held_out else _encoder.encode(document) for document, is_held_out in pairs]


_NPY_HEADER = 128  # bytes; a mapping of no elements is refused by the system
