"""`gemsmith chat`: a conversation in the terminal, or down a pipe."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gemsmith.cli.console import UsageError, say, write, write_piece
from gemsmith.cli.flags import EndFlags, ModelName, PlaceFlags, SamplingFlags
from gemsmith.cli.source import decode_utf8
from gemsmith.cli.speech import summary
from gemsmith.errors import GemsmithError, PromptError

if TYPE_CHECKING:
    from gemsmith.cli.session import Session

HELP = """\
/system TEXT       what the model is told before the first turn; alone, it takes the text away
/set NAME VALUE    change a setting, such as /set temperature 0.7; alone, it lists them
/save FILE         keep the conversation in a file
/load FILE         go on with one
/reset             begin anew
/quit              leave; Ctrl-D does too, and Ctrl-C stops an answer"""


def chat(
    *,
    system: str = "",
    load: Path | None = None,
    model: ModelName = "pebble",
    place: PlaceFlags = PlaceFlags(),  # noqa: B008 (frozen)
    end: EndFlags = EndFlags(),  # noqa: B008 (frozen)
    sampling: SamplingFlags = SamplingFlags(),  # noqa: B008 (frozen)
) -> int:
    """Talk with a model, turn by turn. Answers go to stdout, all else to stderr.

    Args:
        system: What the model is told before the first turn.
        load: A conversation to go on with, written by /save.
    """
    from gemsmith.cli.conversation import Conversation
    from gemsmith.cli.session import Session

    conversation = Conversation() if load is None else Conversation.load(load)
    if system:
        conversation.system = system
    lm = place.load(model)
    session = Session(lm, sampling.over(lm.sampling), end, conversation)
    if sys.stdin.isatty():
        say(f"{session.lm.name}: write something; /help lists the commands.")
    for line in read_lines():
        if line.strip() in ("/quit", "/exit"):
            break
        with survived():
            take(session, line)
    return 0


def take(session: "Session", line: str) -> None:
    """Run a command, or answer a turn."""
    if not line.strip():
        return
    if line.startswith("/"):
        command, _, words = line[1:].strip().partition(" ")
        run_command(session, command, words.strip())
        return
    answer = session.answer(line, show=write_piece)
    write("")
    say(summary(answer))


def run_command(session: "Session", command: str, words: str) -> None:
    """Run one line that began with a slash.

    Raises:
        UsageError: There is no such command.
    """
    commands: dict[str, Callable[[str], None]] = {
        "help": lambda _: say(HELP),
        "system": session.set_system,
        "set": session.set,
        "save": lambda words: session.save(Path(required(words, "/save"))),
        "load": lambda words: session.load(Path(required(words, "/load"))),
        "reset": lambda _: session.reset(),
    }
    if command not in commands:
        known = ", ".join(f"/{name}" for name in (*commands, "quit"))
        raise UsageError(f"command must be one of {known}; got {'/' + command!r}. /help says what each does.")
    commands[command](words)


def required(words: str, command: str) -> str:
    """Return the file name a command needs.

    Raises:
        UsageError: It is missing.
    """
    if not words:
        raise UsageError(f"{command} must name a file; got none. Write {command} talk.jsonl.")
    return words


@contextlib.contextmanager
def survived() -> Iterator[None]:
    """Let the conversation go on after a line that went wrong or was stopped by Ctrl-C."""
    try:
        yield
    except GemsmithError as error:
        say(f"gemsmith: {error}")
        if isinstance(error, PromptError):
            say("The turn was left out. /reset begins anew, /save keeps what was said.")
    except KeyboardInterrupt:
        say("[stopped]")


def read_lines() -> Iterator[str]:
    """Yield what the person writes until they leave. Ctrl-C at the prompt has to be pressed twice to leave.

    Raises:
        PromptError: A piped line is not UTF-8.
    """
    if not sys.stdin.isatty():
        offset = 0
        for line in sys.stdin.buffer:
            yield decode_utf8(line, source="stdin", offset=offset).rstrip("\r\n")
            offset += len(line)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives input() its history and line editing)
    was_interrupted = False
    while True:
        try:
            yield prompt_line()
            was_interrupted = False
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            if was_interrupted:
                raise
            was_interrupted = True
            say("\n(Ctrl-C again or /quit to leave)")


def prompt_line() -> str:
    """Ask for one line; the prompt never enters a redirected stdout."""
    if sys.stdout.isatty():
        return input("> ")
    say("> ", end="")
    return input()
