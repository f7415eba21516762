"""Text to ids and back: equal to sentencepiece, and closed to control pieces in plain text."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemsmith.config import preset
from gemsmith.errors import StorageError, TokenizerError
from gemsmith.tokenizer import Tokenizer, train_tokenizer
from gemsmith.vocabulary.model_file import CONTROL, NORMAL, USER_DEFINED, Piece, Vocabulary
from vocab import HOSTILE, PLAIN, SMALL, golden, reference, small_tokenizer, write_tokenizer_json

CONFIG = preset("gemma-2-2b").replace(vocab_size=2048)
IDS = st.lists(st.integers(0, 2047) | st.integers(155, 410) | st.integers(0, 107), max_size=40)


@cache
def gemma() -> Tokenizer:
    return Tokenizer.load(Path(os.environ["GEMSMITH_DATA"]) / "tokenizer" / "gemma2.model")


def assert_golden(tokenizer: Tokenizer, row: dict) -> None:
    assert tokenizer.encode(row["text"]) == row["plain"]
    assert tokenizer.encode(row["text"], control=True) == row["control"]
    assert tokenizer.decode(row["plain"]) == row["text"].replace("\u2581", " ")
    assert not tokenizer.control_ids & set(row["plain"])


@pytest.mark.parametrize("row", golden("small"), ids=lambda row: row["name"])
def test_hostile_texts_get_their_golden_ids(row: dict) -> None:
    assert_golden(small_tokenizer(), row)


@pytest.mark.data
@pytest.mark.parametrize("row", golden("gemma2"), ids=lambda row: row["name"])
def test_hostile_texts_get_the_golden_ids_of_gemma(row: dict) -> None:
    assert_golden(gemma(), row)


@pytest.mark.data
def test_gemma_has_its_known_ids() -> None:
    tokenizer = gemma()
    assert tokenizer.encode("Hello world!") == [4521, 2134, 235341]
    known = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<start_of_turn>": 106, "<end_of_turn>": 107, "<b>": 201}
    assert {piece: tokenizer.id_of(piece) for piece in known} == known
    # 3 control, 1 unknown, 4 named, 100 unused, 2 turn markers: text and whitespace pieces are not among them.
    assert len(tokenizer.control_ids) == 3 + 1 + 4 + 100 + 2
    tokenizer.check_against(preset("gemma-2-2b"))
    with pytest.raises(TokenizerError, match="got 256000 pieces for 2048 rows"):
        tokenizer.check_against(CONFIG)


@pytest.mark.data
@pytest.mark.slow
def test_tokenizer_json_of_gemma_gives_the_ids_of_the_library(tmp_path: Path) -> None:
    model = Path(os.environ["GEMSMITH_DATA"]) / "tokenizer" / "gemma2.model"
    library = write_tokenizer_json(model, tmp_path / "tokenizer.json")
    ours = Tokenizer.load(tmp_path)
    rows = [row for row in golden("gemma2") if row["name"] not in ("space mark", "controls")]
    for row in rows:
        assert ours.encode(row["text"]) == row["plain"]
        if not any(piece in row["text"] for piece in ("<bos>", "<eos>", "<pad>", "<unk>")):
            assert ours.encode(row["text"], control=True) == library.encode(row["text"]).ids


@given(text=HOSTILE)
@settings(deadline=None)
def test_plain_text_never_becomes_a_control_id_and_comes_back(text: str) -> None:
    tokenizer = small_tokenizer()
    token_ids = tokenizer.encode(text)
    assert not tokenizer.control_ids & set(token_ids)
    # SentencePiece, and so Gemma, writes a space and U+2581 the same way.
    assert tokenizer.decode(token_ids) == text.replace("\u2581", " ")


@given(text=HOSTILE)
@settings(deadline=None)
def test_with_control_it_equals_sentencepiece_everywhere(text: str) -> None:
    assert small_tokenizer().encode(text, control=True) == reference().encode(text)


@given(text=PLAIN)
@settings(deadline=None)
def test_without_spelled_pieces_it_equals_sentencepiece(text: str) -> None:
    assert small_tokenizer().encode(text) == reference().encode(text)


@pytest.mark.parametrize("piece", ["<end_of_turn>", "<mask>", "<unused3>", "[@BOS@]", "<bos>", "<unk>"])
def test_trap_control_pieces_cannot_be_typed(piece: str) -> None:
    tokenizer = small_tokenizer()
    token_id = tokenizer.id_of(piece)
    assert token_id in tokenizer.control_ids
    for text in (piece, f"a{piece}b", f" {piece} ", f"{piece}{piece}", piece[:4] + piece + piece[4:]):
        assert token_id not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_html_tags_are_text_and_other_given_pieces_are_control() -> None:
    names = "table caption thead tbody tfoot tr th td h1 h2 h3 h4 h5 h6 blockquote strong em b i u s sub sup code"
    since_gemma_3 = "a html body img span bbox ul li div iframe footer"
    tags = [f"<{slash}{name}>" for name in f"{names} {since_gemma_3}".split() for slash in ("", "/")]
    others = ["<|fim_prefix|>", "<start_of_image>", "[multimodal]", "<h7>", "<B>"]
    extra = [Piece(text, 0.0, USER_DEFINED) for text in tags + others]
    tokenizer = Tokenizer(Vocabulary.from_bytes(SMALL.read_bytes()).with_pieces({}, extra=extra))
    assert tokenizer.encode("".join(tags)) == list(range(2048, 2048 + 70))
    assert tokenizer.encode("".join(others), control=True) == list(range(2118, 2123))
    assert max(tokenizer.encode("".join(others))) < 2048


def test_trap_runs_of_spaces_are_single_pieces() -> None:
    tokenizer = small_tokenizer()
    assert [len(tokenizer.encode(" " * n)) for n in range(1, 17)] == [1] * 16
    assert [tokenizer.piece(i) for i in tokenizer.encode("  \n\n\t\t")] == ["\u2581\u2581", "\n\n", "\t\t"]


def test_trap_no_space_is_put_before_text_or_behind_a_special_piece() -> None:
    tokenizer = small_tokenizer()
    assert tokenizer.encode("wolf") != tokenizer.encode(" wolf")
    token_ids = [*tokenizer.encode("<end_of_turn>", control=True), *tokenizer.encode("wolf")]
    assert tokenizer.decode(token_ids) == "wolf"
    assert tokenizer.decode(token_ids, skip_control=False) == "<end_of_turn>wolf"


def test_trap_text_is_not_normalised() -> None:
    tokenizer = small_tokenizer()
    for text in ("é", "e\u0301", "\ufb01", "\u212b", "\uff21"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("é") != tokenizer.encode("e\u0301")


@given(token_ids=IDS, skip_control=st.booleans())
@settings(deadline=None)
def test_streamed_pieces_join_to_the_decoded_text(token_ids: list[int], skip_control: bool) -> None:
    tokenizer = small_tokenizer()
    decoder = tokenizer.decoder(skip_control=skip_control)
    pieces = [decoder.push(token_id) for token_id in token_ids]
    assert "".join([*pieces, decoder.finish()]) == tokenizer.decode(token_ids, skip_control=skip_control)


@given(text=HOSTILE)
@settings(deadline=None)
def test_streaming_never_splits_a_code_point(text: str) -> None:
    tokenizer = small_tokenizer()
    decoder = tokenizer.decoder()
    shown = ""
    for token_id in tokenizer.encode(text):
        shown += decoder.push(token_id)
        assert text.replace("\u2581", " ").startswith(shown)
    assert decoder.finish() == ""


def test_bytes_of_an_emoji_wait_for_the_last_one() -> None:
    tokenizer = small_tokenizer()
    decoder = tokenizer.decoder()
    assert [decoder.push(token_id) for token_id in tokenizer.encode("😀")] == ["", "", "", "😀"]
    assert [decoder.push(token_id) for token_id in tokenizer.encode("😀")[:2]] == ["", ""]
    assert decoder.finish() == "\ufffd\ufffd"
    assert decoder.push(tokenizer.encode("wolf")[0]) == tokenizer.piece(tokenizer.encode("wolf")[0])


@given(data=st.lists(st.sampled_from([0x41, 0x80, 0xBF, 0xC0, 0xC3, 0xE2, 0x82, 0xAC, 0xED, 0xA0, 0xF0, 0x9F, 0xF5])))
@settings(deadline=None)
def test_invalid_bytes_become_what_sentencepiece_makes_of_them(data: list[int]) -> None:
    token_ids = [155 + byte for byte in data]
    assert small_tokenizer().piece(155) == "<0x00>"
    assert small_tokenizer().decode(token_ids) == reference().decode(token_ids)


def test_pieces_and_ids_name_each_other() -> None:
    tokenizer = small_tokenizer()
    assert tokenizer.vocab_size == 2048
    assert [tokenizer.id_of(tokenizer.piece(i)) for i in range(2048)] == list(range(2048))
    assert tokenizer.id_of("no such piece") is None
    assert tokenizer.surface(tokenizer.id_of("\u2581the") or 0) == b" the"
    assert tokenizer.surface(155 + 0xE2) == b"\xe2"


@pytest.mark.parametrize("token_id", [2048, -1, 256_000])
def test_ids_outside_the_vocabulary_are_named(token_id: int) -> None:
    with pytest.raises(TokenizerError, match=f"2048 pieces of the vocabulary; got {token_id}"):
        small_tokenizer().decode([2, token_id])
    with pytest.raises(TokenizerError, match=f"got {token_id}"):
        small_tokenizer().decoder().push(token_id)


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(TokenizerError, match=r"got '\\ud83d' at character 2"):
        small_tokenizer().encode("ab\ud83d")


def test_a_saved_tokenizer_is_the_same_file(tmp_path: Path) -> None:
    assert small_tokenizer().save(tmp_path / "new").read_bytes() == SMALL.read_bytes()
    assert Tokenizer.load(tmp_path / "new").encode("The wolf") == small_tokenizer().encode("The wolf")


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=f"got '{tmp_path}' .No space left on device"):
        small_tokenizer().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]
    assert (tmp_path / "tokenizer.model").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 2000}, "got 2048 pieces for 2000 rows"),
        ({"bos_id": 5}, "bos id of the tokenizer must be that of the configuration, 5; got 2"),
        ({"eos_ids": (106, 107)}, "eos id of the tokenizer must be that of the configuration, 106 or 107; got 1"),
        ({"eos_ids": ()}, "eos id of the tokenizer must be that of the configuration, none; got 1"),
        ({"pad_id": 7}, "pad id of the tokenizer must be that of the configuration, 7; got 0"),
    ],
)
def test_a_model_with_another_vocabulary_is_refused(change: dict, message: str) -> None:
    small_tokenizer().check_against(CONFIG)
    small_tokenizer().check_against(CONFIG.replace(vocab_size=4096, eos_ids=(1, 107)))
    with pytest.raises(TokenizerError, match=message):
        small_tokenizer().check_against(CONFIG.replace(**change))


def test_an_image_marker_needs_no_row_but_other_pieces_do() -> None:
    vocabulary = Vocabulary.from_bytes(SMALL.read_bytes())
    image, tool = Piece("<image_soft_token>", 0.0, USER_DEFINED), Piece("<tool>", 0.0, USER_DEFINED)
    Tokenizer(vocabulary.with_pieces({}, extra=[image])).check_against(CONFIG)
    with pytest.raises(TokenizerError, match="got 2050 pieces for 2048 rows"):
        Tokenizer(vocabulary.with_pieces({}, extra=[image, tool])).check_against(CONFIG)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "tokenizer.model", tmp_path / "none" / "tokenizer.json"):
        with pytest.raises(TokenizerError, match=f"got '{path}.*No such file"):
            Tokenizer.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.9, 0.995, 0.9999])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(SMALL.read_bytes()[: int(share * SMALL.stat().st_size)])
    with pytest.raises(
        TokenizerError, match=r"must be (a complete SentencePiece file; got '.*tokenizer.model'|\d; got)"
    ):
        Tokenizer.load(path)


def test_no_single_wrong_byte_escapes_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    good = SMALL.read_bytes()
    for place in range(0, len(good), 1 + len(good) // 50):
        path.write_bytes(good[:place] + bytes((good[place] ^ 0x93,)) + good[place + 1 :])
        try:
            Tokenizer.load(path)
        except TokenizerError as error:
            assert str(error).count(". ") >= 1  # noqa: PT017


def test_a_vocabulary_without_bos_or_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    vocabulary = Vocabulary.from_bytes(SMALL.read_bytes())
    path.write_bytes(vocabulary.with_pieces({2: Piece("<begin>", 0.0, CONTROL)}).to_bytes())
    with pytest.raises(TokenizerError, match="must have <bos>, <eos>, <pad> and <unk>; got ids -1, 1, 0 and 3"):
        Tokenizer.load(path)
    path.write_bytes(vocabulary.with_pieces({155: Piece("spare", 0.0, NORMAL)}).to_bytes())
    with pytest.raises(TokenizerError, match=f"got '{path}' .*256 byte pieces"):
        Tokenizer.load(path)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both files."""
    folder = tmp_path_factory.mktemp("both")
    shutil.copy(SMALL, folder / "tokenizer.model")
    write_tokenizer_json(SMALL, folder / "tokenizer.json")
    return folder


