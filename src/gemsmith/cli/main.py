"""The `gemsmith` command: run one line, turn every way it can end into an exit status.

0 is success, 1 a failure, 2 a wrong call, 75 a run that was asked to stop and saved itself first (the same
call goes on), 130 a stop by Ctrl-C, 141 a reader of our output that went away.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

FAILURE, WRONG_CALL, SAVED, INTERRUPTED, READER_GONE = 1, 2, 75, 130, 141

# An import cut short by Ctrl-C may surface as some other error (C extensions report ImportError); an
# unexpected error this soon after the key is taken for its consequence.
INTERRUPT_ECHO_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status.

    Args:
        argv: The words after the program's name; those of this process when None.
    """
    with _watched_interrupts(is_own_process=argv is None) as seconds_since_interrupt:
        try:
            # Imported here so that Ctrl-C is already handled while it loads.
            from gemsmith.cli.app import run

            status = run(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            return _close_stdout()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or seconds_since_interrupt() < INTERRUPT_ECHO_S:
                return _stopped()
            return _failed(error)


@contextmanager
def _watched_interrupts(*, is_own_process: bool) -> Iterator[Callable[[], float]]:
    """Raise KeyboardInterrupt on Ctrl-C and yield a clock that counts from the last one.

    Args:
        is_own_process: Nothing follows but the interpreter's own shutdown, which a second Ctrl-C may cut short.
    """
    pressed_at = -INTERRUPT_ECHO_S

    def remember(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed_at
        pressed_at = time.monotonic()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: INTERRUPT_ECHO_S
        return
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: time.monotonic() - pressed_at
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if is_own_process else before)


def _failed(error: BaseException) -> int:
    """Print what went wrong in one message and return the exit status."""
    from gemsmith.cli.console import is_wrong_call, say
    from gemsmith.errors import GemsmithError, RunInterrupted

    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILURE if error.code else 0
    if os.environ.get("GEMSMITH_TRACEBACK"):
        raise error
    if isinstance(error, GemsmithError | OSError):
        say(f"gemsmith: {error}")
        if isinstance(error, RunInterrupted):
            return SAVED
        return WRONG_CALL if is_wrong_call(error) else FAILURE
    say(f"gemsmith: unexpected {type(error).__name__}: {error}")
    say("This is a defect of gemsmith. Set GEMSMITH_TRACEBACK=1 to see where it comes from.")
    return FAILURE


def _stopped() -> int:
    """End what was written so far; nothing of it is taken back."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            return _close_stdout()
    print("\ngemsmith: stopped", file=sys.stderr)
    return INTERRUPTED


def _close_stdout() -> int:
    """Point stdout at nothing, so that the interpreter's last flush cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return READER_GONE
