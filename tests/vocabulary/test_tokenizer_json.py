"""A tokenizer.json gives the ids the tokenizers library gives for it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings

from gemsmith.errors import TokenizerError
from gemsmith.tokenizer import Tokenizer
from gemsmith.vocabulary.tokenizer_json import TokenizerJson
from vocab import HOSTILE, SMALL, golden, small_tokenizer, write_tokenizer_json

# sentencepiece, and we, never read these from text; the tokenizers library does.
META = ("<pad>", "<eos>", "<bos>", "<unk>")


@dataclass(frozen=True)
class Conversion:
    library: tokenizers.Tokenizer
    ours: Tokenizer
    path: Path


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Conversion]:
    """Return the small vocabulary converted in both orders of merges."""
    found = {}
    for by_score in (True, False):
        path = tmp_path_factory.mktemp("json") / "tokenizer.json"
        found[by_score] = Conversion(write_tokenizer_json(SMALL, path, by_score=by_score), Tokenizer.load(path), path)
    return found


@pytest.fixture
def edited(conversions: dict[bool, Conversion], tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Return a function that writes the file changed."""

    def edit(change: Callable[[dict[str, Any]], object]) -> Path:
        document = json.loads(conversions[True].path.read_text())
        change(document)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(document))
        return path

    return edit


def comparable(text: str) -> bool:
    """Tell whether the library means the same text: it cuts out the space mark before spaces are marked."""
    return not any(piece in text for piece in META) and "\u2581" not in text


@pytest.mark.parametrize("by_score", [True, False])
@pytest.mark.parametrize(
    "row", [row for row in golden("small") if comparable(row["text"])], ids=lambda row: row["name"]
)
def test_hostile_texts_get_the_ids_of_the_library(
    conversions: dict[bool, Conversion], row: dict, by_score: bool
) -> None:
    library, ours = conversions[by_score].library, conversions[by_score].ours
    assert ours.encode(row["text"], control=True) == library.encode(row["text"], add_special_tokens=False).ids


@pytest.mark.parametrize("by_score", [True, False])
@given(text=HOSTILE)
@settings(deadline=None)
def test_any_text_gets_the_ids_of_the_library(conversions: dict[bool, Conversion], by_score: bool, text: str) -> None:
    library, ours = conversions[by_score].library, conversions[by_score].ours
    if comparable(text):
        assert ours.encode(text, control=True) == library.encode(text, add_special_tokens=False).ids
    assert not ours.control_ids & set(ours.encode(text))
    assert ours.decode(ours.encode(text)) == text.replace("\u2581", " ")


@pytest.mark.parametrize("by_score", [True, False])
def test_runs_of_spaces_are_divided_as_the_file_merges_them(
    conversions: dict[bool, Conversion], by_score: bool
) -> None:
    library, ours = conversions[by_score].library, conversions[by_score].ours
    texts = [f"x{' ' * n}wolf{' ' * n}\n{' ' * n}" for n in range(80)]
    assert [ours.encode(text) for text in texts] == [library.encode(text).ids for text in texts]
    if not by_score:
        assert ours.encode(texts[20]) != small_tokenizer().encode(texts[20])


def test_it_is_the_vocabulary_it_was_converted_from(conversions: dict[bool, Conversion]) -> None:
    ours, original = conversions[True].ours, small_tokenizer()
    assert [ours.piece(i) for i in range(ours.vocab_size)] == [original.piece(i) for i in range(original.vocab_size)]
    assert ours.control_ids == original.control_ids
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (2, 1, 0, 3)


def test_merges_written_as_one_string_are_read(edited: Callable) -> None:
    def join(document: dict[str, Any]) -> None:
        document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]

    assert Tokenizer.load(edited(join)).encode("The old wolf") == small_tokenizer().encode("The old wolf")


def test_a_byte_piece_called_tab_is_the_byte(edited: Callable) -> None:
    """Files converted from a vocabulary without a tab, as Gemma 1 and 2 are, have one in place of `<0x09>`."""

    def rename(document: dict[str, Any]) -> None:
        vocab = document["model"]["vocab"]
        vocab["#tab"] = vocab.pop("\t")
        vocab["\t"] = vocab.pop("<0x09>")
        document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] != "\t"]

    path = edited(rename)
    ours, library = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    text = "a\tb\t\tc"
    assert ours.encode(text) == library.encode(text).ids
    assert ours.piece(ours.encode(text)[1]) == "<0x09>"
    assert ours.decode(ours.encode(text)) == text


def test_an_added_token_is_control(edited: Callable) -> None:
    token = {"id": 2048, "content": "<my tool>", "normalized": False, "special": False}
    rest = {"single_word": False, "lstrip": False, "rstrip": False}
    path = edited(lambda document: document["added_tokens"].append(token | rest))
    ours, library = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    assert ours.encode("a<my tool>b", control=True) == library.encode("a<my tool>b").ids
    assert 2048 in ours.control_ids
    assert 2048 not in ours.encode("a<my tool>b")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.type .* got 'WordPiece'", lambda d: d["model"].update(type="WordPiece")),
        ("model.byte_fallback .* got False", lambda d: d["model"].update(byte_fallback=False)),
        ("model.dropout .* got 0.1", lambda d: d["model"].update(dropout=0.1)),
        ("model.ignore_merges .* got True", lambda d: d["model"].update(ignore_merges=True)),
        ("normalizer .* got {'type': 'NFKC'}", lambda d: d.update(normalizer={"type": "NFKC"})),
        ("pre_tokenizer .* got {'type': 'Whitespace'}", lambda d: d.update(pre_tokenizer={"type": "Whitespace"})),
        ("every merge; got 2 that form '▁the', spelled by", lambda d: d["model"]["merges"].remove(["▁t", "he"])),
        ("together; got those of '▁the' apart", lambda d: d["model"]["merges"].append(["▁t", "he"])),
        ("got .* with id 2048 in place 2047", lambda d: shift_last(d["model"]["vocab"])),
        ("got none for <eos>", lambda d: rename_eos(d)),
        ("'vocab'", lambda d: d["model"].pop("vocab")),
    ],
)
def test_a_file_that_says_something_else_is_refused(edited: Callable, name: str, change: Callable) -> None:
    with pytest.raises(TokenizerError, match=name):
        Tokenizer.load(edited(change))


def shift_last(vocab: dict[str, int]) -> None:
    vocab[max(vocab, key=vocab.__getitem__)] += 1


def rename_eos(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["</s>"] = document["model"]["vocab"].pop("<eos>")
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] != "<eos>"]


def test_a_normalizer_alone_in_a_sequence_is_the_normalizer(conversions: dict[bool, Conversion]) -> None:
    document = json.loads(conversions[True].path.read_text())
    document["normalizer"] = {"type": "Sequence", "normalizers": [document["normalizer"]]}
    assert TokenizerJson.parse(json.dumps(document).encode()).texts[2] == "<bos>"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"model": []}', b"\xff", b'{"model": {"type": "BPE"}}'])
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=r"tokenizer.json"):
        Tokenizer.load(path)
