"""A conversation survives its file, and no file passes for one that is not."""

from pathlib import Path

import pytest

from gemsmith.chat import Turn
from gemsmith.cli.conversation import Conversation
from gemsmith.errors import ChatError, PromptError, StorageError

TALK = Conversation("Be brief.", [Turn("user", "Hi\nthere 🦊\u2028!"), Turn("model", '{"role": "user"}')])


@pytest.mark.parametrize("talk", [TALK, Conversation(), Conversation("", [Turn("user", "Hi")])])
def test_what_is_saved_is_loaded(talk: Conversation, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    talk.save(path)
    assert Conversation.load(path) == talk
    assert list(tmp_path.iterdir()) == [path]


def test_file_has_one_turn_per_line(tmp_path: Path) -> None:
    TALK.save(tmp_path / "talk.jsonl")
    assert (tmp_path / "talk.jsonl").read_bytes().count(b"\n") == 3


def test_system_text_stands_before_the_turns() -> None:
    assert [turn.role for turn in TALK.all_turns()] == ["system", "user", "model"]
    assert [turn.role for turn in Conversation().all_turns()] == []


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ('{"role": "user", "content": "Hi"}\nHello\n', r"got 'Hello' in line 2 of talk\.jsonl"),
        ('{"role": "assistant", "content": "Hi"}\n', "assistant"),
        ('{"role": "user"}\n', "in line 1"),
        ('{"role": "user", "content": 7}\n', "in line 1"),
        ("[1, 2]\n", r"got '\[1, 2\]'"),
        ('{"role": "user", "content": "Hi"}\n{"role": "system", "content": "Late"}\n', "got 1 in"),
        ('{"role": "system", "content": "a"}\n{"role": "system", "content": "b"}\n', "got 2 in"),
    ],
)
def test_a_line_that_is_no_turn_is_named(text: str, culprit: str, tmp_path: Path) -> None:
    (tmp_path / "talk.jsonl").write_text(text)
    with pytest.raises(ChatError, match=culprit):
        Conversation.load(tmp_path / "talk.jsonl")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "talk.jsonl").write_bytes(b"\xff")
    with pytest.raises(PromptError, match="offset 0"):
        Conversation.load(tmp_path / "talk.jsonl")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    Conversation("old").save(path)
    (tmp_path / "talk.jsonl.partial").mkdir()  # stands where the new file is written
    with pytest.raises(StorageError, match=r"talk\.jsonl"):
        TALK.save(path)
    assert Conversation.load(path).system == "old"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        TALK.save(tmp_path / "nowhere" / "talk.jsonl")
