"""What a verb says: results on stdout, everything else on stderr."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gemsmith.errors import GemsmithError, PromptError, SamplingError

# Escape and its kin steer a terminal; tab and newline stay.
_HARMLESS = {
    code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\t\n"
}


class UsageError(GemsmithError, ValueError):
    """A call that cannot mean anything: options that exclude each other, or none of what is needed."""


def is_wrong_call(error: BaseException) -> bool:
    """Tell a call that can never work from a failure of this machine or model."""
    return isinstance(error, UsageError | PromptError | SamplingError)


def write(text: str, *, end: str = "\n") -> None:
    """Write a piece of the result at once."""
    print(text, end=end, flush=True)


def write_piece(text: str) -> None:
    """Write a piece of a model's text; a terminal gets no control characters it might obey."""
    write(text.translate(_HARMLESS) if sys.stdout.isatty() else text, end="")


def write_json(fields: Mapping[str, object]) -> None:
    """Write the result as one line of JSON."""
    write(json.dumps(fields, ensure_ascii=False))


def say(text: str, *, end: str = "\n") -> None:
    """Tell the person something that is not part of the result."""
    print(text, end=end, file=sys.stderr, flush=True)


class Said(logging.Handler):
    """Shows the package's log as things said to the person."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say one message."""
        say(f"gemsmith: {record.getMessage()}")


@contextmanager
def shown_log() -> Iterator[None]:
    """Show what the package notes while it works, such as the device and dtype it chose."""
    log, handler = logging.getLogger("gemsmith"), Said()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def table(rows: list[tuple[str, ...]]) -> str:
    """Lay rows out in columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
