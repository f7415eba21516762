"""A prompt comes from the command line, a file or stdin, and is never guessed at."""

import io
from pathlib import Path

import pytest

from gemsmith.cli.console import UsageError
from gemsmith.cli.source import read_prompt
from gemsmith.errors import PromptError


class Stdin(io.TextIOWrapper):
    """Bytes on stdin, from a pipe or a terminal."""

    def __init__(self, data: bytes, *, is_terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch):
    return lambda data, **options: monkeypatch.setattr("sys.stdin", Stdin(data, **options))


def test_text_is_taken_as_it_is() -> None:
    assert read_prompt(" two\nlines\n", None) == " two\nlines\n"


@pytest.mark.parametrize("text", [None, "-"])
@pytest.mark.parametrize(("data", "prompt"), [(b"Once\n", "Once"), (b"a\n\n", "a\n"), (b"a\r\n", "a"), (b"", "")])
def test_stdin_loses_one_line_end(text: str | None, data: bytes, prompt: str, pipe) -> None:
    pipe(data)
    assert read_prompt(text, None) == prompt


def test_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Es war einmal ein Fuchs 🦊\n", encoding="utf-8")
    assert read_prompt(None, path) == "Es war einmal ein Fuchs 🦊"


def test_file_of_a_dash_is_stdin(pipe) -> None:
    pipe(b"piped")
    assert read_prompt(None, Path("-")) == "piped"


def test_bytes_that_are_not_utf8_are_named_with_their_offset(pipe) -> None:
    pipe(b"caf\xe9 au lait")
    with pytest.raises(PromptError, match=r"got byte b'\\xe9' at offset 3 of stdin"):
        read_prompt(None, None)


def test_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"na\xefve")
    with pytest.raises(PromptError, match=r"offset 2 of '.*latin1.txt'"):
        read_prompt(None, path)


def test_text_and_file_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"got both TEXT and --file 'p\.txt'"):
        read_prompt("hi", Path("p.txt"))


def test_no_prompt_on_a_terminal_is_refused(pipe) -> None:
    pipe(b"", is_terminal=True)
    with pytest.raises(UsageError, match="prompt must be given; got none"):
        read_prompt(None, None)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"'.*nowhere.txt': No such file"):
        read_prompt(None, tmp_path / "nowhere.txt")