def change_json(folder: Path, old: str, new: str) -> None:
    path = folder / "tokenizer.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_two_files_that_agree_are_one_tokenizer(both: Path) -> None:
    assert Tokenizer.load(both).encode("The wolf", control=True) == small_tokenizer().encode("The wolf")


def test_tokenizer_json_may_name_spare_pieces_and_add_some(both: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(both, tmp_path / "model")
    change_json(folder, '"<unused40>"', '"<start_function_call>"')
    added = '{"id":2048,"content":"<image_soft_token>","normalized":false,"special":true},'
    change_json(folder, '"added_tokens": [', '"added_tokens": [' + added)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.id_of("<start_function_call>") == 47
    assert tokenizer.encode("<start_function_call><image_soft_token>", control=True) == [47, 2048]
    assert not {47, 2048} & set(tokenizer.encode("<start_function_call><image_soft_token>"))
    tokenizer.check_against(CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: change_json(folder, '"<mask>"', '"<other>"'), "got '<mask>' and '<other>' for id 4"),
        (lambda folder: shorten(folder, -1), "got .* and None for id 2047"),
        (lambda folder: shorten(folder, 1), "got None and 'extra' for id 2048"),
    ],
)
def test_two_files_that_disagree_are_refused(both: Path, tmp_path: Path, change: Callable, message: str) -> None:
    folder = shutil.copytree(both, tmp_path / "model")
    change(folder)
    with pytest.raises(TokenizerError, match=f"must hold the same pieces; {message} in '{folder}'"):
        Tokenizer.load(folder)


