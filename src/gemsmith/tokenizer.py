"""Text to token ids and back, with a vocabulary in SentencePiece's or Hugging Face's file format.

Plain text never becomes a control id. Gemma's vocabulary holds `<end_of_turn>` and its like as
user-defined pieces, which SentencePiece cuts out of any text that spells them; whoever writes them
into a chat could then end a turn. So text is encoded by a second processor over the same vocabulary
in which those pieces are control pieces, reachable by id only.

Ids equal sentencepiece's, its one loss included: it writes a space as U+2581, so that character
comes back as a space. `<bos>`, `<eos>`, `<pad>` and `<unk>` are read from no text, even with `control`.
"""

import codecs
import contextlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import sentencepiece

from gemsmith.config import ModelConfig
from gemsmith.errors import StorageError, TokenizerError
from gemsmith.vocabulary.model_file import BYTE, CONTROL, NORMAL, SPACE, USER_DEFINED, Piece, Vocabulary, spells
from gemsmith.vocabulary.tokenizer_json import TokenizerJson

_T = TypeVar("_T")

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"

# User-defined pieces that are text: runs of whitespace, and HTML tags (the second row since Gemma 3).
_WHITESPACE = re.compile(rf"[\n\t\r {SPACE}]+")
_HTML_TAG = re.compile(
    r"</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code"
    r"|a|html|body|img|span|bbox|ul|li|div|iframe|footer)>"
)
_SPARE = re.compile(r"<unused\d+>")
# Text-only members of Gemma 3 are published with the vocabulary of those that see; this piece has no
# row in their embedding and none needs one.
_TOWER_PIECES = frozenset({"<image_soft_token>"})
_SURROGATE = re.compile("[\ud800-\udfff]")
# One unpaired surrogate stands for one byte that is no UTF-8 (PEP 383).
_INVALID_BYTE = re.compile("[\udc80-\udcff]")
_TOGETHER = "Take tokenizer and model from the same folder."


