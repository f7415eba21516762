"""tokenizer_config.json: other programs see the same ids as we do."""

import json
from pathlib import Path

import pytest

from gemsmith.chat import Turn, compile_chat
from gemsmith.tokenizer import Tokenizer
from gemsmith.vocabulary.model_file import USER_DEFINED, Piece, Vocabulary
from gemsmith.weights.save import save_folder
from gemsmith.weights.tokenizer_config import CHAT_TEMPLATE, render_tokenizer_config
from tiny import tiny_network
from vocab import SMALL, small_tokenizer

TEXT = "Once  upon\n\n\ta <b>time</b>: 123 \N{SNOWMAN} <end_of_turn>\n"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tokenizer = small_tokenizer()
    return save_folder(tmp_path / "m", tiny_network(vocab_size=tokenizer.vocab_size), tokenizer=tokenizer)


def test_a_saved_folder_says_that_bos_comes_first_and_how_turns_are_written(saved: Path) -> None:
    raw = json.loads((saved / "tokenizer_config.json").read_text())
    assert raw["add_bos_token"] is True
    assert raw["chat_template"] == CHAT_TEMPLATE


def test_a_vocabulary_without_turns_has_no_template() -> None:
    token_id = small_tokenizer().id_of("<end_of_turn>")
    assert token_id is not None
    spare = {token_id: Piece("<unused200>", 0.0, USER_DEFINED)}
    raw = render_tokenizer_config(Tokenizer(Vocabulary.from_bytes(SMALL.read_bytes()).with_pieces(spare)))
    assert raw["add_bos_token"] is True
    assert raw.keys() & {"chat_template", "additional_special_tokens"} == set()


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
def test_transformers_reads_texts_as_we_do(saved: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(saved), small_tokenizer()
    ids = ours.encode(TEXT, control=True)
    assert theirs(TEXT)["input_ids"] == [ours.bos_id, *ids]
    assert theirs.decode(ids, skip_special_tokens=True) == TEXT.replace("<end_of_turn>", "")


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
def test_transformers_reads_conversations_as_we_do(saved: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    turns = [Turn("user", " a"), Turn("model", "b\n"), Turn("user", "c")]
    messages = [{"role": {"model": "assistant"}.get(t.role, t.role), "content": t.content} for t in turns]
    found = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert found == compile_chat(turns, small_tokenizer(), family="gemma2", open_answer=True).token_ids
