"""Text to token ids and back, with a vocabulary in SentencePiece's or Hugging Face's file format.

Plain text never becomes a control id. Gemma's vocabulary holds `<end_of_turn>` and its like as
user-defined pieces, which SentencePiece cuts out of any text that spells them; whoever writes them
into a chat could then end a turn. So text is encoded by a second processor over the same vocabulary
in which those pieces are control pieces, reachable by id only.
"""

import codecs
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import sentencepiece

from gemsmith.config import ModelConfig
from gemsmith.errors import StorageError, TokenizerError
from gemsmith.vocabulary import BYTE, CONTROL, NORMAL, SPACE, USER_DEFINED, Piece, Vocabulary

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"

# User-defined pieces that are text: runs of whitespace, and tags of HTML.
_WHITESPACE = re.compile(rf"[\n\t\r {SPACE}]+")
_HTML_TAG = re.compile(
    r"</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code)>"
)
# One unpaired surrogate stands for one byte that is no UTF-8 (PEP 383).
_INVALID_BYTE = re.compile("[\udc80-\udcff]")


class Tokenizer:
    """One vocabulary, encoding and decoding."""

    def __init__(self, proto: bytes, *, source: str = "vocabulary") -> None:
        """Read the bytes of a `.model` file; `source` names them in errors."""
        try:
            vocabulary = Vocabulary.from_bytes(proto)
            specials = vocabulary.specials()
            vocabulary.check_gemma()
            controls = {i: piece for i, piece in specials.items() if _is_control(piece)}
            hidden = {i: replace(p, kind=CONTROL) for i, p in controls.items() if p.kind == USER_DEFINED}
            self._plain = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.with_pieces(hidden).to_bytes())
        except TokenizerError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise TokenizerError(
                f"vocabulary must be a SentencePiece model; got {source} of {len(proto)} bytes that cannot be read "
                f"({error}). Was the download complete?"
            ) from error
        self._proto = proto
        self._bytes = {i: int(p.text[3:5], 16) for i, p in specials.items() if p.kind == BYTE}
        self.control_ids = frozenset(controls)
        self.vocab_size = len(vocabulary.messages)
        self.bos_id, self.eos_id = self._plain.bos_id(), self._plain.eos_id()
        self.pad_id, self.unk_id = self._plain.pad_id(), self._plain.unk_id()

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a `.model` file, or a folder that holds one."""
        if path.is_dir():
            path = path / MODEL_FILE
        try:
            return cls(path.read_bytes(), source=str(path))
        except OSError as error:
            raise TokenizerError(f"tokenizer must be a readable file; got {str(path)!r}. {error.strerror}.") from error

    @cached_property
    def _published(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self._proto)

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Return the ids of `text`, no BOS added.

        Args:
            control: Also read control pieces spelled in the text, as SentencePiece does; only for
                prompts from a source that may write them.
        """
        processor = self._published if control else self._plain
        try:
            return processor.encode(text)
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"text must be valid Unicode; got {text[error.start]!r} at character {error.start}. "
                "Decode the bytes it came from as UTF-8."
            ) from error

    def decode(self, token_ids: Sequence[int], *, skip_control: bool = True) -> str:
        """Return the text of `token_ids`; each byte that is no UTF-8 becomes U+FFFD."""
        data = b"".join([self._surface(i, skip_control=skip_control) for i in token_ids])
        return _INVALID_BYTE.sub("\ufffd", data.decode("utf-8", "surrogateescape"))

    def decoder(self, *, skip_control: bool = True) -> "StreamDecoder":
        """Return a decoder to be fed one id at a time."""
        return StreamDecoder(self, skip_control=skip_control)

    def _surface(self, token_id: int, *, skip_control: bool) -> bytes:
        if token_id in self._bytes:
            return bytes((self._bytes[token_id],))
        if skip_control and token_id in self.control_ids:
            return b""
        return self.piece(token_id).replace(SPACE, " ").encode()

    def piece(self, token_id: int) -> str:
        """Return the piece of an id as the vocabulary spells it (a space is U+2581)."""
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(
                f"token id must lie within the {self.vocab_size} pieces of the vocabulary; got {token_id}. "
                "Do tokenizer and model belong together?"
            )
        return self._plain.id_to_piece(int(token_id))

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
            partial.unlink(missing_ok=True)
            raise StorageError(f"tokenizer must be writable to {str(path)!r}; got {error.strerror!r}.") from error
        return path

    def check_against(self, config: ModelConfig) -> None:
        """Refuse a model this vocabulary does not belong to.

        Raises:
            TokenizerError: More pieces than embedding rows, or another bos, eos or pad.
        """
        advice = "Take tokenizer and model from the same folder."
        if self.vocab_size > config.vocab_size:
            raise TokenizerError(
                f"tokenizer must have at most one piece per embedding row; got {self.vocab_size} pieces for "
                f"{config.vocab_size} rows. {advice}"
            )
        for name, ours, theirs in (
            ("bos", self.bos_id, (config.bos_id,)),
            ("eos", self.eos_id, config.eos_ids),
            ("pad", self.pad_id, (config.pad_id,)),
        ):
            if ours not in theirs:
                wanted = " or ".join(map(str, theirs)) or "none"
                raise TokenizerError(
                    f"{name} id of the tokenizer must be the configuration's {wanted}; got {ours}. {advice}"
                )


class StreamDecoder:
    """Decodes ids one at a time; the joined answers equal `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_control: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_control = skip_control
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def push(self, token_id: int) -> str:
        """Return the text that became certain with this id; bytes of an unfinished code point wait."""
        data = self._tokenizer._surface(token_id, skip_control=self._skip_control)
        return _INVALID_BYTE.sub("\ufffd", self._utf8.decode(data))

    def finish(self) -> str:
        """Return what is left when no id follows, and be ready for another text."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return _INVALID_BYTE.sub("\ufffd", rest)


def _is_control(piece: Piece) -> bool:
    if piece.kind == USER_DEFINED:
        return not (_WHITESPACE.fullmatch(piece.text) or _HTML_TAG.fullmatch(piece.text))
    return piece.kind not in (NORMAL, BYTE)


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
    return Tokenizer(model.getvalue())


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
