"""Documents out of files, and which of them are held out."""

import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemsmith.data.documents import Document, _letters, held_out, read_documents
from gemsmith.data.readers import read_rows, read_texts
from gemsmith.data.stories import fable_request, story_request
from gemsmith.errors import DataError

ROWS = [{"text": "Once upon a time there was a tiny red fox.\n", "id": 1}, {"text": "Ein kleiner Bär.", "id": 2}]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.xz", "a.jsonl.gz"])
def test_rows_are_read_packed_or_not(tmp_path: Path, name: str) -> None:
    assert list(read_rows(write(tmp_path / name, ROWS))) == ROWS


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got '.*nowhere\.jsonl', which is not there"):
        list(read_rows(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", '"text"'])
def test_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"near line 2 of a\.jsonl"):
        list(read_rows(path))


def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\xff\xfe"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl \(.*utf-8"):
        list(read_rows(path))


def test_broken_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.xz", ROWS * 50)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.jsonl\.xz"):
        list(read_rows(path))


def test_field_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": None, "body": "b"}])
    with pytest.raises(DataError, match=r"'text' must be text; got 'None' in line 2 of a\.jsonl.*text, body"):
        list(read_texts(path))


@pytest.mark.parametrize(
    ("form", "row", "text", "turns"),
    [
        ("text", {"text": " A.\n"}, "A.", ()),
        ("titled", {"title": "T", "text": "A.\n"}, "T\n\nA.", ()),
        ("book", {"text": "One\nline.\r\n\r\nTwo\nlines."}, "One line.\n\nTwo lines.", ()),
        ("instruction", {"instruction": "I", "input": "x", "output": "O "}, "", (("user", "I\n\nx"), ("model", "O"))),
        ("instruction", {"instruction": "I", "context": "", "response": "O"}, "", (("user", "I"), ("model", "O"))),
        ("question", {"context": "C", "question": "Q?", "answer": "A"}, "", (("user", "C\n\nQ?"), ("model", "A"))),
        (
            "dialogue",
            {"turns": [{"role": "USER", "text": "Hi"}, {"role": "SYSTEM", "text": "Yes?", "call": []}]},
            "",
            (("user", "Hi"), ("model", "Yes?")),
        ),
    ],
)
def test_forms(
    tmp_path: Path, form: str, row: dict[str, object], text: str, turns: tuple[tuple[str, str], ...]
) -> None:
    (document,) = read_documents(write(tmp_path / "a.jsonl", [row]), form=form)
    assert (document.text, document.turns) == (text, turns)


def test_unknown_form_and_missing_fields_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError, match=r"form must be one of text.*got 'poem'"):
        list(read_documents(path, form="poem"))
    with pytest.raises(DataError, match=r"form 'question'; got .*'text'.* in line 1"):
        list(read_documents(path, form="question"))


def test_story_and_the_request_made_from_it_share_their_key(tmp_path: Path) -> None:
    story = 'Once there was a girl named Lily. "Hello," she said.'
    path = write(tmp_path / "a.jsonl", [{"text": story}])
    (told,), (asked,) = (list(read_documents(path, form=form)) for form in ("text", "story_request"))
    assert told.key == asked.key
    assert asked.turns[1] == ("model", story)


def test_spelling_of_a_key_does_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a", "title": "Snow-man"}, {"text": "b", "title": "Snow Man"}])
    assert len({d.key for d in read_documents(path, form="text", key_field="title")}) == 1


def test_held_out_takes_about_its_percentage_and_always_the_same() -> None:
    keys = [f"story {number}" for number in range(10_000)]
    chosen = [key for key in keys if held_out(key, 5.0)]
    assert 430 < len(chosen) < 570
    assert chosen == [key for key in keys if held_out(key, 5.0)]
    assert not set(chosen) - {key for key in keys if held_out(key, 8.0)}
    assert not [key for key in keys if held_out(key, 0.0)]


def test_requests_name_who_the_story_is_about() -> None:
    story = "One day, a little girl named Lily found a needle."
    (_, request), (_, answer) = story_request(story)
    assert "a little girl" in request
    assert answer == story
    assert "about a big bear" in story_request("Long ago there lived a big bear. He was sad.")[0][1]
    assert story_request("It rained.") == ()
    assert "about an angry owl" in fable_request("Fable:\n - Main Character: a angry owl\n - Setting", "Text")[0][1]
    assert fable_request("no character", "Text") == ()


@given(st.text())
def test_key_is_what_is_letter_or_digit(text: str) -> None:
    assert _letters(text) == "".join(c for c in text.casefold() if c.isalnum())


def test_documents_differ_alike_in_case_spaces_and_unicode_form_only() -> None:
    one = Document("One Caf\u00e9,\n two.", "")
    assert one.alike() == Document(" one cafe\u0301, TWO.", "").alike()
    assert one.alike() != Document("One Café; two.", "").alike()
    asked, told = Document("", "", (("user", "Hi"),)), Document("Hi", "")
    assert asked.alike() != told.alike()
    assert one.sha256() != Document("One Caf\u00e9, two.", "").sha256()
