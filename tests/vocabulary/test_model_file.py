"""The few bytes of protocol buffer we read and write agree with protobuf's own reading."""

import pytest
from sentencepiece import sentencepiece_model_pb2

from gemsmith.errors import TokenizerError
from gemsmith.vocabulary.model_file import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Piece, Vocabulary
from vocab import SMALL

RAW = SMALL.read_bytes()


def proto_of(data: bytes) -> sentencepiece_model_pb2.ModelProto:
    return sentencepiece_model_pb2.ModelProto.FromString(data)


def test_every_piece_is_read_as_protobuf_reads_it() -> None:
    vocabulary = Vocabulary.from_bytes(RAW)
    ours = [vocabulary.piece(i) for i in range(len(vocabulary.records))]
    assert ours == [Piece(piece.piece, piece.score, piece.type) for piece in proto_of(RAW).pieces]
    special = {i: piece for i, piece in enumerate(ours) if piece.kind != NORMAL}
    assert vocabulary.specials() == special
    assert len(special) == 4 + 151 + 256


def test_a_file_taken_apart_and_put_together_is_the_same_file() -> None:
    assert Vocabulary.from_bytes(RAW).to_bytes() == RAW


@pytest.mark.parametrize("n_letters", [1, 126, 127, 128, 20_000])
def test_pieces_of_any_length_are_written(n_letters: int) -> None:
    changed = Piece("x" * n_letters, -1.5, USER_DEFINED)
    data = Vocabulary.from_bytes(RAW).with_pieces({7: changed}, extra=[Piece("é", 0.25)]).to_bytes()
    assert Vocabulary.from_bytes(data).piece(7) == changed
    pieces = proto_of(data).pieces
    assert (pieces[7].piece, pieces[7].score, pieces[7].type) == ("x" * n_letters, -1.5, USER_DEFINED)
    assert (pieces[-1].piece, pieces[-1].score, pieces[-1].type) == ("é", 0.25, NORMAL)
    assert pieces[6] == proto_of(RAW).pieces[6]


def test_fields_we_do_not_know_are_kept() -> None:
    unknown = b"\x22\x02hi" + b"\x28\x96\x01" + b"\x31" + bytes(8) + b"\x3d" + bytes(4)
    changed = Vocabulary.from_bytes(RAW + unknown).with_pieces({7: Piece("new", 0.0)}).to_bytes()
    assert changed.endswith(unknown)
    assert proto_of(changed).trainer_spec == proto_of(RAW).trainer_spec


def test_a_new_vocabulary_has_the_settings_of_gemma() -> None:
    texts = {"<pad>": CONTROL, "<eos>": CONTROL, "<bos>": CONTROL, "<unk>": UNKNOWN, "<0x00>": BYTE, "a": NORMAL}
    vocabulary = Vocabulary.from_pieces([Piece(text, 0.0, kind) for text, kind in texts.items()])
    vocabulary.check_settings()
    proto = proto_of(vocabulary.to_bytes())
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    assert (trainer.model_type, trainer.byte_fallback, trainer.vocab_size) == (trainer.BPE, True, 6)
    assert (trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id) == (0, 1, 2, 3)
    assert (normalizer.name, normalizer.escape_whitespaces) == ("identity", True)
    assert not normalizer.add_dummy_prefix
    assert not normalizer.remove_extra_whitespaces


@pytest.mark.parametrize(
    ("section", "name", "value", "shown"),
    [
        ("trainer_spec", "model_type", 1, "1"),
        ("trainer_spec", "byte_fallback", False, "0"),
        ("normalizer_spec", "add_dummy_prefix", True, "1"),
        ("normalizer_spec", "remove_extra_whitespaces", True, "1"),
        ("normalizer_spec", "escape_whitespaces", False, "0"),
        ("normalizer_spec", "precompiled_charsmap", b"nfkc", "b'nfkc'"),
    ],
)
def test_settings_that_change_text_are_refused(section: str, name: str, value: object, shown: str) -> None:
    proto = proto_of(RAW)
    setattr(getattr(proto, section), name, value)
    with pytest.raises(TokenizerError, match=f"{name} of the vocabulary must be .*; got {shown}"):
        Vocabulary.from_bytes(proto.SerializeToString()).check_settings()


def test_a_file_without_its_last_sections_is_refused() -> None:
    proto = proto_of(RAW)
    proto.ClearField("trainer_spec")
    with pytest.raises(TokenizerError, match="model_type of the vocabulary must be 2; got 1"):
        Vocabulary.from_bytes(proto.SerializeToString()).check_settings()


@pytest.mark.parametrize(
    "data", [b"", b"version https://git-lfs", b"\x0a\x7fshort", b"\x0a", b"\x0a\xff", b"\x1a\xff\xff"]
)
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        Vocabulary.from_bytes(data)