class Tokenizer:
    """One vocabulary, encoding and decoding."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Build from a vocabulary; `Tokenizer.load` reads one from a file."""
        vocabulary.check_settings()
        specials = vocabulary.specials()
        controls = {i: piece for i, piece in specials.items() if _is_control(piece)}
        hidden = {i: replace(piece, kind=CONTROL) for i, piece in controls.items() if piece.kind == USER_DEFINED}
        self._proto = vocabulary.to_bytes()
        self._plain = _processor(vocabulary.with_pieces(hidden).to_bytes())
        self._surfaces = {i: bytes((int(p.text[3:5], 16),)) for i, p in specials.items() if p.kind == BYTE}
        self.control_ids = frozenset(controls)
        self.vocab_size = len(vocabulary.records)
        self.bos_id, self.eos_id = self._plain.bos_id(), self._plain.eos_id()
        self.pad_id, self.unk_id = self._plain.pad_id(), self._plain.unk_id()
        if min(self.bos_id, self.eos_id, self.pad_id, self.unk_id) < 0:
            raise TokenizerError(
                f"vocabulary must have <bos>, <eos>, <pad> and <unk>; got ids {self.bos_id}, {self.eos_id}, "
                f"{self.pad_id} and {self.unk_id}. Use the tokenizer of a Gemma model."
            )

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a `.model` file, a `tokenizer.json`, or a folder that holds one or both.

        Raises:
            TokenizerError: No such file, a file that is damaged or no Gemma vocabulary, or two files
                in one folder that disagree.
        """
        if not path.is_dir():
            if path.suffix == ".json":
                return _read(path, lambda data: cls(TokenizerJson.parse(data).to_vocabulary()))
            return _read(path, lambda data: cls(Vocabulary.from_bytes(data)))
        model, listed = path / MODEL_FILE, path / JSON_FILE
        if not (model.is_file() and listed.is_file()):
            return cls.load(listed if listed.is_file() else model)
        content = _read(listed, TokenizerJson.parse)
        return _read(model, lambda data: cls(_reconcile(Vocabulary.from_bytes(data), content, path)))

    @cached_property
    def _published(self) -> sentencepiece.SentencePieceProcessor:
        return _processor(self._proto)

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Return the ids of `text`, no BOS added.

        Args:
            control: Also read control pieces spelled in the text, as SentencePiece does; only for
                prompts from a source that may write them.
        """
        processor = self._published if control else self._plain
        try:
            return processor.encode(text)
        except (RuntimeError, UnicodeError) as error:
            half = _SURROGATE.search(text)
            if half is None:
                raise
            raise TokenizerError(
                f"text must be valid Unicode; got {half.group()!r} at character {half.start()}. "
                "Decode the bytes it came from as UTF-8."
            ) from error

    def decode(self, token_ids: Sequence[int], *, skip_control: bool = True) -> str:
        """Return the text of `token_ids`; each byte that is no UTF-8 becomes U+FFFD."""
        skipped = self.control_ids if skip_control else ()
        data = b"".join([self.surface(token_id) for token_id in token_ids if token_id not in skipped])
        return _INVALID_BYTE.sub("\ufffd", data.decode("utf-8", "surrogateescape"))

    def decoder(self, *, skip_control: bool = True) -> "StreamDecoder":
        """Return a decoder to be fed one id at a time."""
        return StreamDecoder(self, skip_control=skip_control)

    def surface(self, token_id: int) -> bytes:
        """Return what one id adds to a text: UTF-8, or a single byte of it."""
        known = self._surfaces.get(token_id)
        if known is None:
            known = self._surfaces[token_id] = self.piece(token_id).replace(SPACE, " ").encode()
        return known

    def piece(self, token_id: int) -> str:
        """Return the piece of an id as the vocabulary spells it (a space is U+2581)."""
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(
                f"token id must lie within the {self.vocab_size} pieces of the vocabulary; got {token_id}. "
                "Do tokenizer and model belong together?"
            )
        return self._plain.id_to_piece(int(token_id))

    def pieces(self) -> list[Piece]:
        """Return every piece with its score and kind, in the order of ids."""
        vocabulary = Vocabulary.from_bytes(self._proto)
        return [vocabulary.piece(token_id) for token_id in range(self.vocab_size)]

    def specials(self) -> dict[int, Piece]:
        """Return the pieces of any other kind than NORMAL, by id."""
        return Vocabulary.from_bytes(self._proto).specials()

    def id_of(self, piece: str) -> int | None:
        """Return the id of a piece as the vocabulary spells it, or None."""
        token_id = self._plain.piece_to_id(piece)
        return token_id if self._plain.id_to_piece(token_id) == piece else None

    def save(self, folder: Path) -> Path:
        """Write `tokenizer.model` into a folder; an older file is replaced only when the new one is whole."""
        path = folder / MODEL_FILE
        partial = path.with_name(f".{MODEL_FILE}.{os.getpid()}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(self._proto)
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise StorageError(
                f"tokenizer must be saved to a writable folder; got {str(folder)!r} ({error.strerror}). "
                "Choose another folder or make room; a file that was there before is unchanged."
            ) from error
        return path

    def check_against(self, config: ModelConfig) -> None:
        """Refuse a model this vocabulary does not belong to.

        Raises:
            TokenizerError: More pieces than embedding rows, or another bos, eos or pad.
        """
        without_row = {self.piece(token_id) for token_id in range(config.vocab_size, self.vocab_size)}
        if not without_row <= _TOWER_PIECES:
            raise TokenizerError(
                f"tokenizer must have at most one piece per embedding row; got {self.vocab_size} pieces for "
                f"{config.vocab_size} rows. {_TOGETHER}"
            )
        for name, ours, theirs in (
            ("bos", self.bos_id, (config.bos_id,)),
            ("eos", self.eos_id, config.eos_ids),
            ("pad", self.pad_id, (config.pad_id,)),
        ):
            if ours not in theirs:
                wanted = " or ".join(map(str, theirs)) or "none"
                raise TokenizerError(
                    f"{name} id of the tokenizer must be that of the configuration, {wanted}; got {ours}. {_TOGETHER}"
                )


class StreamDecoder:
    """Decodes ids one at a time; the joined answers equal `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_control: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.control_ids if skip_control else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def push(self, token_id: int) -> str:
        """Return the text that became certain with this id; bytes of an unfinished code point wait."""
        if token_id in self._skipped:
            return ""
        return _INVALID_BYTE.sub("\ufffd", self._utf8.decode(self._tokenizer.surface(token_id)))

    def finish(self) -> str:
        """Return what is left when no id follows, and be ready for another text."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return _INVALID_BYTE.sub("\ufffd", rest)


def _is_control(piece: Piece) -> bool:
    if piece.kind == USER_DEFINED:
        return not (_WHITESPACE.fullmatch(piece.text) or _HTML_TAG.fullmatch(piece.text))
    return piece.kind not in (NORMAL, BYTE)


def _processor(proto: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=proto)


def _read(path: Path, parse: Callable[[bytes], _T]) -> _T:
    """Return what `parse` makes of a file, its complaints put in our words."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"tokenizer must be a {MODEL_FILE} or {JSON_FILE}; got {str(path)!r} ({error.strerror}). "
            "Give the folder the model was saved in."
        ) from error
    try:
        return parse(data)
    except TokenizerError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        kind = "tokenizers" if path.suffix == ".json" else "SentencePiece"
        raise TokenizerError(
            f"tokenizer must be a complete {kind} file; got {str(path)!r} of {len(data)} bytes ({error}). "
            "Was the download cut off?"
        ) from error


def _reconcile(vocabulary: Vocabulary, listed: TokenizerJson, folder: Path) -> Vocabulary:
    """Return the vocabulary of a folder with both files.

    A `tokenizer.json` may give spare pieces a name (FunctionGemma does) and add pieces at the end.
    """
    n_pieces = len(vocabulary.records)
    renamed = {}
    for token_id, (record, text) in enumerate(zip(vocabulary.records, listed.texts, strict=False)):
        if spells(record, text):
            continue
        if not _SPARE.fullmatch(vocabulary.piece(token_id).text):
            raise _disagreement(folder, token_id, vocabulary.piece(token_id).text, text)
        renamed[token_id] = Piece(text, 0.0, USER_DEFINED)
    if len(listed.texts) < n_pieces:
        raise _disagreement(folder, len(listed.texts), vocabulary.piece(len(listed.texts)).text, None)
    for token_id in range(n_pieces, len(listed.texts)):
        if token_id not in listed.added:
            raise _disagreement(folder, token_id, None, listed.texts[token_id])
    extra = [Piece(text, 0.0, USER_DEFINED) for text in listed.texts[n_pieces:]]
    return vocabulary.with_pieces(renamed, extra=extra) if renamed or extra else vocabulary


def _disagreement(folder: Path, token_id: int, ours: str | None, theirs: str | None) -> TokenizerError:
    return TokenizerError(
        f"{MODEL_FILE} and {JSON_FILE} must hold the same pieces; got {ours!r} and {theirs!r} for id {token_id} in "
        f"{str(folder)!r}. Keep the one the model was trained with and remove the other."
    )


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, max_run: int = 16, character_coverage: float = 0.9995, n_threads: int = 2
) -> Tokenizer:
    """Return a vocabulary learned from `texts`, with Gemma's special pieces at Gemma's ids.

    BPE with byte fallback, one piece per digit, text kept as it is. Equal texts in equal order give
    an equal vocabulary.

    Args:
        vocab_size: Number of pieces, the special ones and 256 bytes included.
        max_run: Longest run of newlines, spaces or tabs that is one piece.
        character_coverage: Share of all characters that get a piece of their own; the rest is
            written in bytes.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_lines(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=_special_pieces(max_run),
            pad_id=0, eos_id=1, bos_id=2, unk_id=3,
            pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
            max_sentence_length=2 * _LONGEST_LINE,
            num_threads=n_threads,
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise TokenizerError(
            f"vocab_size must suit the texts it is learned from; got {vocab_size} ({error}). "
            "Give more text or another vocab_size."
        ) from error
    return Tokenizer(Vocabulary.from_bytes(model.getvalue()))


# In bytes; the trainer silently leaves out what is longer than its limit, so lines are cut before it.
_LONGEST_LINE = 16_384


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Yield the lines of all texts; newlines need no learning, their runs are pieces from the start."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LONGEST_LINE // 4):
                yield line[start : start + _LONGEST_LINE // 4]


def _special_pieces(max_run: int) -> list[str]:
    """List Gemma 2's pieces from id 4 on: 106 and 107 are the turn markers, runs of whitespace follow."""
    turns = ["<start_of_turn>", "<end_of_turn>"]
    newlines = ["\n" * n for n in range(1, max_run + 1)]
    spaces = [SPACE * n for n in range(2, max_run + 1)]
    tabs = ["\t" * n for n in range(1, max_run + 1)]
    return ["<mask>", "<2mass>", "[@BOS@]", *(f"<unused{n}>" for n in range(99)), *turns, *newlines, *spaces, *tabs]