def shorten(folder: Path, n_pieces: int) -> None:
    last = small_tokenizer().piece(2047)
    if n_pieces < 0:
        change_json(folder, f',\n      "{last}": 2047', "")
    else:
        change_json(folder, f'"{last}": 2047', f'"{last}": 2047, "extra": 2048')


TALES = [row["text"] for row in golden("small")] + [
    "The old wolf said to the young wolf: go into the wood, and there you will find 1234 trees.\n\n",
    "    def wood(trees):\n        return trees + 12\n",
] * 20


def test_a_trained_vocabulary_has_gemmas_pieces_at_gemmas_ids() -> None:
    tokenizer = train_tokenizer(TALES, vocab_size=700, max_run=4)
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]", "<unused0>"]
    assert [tokenizer.piece(i) for i in range(8)] == names
    turns = ["<unused98>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "\n\n\n", "\n\n\n\n", "\u2581\u2581"]
    assert [tokenizer.piece(i) for i in range(105, 113)] == turns
    assert tokenizer.vocab_size == 700
    assert len(tokenizer.control_ids) == 108
    tokenizer.check_against(CONFIG)


def test_a_trained_vocabulary_splits_digits_keeps_whitespace_and_falls_back_to_bytes() -> None:
    tokenizer = train_tokenizer(TALES, vocab_size=700)
    pieces = [tokenizer.piece(i) for i in tokenizer.encode("  1234\n\n🦊")]
    assert pieces == ["\u2581\u2581", *"1234", "\n\n", "<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>"]
    for row in golden("small"):
        assert tokenizer.decode(tokenizer.encode(row["text"])) == row["text"].replace("\u2581", " ")


def test_training_twice_gives_the_same_file(tmp_path: Path) -> None:
    first, second = (train_tokenizer(iter(TALES), vocab_size=700).save(tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_lines_of_any_length_are_learned_from() -> None:
    """sentencepiece leaves out, without a word, lines longer than its limit."""
    tokenizer = train_tokenizer(["the wolf " * 20_000 + "zyxwvut " * 5_000, *TALES], vocab_size=700)
    assert len(tokenizer.encode("zyxwvut")) == 1


@pytest.mark.parametrize(("texts", "vocab_size"), [(TALES, 100_000), (TALES, 300), ([], 700), (["a"], 8192)])
def test_a_vocabulary_that_cannot_be_learned_is_refused(texts: list[str], vocab_size: int) -> None:
    with pytest.raises(TokenizerError, match=f"vocab_size must suit the texts it is learned from; got {vocab_size}"):
        train_tokenizer(texts, vocab_size=vocab_size)
