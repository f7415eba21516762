"""Text while it is written: pieces join to the whole, stop strings are never shown."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemsmith.infer.text import TextWriter
from gemsmith.tokenizer import StreamDecoder


class Letters(StreamDecoder):
    """A decoder whose ids are code points."""

    def __init__(self) -> None:
        self.rest = ""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def finish(self) -> str:
        return self.rest


class Chunks(Letters):
    """A decoder whose ids are numbers of ready pieces."""

    def __init__(self, pieces: list[str], rest: str = "") -> None:
        self.pieces, self.rest = pieces, rest

    def push(self, token_id: int) -> str:
        return self.pieces[token_id]


def write(pieces: list[str], stop: tuple[str, ...], rest: str = "") -> tuple[list[str], bool]:
    writer = TextWriter(Chunks(pieces, rest), stop)
    shown = []
    for index in range(len(pieces)):
        shown.append(writer.push(index))
        if writer.is_stopped:
            return shown, True
    return [*shown, writer.finish()], writer.is_stopped


def slow_cut(text: str, stop: tuple[str, ...]) -> str:
    """Read one character at a time until some stop string has just been completed."""
    for end in range(len(text) + 1):
        done = [len(s) for s in stop if text[:end].endswith(s)]
        if done:
            return text[: end - max(done)]
    return text


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab\n", max_size=4), max_size=8),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    st.text("ab", max_size=2),
)
def test_text_is_cut_at_the_stop_string_completed_first_however_it_arrives(
    pieces: list[str], stop: list[str], rest: str
) -> None:
    shown, is_stopped = write(pieces, tuple(stop), rest)
    whole = "".join(pieces) + rest
    assert "".join(shown) == slow_cut(whole, tuple(stop))
    assert is_stopped == any(s in whole for s in stop)


def test_only_what_may_still_become_a_stop_string_waits() -> None:
    shown, _ = write(["Hello", " U", "se", "less Us", "er:", " hi"], ("User:",))
    assert shown == ["Hello", " ", "", "Useless ", ""]


def test_without_stop_strings_nothing_waits() -> None:
    assert write(["a", "b"], ()) == (["a", "b", ""], False)


def test_a_stop_string_completed_by_the_last_bytes_counts() -> None:
    assert write(["ab"], ("b\ufffd",), rest="\ufffd") == (["a", ""], True)


def test_nothing_is_shown_after_the_stop() -> None:
    writer = TextWriter(Letters(), ("x",))
    assert [writer.push(ord(c)) for c in "axb"] == ["a", "", ""]
    assert writer.finish() == ""


@pytest.mark.parametrize("stop", [("ab", "abc"), ("abc", "ab"), ("b", "ab")])
def test_of_stops_that_end_together_or_nested_the_result_is_unique(stop: tuple[str, ...]) -> None:
    assert "".join(write(["xabcy"], stop)[0]) == slow_cut("xabcy", stop)
