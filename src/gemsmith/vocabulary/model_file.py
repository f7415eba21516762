"""A SentencePiece model file taken apart and put together again: its pieces and their kinds.

A SentencePiece `.model` is a protocol-buffer message: field 1 repeats once per piece (1 text,
2 score, 3 kind), field 2 holds how it was trained, field 3 how text is normalised. The few bytes we
read and write of that format are handled here, so that no protobuf package is needed.

Source: sentencepiece_model.proto of google/sentencepiece; protobuf.dev/programming-guides/encoding.
"""

import re
import struct
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from gemsmith.errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"  # what SentencePiece writes in place of a space

_BPE = 2
_TRAINER, _NORMALIZER = 2, 3
# (section, name, field number, value where the file leaves it out, value Gemma's vocabularies have).
_SETTINGS = (
    (_TRAINER, "model_type", 3, 1, _BPE),
    (_TRAINER, "byte_fallback", 35, 0, 1),
    (_NORMALIZER, "add_dummy_prefix", 3, 1, 0),
    (_NORMALIZER, "remove_extra_whitespaces", 4, 1, 0),
    (_NORMALIZER, "escape_whitespaces", 5, 1, 1),
    (_NORMALIZER, "precompiled_charsmap", 2, b"", b""),
)
# A piece of up to 127 bytes: field 1 in wire type BYTES, its length, and so many bytes.
_ANY_SHORT = b"\n(?:%s)" % b"|".join(re.escape(bytes((n,))) + b".{%d}" % n for n in range(1, 0x80))
_SHORT_PIECE, _SHORT_PIECES = re.compile(_ANY_SHORT, re.DOTALL), re.compile(b"(?:%s)*+" % _ANY_SHORT, re.DOTALL)
# Field 3 in wire type VARINT, and what may begin a kind; also in texts and scores, by chance.
_KIND = re.compile(rb"\x18[\x01-\x06\x80-\xff]")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    """One entry of a vocabulary; `kind` is NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE."""

    text: str
    score: float
    kind: int = NORMAL


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a model file in the order of their ids, and all its other fields.

    Attributes:
        records: The field of each piece as it lies in the file: key, length and message.
        rest: All other fields.
    """

    records: list[bytes]
    rest: bytes

    @classmethod
    def from_bytes(cls, proto: bytes) -> "Vocabulary":
        """Take a `.model` file apart; raises IndexError or ValueError where the bytes make no sense."""
        records, rest, at, n_bytes = [], bytearray(), 0, len(proto)
        while at < n_bytes:
            start = at
            number, wire, at = _read_key(proto, at)
            if (number, wire) == (1, _BYTES):
                size, at = _read_varint(proto, at)
                records.append(_write_field(1, proto[at : at + size]))
                at += size
            else:
                at = _skip(proto, at, wire)
                rest += proto[start:at]
            # Nearly all of a file is short pieces in a row: the same as above, a few times faster.
            run = _SHORT_PIECES.match(proto, at) if at < n_bytes else None
            if run is not None:
                records += _SHORT_PIECE.findall(proto, at, run.end())
                at = run.end()
        if at != n_bytes or not records:
            raise ValueError(f"it ends {at - n_bytes} bytes early, after {len(records)} pieces")
        return cls(records, bytes(rest))

    @classmethod
    def from_pieces(cls, pieces: list[Piece]) -> "Vocabulary":
        """Put together a BPE vocabulary with Gemma's settings (byte fallback, identity normaliser)."""
        ids = {piece.text: index for index, piece in enumerate(pieces)}
        trainer = _write_field(3, _BPE) + _write_field(4, len(pieces)) + _write_field(35, 1)
        for number, text in ((40, "<unk>"), (41, "<bos>"), (42, "<eos>"), (43, "<pad>")):
            trainer += _write_field(number, ids[text]) + _write_field(number + 5, text.encode())
        normalizer = _write_field(1, b"identity") + _write_field(3, 0) + _write_field(4, 0) + _write_field(5, 1)
        rest = _write_field(_TRAINER, trainer) + _write_field(_NORMALIZER, normalizer)
        return cls([_write_record(piece) for piece in pieces], rest)

    def to_bytes(self) -> bytes:
        """Return the `.model` file."""
        return b"".join(self.records) + self.rest

    def piece(self, token_id: int) -> Piece:
        """Return one piece."""
        fields = dict(_read_fields(_message(self.records[token_id])))
        text, score, kind = fields.get(1, b""), fields.get(2, b"\0\0\0\0"), fields.get(3, NORMAL)
        if not (isinstance(text, bytes) and isinstance(score, bytes) and len(score) == 4 and isinstance(kind, int)):
            raise ValueError(f"piece {token_id} has a field of the wrong type")
        return Piece(text.decode(), struct.unpack("<f", score)[0], kind)

    def specials(self) -> dict[int, Piece]:
        """Return the pieces that are not NORMAL, by id; only they carry a kind other than the default."""
        ends = list(accumulate(map(len, self.records)))
        likely = {bisect(ends, match.start()) for match in _KIND.finditer(b"".join(self.records))}
        found = {token_id: self.piece(token_id) for token_id in sorted(likely)}
        return {token_id: piece for token_id, piece in found.items() if piece.kind != NORMAL}

    def with_pieces(self, changes: Mapping[int, Piece], *, extra: Sequence[Piece] = ()) -> "Vocabulary":
        """Return a copy with some pieces exchanged and some added at the end."""
        records = [*self.records, *map(_write_record, extra)]
        for token_id, piece in changes.items():
            records[token_id] = _write_record(piece)
        return replace(self, records=records)

    def check_settings(self) -> None:
        """Refuse settings under which text would not come back as it went in.

        Raises:
            TokenizerError: Not BPE, no byte fallback, or a normaliser that changes the text.
        """
        rest = dict(_read_fields(self.rest))
        for section, name, number, default, wanted in _SETTINGS:
            fields = rest.get(section, b"")
            value = dict(_read_fields(fields)).get(number, default) if isinstance(fields, bytes) else fields
            if value != wanted:
                raise TokenizerError(
                    f"{name} of the vocabulary must be {wanted!r}; got {value!r}. "
                    "Use the complete tokenizer.model that was published with the model."
                )


