"""The vocabulary in a GGUF file <-> Tokenizer, with equal ids.

The file lists pieces, scores and kinds as SentencePiece numbers them. Two things were changed on the way
in and are changed back: pieces cut out of a text before it is divided (user-defined ones) spell the space
as a space, and those that look like markers were made control pieces, though SentencePiece reads them.

Source: ggml-org/llama.cpp, conversion/base.py (`_create_vocab_sentencepiece`) and conversion/gemma.py.
"""

import re
from collections.abc import Collection
from typing import Any

import numpy as np

from gemsmith.errors import ConfigError, GemsmithError, TokenizerError
from gemsmith.tokenizer import Tokenizer
from gemsmith.vocabulary.model_file import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    Vocabulary,
)
from gemsmith.weights.gguf_metadata import Metadata

MAX_PIECES = 300_000  # Gemma 3 has 262,144; as many as can be put together in a second
MODEL = "llama"  # the program's word for a SentencePiece vocabulary
_KEY = "tokenizer.ggml."
_NAMES = {"bos": b"<bos>", "eos": b"<eos>", "padding": b"<pad>", "unknown": b"<unk>"}
_CONTROLS = frozenset({"<bos>", "<eos>", "<pad>"})
_PADDING = re.compile(rb"\[PAD\d+\]|<pad\d+>")
_PADDING_SCORE = -1000.0
# Beginning and end of a text as this package writes them for every Gemma.
_HABITS = {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": False}
# The template's own words; it is never run.
_MARKS = ("<start_of_turn>", "<end_of_turn>", "model")


def special_ids(metadata: Metadata) -> dict[str, Any]:
    """Return bos_id, eos_ids and pad_id of a file's vocabulary.

    Raises:
        TokenizerError: The file has no SentencePiece vocabulary, or calls another piece its <bos>, <eos> or <pad>.
    """
    if metadata.get(f"{_KEY}model") != MODEL:
        raise TokenizerError(
            f"{_KEY}model must be {MODEL!r}, a SentencePiece vocabulary; got {metadata.get(_KEY + 'model')!r} in "
            f"{str(metadata.path)!r}. Take another file of the model."
        )
    pieces = metadata.texts(f"{_KEY}tokens")
    if len(pieces) > MAX_PIECES:
        raise metadata.wrong(f"{_KEY}tokens", f"be at most {MAX_PIECES} pieces", len(pieces))
    found = {}
    for name, text in _NAMES.items():
        token_id = _find(pieces, text, metadata)
        # The end of an answer may be called the end of all text.
        said = metadata.count(f"{_KEY}{name}_token_id", default=token_id)
        if said != token_id and name != "eos":
            raise metadata.wrong(f"{_KEY}{name}_token_id", f"be that of {text.decode()!r}, {token_id}", said)
        found[name] = token_id
    ends = [metadata.count(f"{_KEY}{name}_token_id", default=found["eos"]) for name in ("eos", "eot")]
    return {"bos_id": found["bos"], "pad_id": found["padding"], "eos_ids": tuple(dict.fromkeys([found["eos"], *ends]))}


def read_tokenizer(metadata: Metadata, *, allow_config_keys: Collection[str] = ()) -> Tokenizer:
    """Return the vocabulary of a file.

    Raises:
        TokenizerError: The lists disagree, or are no vocabulary of a Gemma.
        ConfigError: The file wants texts to begin or end in another way; the key is named.
    """
    for name, wanted in _HABITS.items():
        key = f"{_KEY}{name}"
        if metadata.flag(key, default=wanted) != wanted and key not in allow_config_keys:
            raise ConfigError(
                f"{key} must be {wanted}, as for every Gemma; got {not wanted} in {str(metadata.path)!r}. "
                f"To go on all the same, pass --allow-config-key {key} (allow_config_keys=[{key!r}])."
            )
    try:
        return Tokenizer(Vocabulary.from_pieces(_pieces(metadata)))
    except GemsmithError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise TokenizerError(
            f"vocabulary must be one SentencePiece could have; got {error} in {str(metadata.path)!r}. "
            "Take another file of the model."
        ) from error


def render_tokenizer(tokenizer: Tokenizer, *, n_rows: int, eos_ids: tuple[int, ...]) -> dict[str, Any]:
    """Return the keys of a vocabulary, filled up to the rows of the embedding.

    Raises:
        ConfigError: More ids end a text than the format has keys for.
    """
    others = [token_id for token_id in eos_ids if token_id != tokenizer.eos_id]
    if len(others) > 1:
        raise ConfigError(
            f"eos_ids must be <eos> and at most one other to be written as GGUF; got {list(eos_ids)}. "
            "Keep the end of text and the end of a turn."
        )
    pieces = tokenizer.pieces()[:n_rows]
    filling = [Piece(f"[PAD{token_id}]", _PADDING_SCORE, UNUSED) for token_id in range(len(pieces), n_rows)]
    rows = [_written(piece, token_id in tokenizer.control_ids) for token_id, piece in enumerate(pieces)] + filling
    raw = {
        "model": MODEL,
        "pre": "default",
        "tokens": [piece.text.encode() for piece in rows],
        "scores": np.array([piece.score for piece in rows], np.float32),
        "token_type": np.array([piece.kind for piece in rows], np.int32),
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "unknown_token_id": tokenizer.unk_id,
        "padding_token_id": tokenizer.pad_id,
        **({"eot_token_id": others[0]} if others else {}),
        **_HABITS,
    }
    return {f"{_KEY}{name}": value for name, value in raw.items()}


def is_own_template(template: str) -> bool:
    """Tell whether a chat template is written in Gemma 1 to 3's markers; it is only looked at."""
    return all(mark in template for mark in _MARKS)


def _find(pieces: list[bytes], text: bytes, metadata: Metadata) -> int:
    try:
        return pieces.index(text)
    except ValueError:
        raise TokenizerError(
            f"vocabulary must have <bos>, <eos>, <pad> and <unk>; got no {text.decode()} among {len(pieces)} pieces of "
            f"{str(metadata.path)!r}. Take a file of a Gemma model."
        ) from None


def _pieces(metadata: Metadata) -> list[Piece]:
    texts = metadata.texts(f"{_KEY}tokens")
    scores = metadata.numbers(f"{_KEY}scores", "f")
    kinds = metadata.numbers(f"{_KEY}token_type", "iu")
    if not len(texts) == len(scores) == len(kinds):
        raise TokenizerError(
            f"tokens, scores and token_type must be equally many; got {len(texts)}, {len(scores)} and {len(kinds)} in "
            f"{str(metadata.path)!r}. Take another file of the model."
        )
    if not np.isfinite(scores).all():
        raise metadata.wrong(f"{_KEY}scores", "be finite", float(scores[~np.isfinite(scores)][0]))
    n_pieces = len(texts)
    while n_pieces and kinds[n_pieces - 1] == UNUSED and _PADDING.fullmatch(texts[n_pieces - 1]):
        n_pieces -= 1
    listed = zip(texts[:n_pieces], scores.tolist(), kinds.tolist(), strict=False)
    # Nearly every one is an ordinary piece.
    return [Piece(t.decode(), score) if kind == NORMAL else _read(t.decode(), score, kind) for t, score, kind in listed]


def _read(text: str, score: float, kind: int) -> Piece:
    """Return a piece as SentencePiece has it."""
    if kind == BYTE:
        return Piece(text, score, kind)
    if text in _CONTROLS:
        return Piece(text, score, CONTROL)
    if text == "<unk>":
        return Piece(text, score, UNKNOWN)
    if kind in (CONTROL, USER_DEFINED):
        return Piece(text.replace(" ", SPACE), score, USER_DEFINED)
    if kind == UNUSED:
        return Piece(text, score, UNUSED)
    raise ValueError(f"piece {text!r} of the kind {kind}")


def _written(piece: Piece, is_control: bool) -> Piece:
    """Return a piece as the program wants it."""
    if piece.kind != USER_DEFINED:
        return piece
    return Piece(piece.text.replace(SPACE, " "), piece.score, CONTROL if is_control else USER_DEFINED)
