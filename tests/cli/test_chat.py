"""chat: turns in, answers out, down a pipe and in a terminal."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gemsmith.cli.chat import read_lines
from gemsmith.cli.conversation import Conversation
from gemsmith.cli.main import main
from gemsmith.infer.generate import Generation
from gemsmith.infer.lm import LM
from gemsmith.infer.load import load
from gemsmith.weights.folder import save_folder
from tiny import tiny_network

Talk = Callable[..., tuple[int, str, str]]


@pytest.fixture
def talk(capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Return a whole conversation with the tiny model down a pipe: exit status, stdout, stderr."""

    def call(*lines: str | bytes, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
        data = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        status = main(["chat", "--model", str(folder), "-n", "5", *options])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """Return what the model is shown at each turn, as (role, text)."""
    seen: list[list[tuple[str, str]]] = []
    stream = LM.stream

    def watched(lm: LM, prompt: list, **options: object) -> object:
        seen.append([(turn.role, turn.text) for turn in prompt])
        return stream(lm, prompt, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(LM, "stream", watched)
    return seen


def test_each_turn_sees_the_ones_before(talk: Talk, prompts: list) -> None:
    status, out, err = talk("Hello", "And then?", "/quit", "never read")
    assert status == 0
    assert [role for role, _ in prompts[1]] == ["user", "model", "user"]
    assert prompts[1][0] == ("user", "Hello")
    assert len(prompts) == 2
    assert err.count(" tokens/s") == 2
    assert out.endswith("\n")


def test_answers_alone_go_to_stdout(talk: Talk, tmp_path: Path) -> None:
    _, out, _ = talk("Hello", "/set", "/help", f"/save {tmp_path / 'a.jsonl'}", "/nope")
    answers = [turn.text for turn in Conversation.load(tmp_path / "a.jsonl").turns if turn.role == "model"]
    assert out.strip() == "\n".join(answers)


def test_system_text_is_shown_and_taken_away(talk: Talk, prompts: list) -> None:
    talk("/system Be brief.", "Hi", "/system", "/reset", "Ho")
    assert prompts[0][0] == ("system", "Be brief.")
    assert prompts[1] == [("user", "Ho")]


def test_system_option_is_the_same(talk: Talk, prompts: list) -> None:
    talk("Hi", options=("--system", "Be kind."))
    assert prompts[0][0] == ("system", "Be kind.")


def test_settings_change_the_next_answer(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    talk("/set temperature 0", "/set max_new_tokens 9", "Hi", "/reset", "/set seed 4", "Hi", f"/save {path}")
    first = Conversation.load(path)
    talk("/set temperature 0", "/set max_new_tokens 9", "Hi", f"/save {path}")
    assert Conversation.load(path) == first


def test_max_new_tokens_is_obeyed(talk: Talk) -> None:
    assert "[2 tokens" in talk("/set max_new_tokens 2", "/set temperature 0", "Hi")[2]


def test_a_conversation_goes_on_from_its_file(talk: Talk, prompts: list, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    talk("/system Be brief.", "Hello", f"/save {path}")
    talk(f"/load {path}", "And then?")
    assert [role for role, _ in prompts[-1]] == ["system", "user", "model", "user"]
    talk("And then?", options=("--load", str(path)))
    assert prompts[-1] == prompts[-2]


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ("/nope", "got '/nope'"),
        ("/set warmth 3", "got 'warmth'"),
        ("/set temperature hot", "got 'hot'"),
        ("/set temperature -1", "got -1.0"),
        ("/set max_new_tokens 0", "got 0"),
        ("/set top_k 0", "got 0"),
        ("/save", "/save must name a file"),
        ("/load nowhere.jsonl", "nowhere.jsonl"),
        ("so long " * 300, "256"),
    ],
)
def test_a_mistake_is_told_and_the_conversation_goes_on(line: str, culprit: str, talk: Talk, prompts: list) -> None:
    status, _, err = talk("Hello", line, "And then?")
    assert status == 0
    assert culprit in err
    assert [role for role, _ in prompts[-1]] == ["user", "model", "user"]


def test_bytes_that_are_not_utf8_end_it_with_their_offset(talk: Talk) -> None:
    status, _, err = talk("Hello", b"caf\xe9")
    assert status == 2
    assert "at offset 9 of stdin" in err


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    talk: Talk, prompts: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, calls = Generation.step, []

    def interrupted(generation: Generation) -> None:
        calls.append(1)
        if len(calls) == 16:
            raise KeyboardInterrupt
        advance(generation)

    monkeypatch.setattr(Generation, "step", interrupted)
    status, _, err = talk("/set temperature 0", "/set max_new_tokens 30", "Hello", "/set max_new_tokens 2", "And then?")
    assert status == 0
    assert "[15 tokens" in err
    assert [role for role, _ in prompts[1]] == ["user", "model", "user"]


def test_an_answer_stopped_before_its_first_word_leaves_no_trace(
    talk: Talk, prompts: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, calls = Generation.step, []

    def interrupted(generation: Generation) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        advance(generation)

    monkeypatch.setattr(Generation, "step", interrupted)
    talk("Hello", "And then?")
    assert prompts[1] == [("user", "And then?")]


class Terminal:
    """`gemsmith chat` in a terminal of its own."""

    def __init__(self, *argv: str) -> None:
        self.screen, inside = pty.openpty()
        argv = (sys.executable, "-m", "gemsmith", *argv)
        self.process = subprocess.Popen(argv, stdin=inside, stdout=inside, stderr=inside)
        os.close(inside)
        self.shown = ""

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} never came; the screen shows {self.shown!r}"
            if select.select([self.screen], [], [], 1.0)[0]:
                self.shown += os.read(self.screen, 65536).decode(errors="replace")
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def press_ctrl_c(self) -> None:
        time.sleep(0.1)  # the prompt is on the screen a moment before its reader waits
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_in_a_terminal_ctrl_c_stops_an_answer_and_twice_at_the_prompt_leaves(folder: Path, tmp_path: Path) -> None:
    lm = load(folder)  # its network is small enough to fill a short context before a key is pressed
    network = tiny_network(vocab_size=lm.config.vocab_size, max_seq_len=200_000)
    patient = save_folder(tmp_path / "patient", network, tokenizer=lm.tokenizer)
    terminal = Terminal("chat", "--model", str(patient), "-n", "100000")
    try:
        terminal.wait_for("> ")
        terminal.type("/set temperature 0\n")
        terminal.wait_for("seed None")
        terminal.type("Hello\n")
        terminal.wait_for("Hello\r\n")
        terminal.press_ctrl_c()
        terminal.wait_for("stopped]")
        terminal.wait_for("> ")
        terminal.press_ctrl_c()
        terminal.wait_for("/quit to leave")
        terminal.press_ctrl_c()
        assert terminal.process.wait(timeout=60) == 130
    finally:
        terminal.close()


class Keyboard(io.StringIO):
    """A terminal's stdin."""

    def isatty(self) -> bool:
        return True


def typed(monkeypatch: pytest.MonkeyPatch, *keys: str | type[BaseException]) -> None:
    """Have `input` return lines and raise what Ctrl-C and Ctrl-D raise."""
    waiting = list(keys)

    def answer(prompt: str = "") -> str:
        key = waiting.pop(0)
        if isinstance(key, str):
            return key
        raise key

    monkeypatch.setattr("sys.stdin", Keyboard())
    monkeypatch.setattr("builtins.input", answer)


def test_ctrl_d_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "one", EOFError)
    assert list(read_lines()) == ["one"]


def test_a_line_between_two_ctrl_c_makes_them_two_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, KeyboardInterrupt, "one", KeyboardInterrupt, "two", EOFError)
    assert list(read_lines()) == ["one", "two"]


def test_two_ctrl_c_in_a_row_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "one", KeyboardInterrupt, KeyboardInterrupt, "two")
    lines = read_lines()
    assert next(lines) == "one"
    with pytest.raises(KeyboardInterrupt):
        next(lines)


def test_escape_sequences_of_a_model_do_not_reach_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemsmith.cli.console import write_piece

    write_piece("a\x1b[2Jb\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write_piece("a\x1b[2Jb\n\t")
    assert capsys.readouterr().out == "a\x1b[2Jb\n" + "a\N{REPLACEMENT CHARACTER}[2Jb\n\t"