def spells(record: bytes, text: str) -> bool:
    """Tell whether a record has this text, without reading it further."""
    # After a key of one byte, and one for each seven bits of the length.
    start = 2 if record[1] < 0x80 else _read_varint(record, 1)[1]
    return record.startswith(_write_field(1, text.encode()), start)


def _message(record: bytes) -> bytes:
    return record[_read_varint(record, 1)[1] :]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _read_key(data: bytes, at: int) -> tuple[int, int, int]:
    key, at = _read_varint(data, at)
    return key >> 3, key & 7, at


def _skip(data: bytes, at: int, wire: int) -> int:
    if wire == _VARINT:
        return _read_varint(data, at)[1]
    if wire == _BYTES:
        size, at = _read_varint(data, at)
        return at + size
    if wire in (_FIXED32, _FIXED64):
        return at + (4 if wire == _FIXED32 else 8)
    raise ValueError(f"unknown wire type {wire} at byte {at}")


def _read_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        number, wire, at = _read_key(message, at)
        end = _skip(message, at, wire)
        if wire == _VARINT:
            yield number, _read_varint(message, at)[0]
        else:
            start = _read_varint(message, at)[1] if wire == _BYTES else at
            yield number, message[start:end]
        at = end


def _write_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _write_field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _write_varint(number << 3 | _VARINT) + _write_varint(value)
    return _write_varint(number << 3 | _BYTES) + _write_varint(len(value)) + value


def _write_record(piece: Piece) -> bytes:
    text = piece.text.encode()
    if piece.kind == NORMAL and len(text) < 0x79:  # nearly every one: the same as below, a few times faster
        return b"\n%c\n%c%b\x15%b" % (len(text) + 7, len(text), text, struct.pack("<f", piece.score))
    kind = b"" if piece.kind == NORMAL else _write_field(3, piece.kind)
    return _write_field(1, _write_field(1, text) + b"\x15" + struct.pack("<f", piece.score) + kind)
