"""Where a prompt comes from: the command line, a file or stdin."""

import sys
from pathlib import Path

from gemsmith.cli.console import UsageError
from gemsmith.errors import PromptError


def read_prompt(text: str | None, file: Path | None) -> str:
    """Return the prompt a call names.

    A text or file of "-", or neither when stdin is not a terminal, means stdin, read to its end. One line
    end at the close of a file or pipe is not part of the prompt: editors and shells add it.

    Raises:
        UsageError: Both were given, or none and nobody is piping.
        PromptError: The bytes are not UTF-8.
    """
    if text is not None and file is not None:
        raise UsageError(f"prompt must come from one place; got both TEXT and --file {str(file)!r}. Leave one out.")
    if text not in (None, "-"):
        return text
    if file is not None and str(file) != "-":
        return _without_line_end(decode_utf8(read_bytes(file), source=repr(str(file))))
    if text is None and file is None and sys.stdin.isatty():
        raise UsageError(
            'prompt must be given; got none. Call gemsmith generate "Once upon a time", or pipe a text in.'
        )
    return _without_line_end(decode_utf8(sys.stdin.buffer.read(), source="stdin"))


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        PromptError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise PromptError(f"file must be readable; got {str(path)!r}: {error.strerror}. Check its name.") from error


def decode_utf8(data: bytes, *, source: str, offset: int = 0) -> str:
    """Return the text of `data`.

    Args:
        source: Where the bytes came from, for the message.
        offset: How many bytes of the source went before.

    Raises:
        PromptError: A byte is not UTF-8; its offset is named.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start : error.start + 1]
        raise PromptError(
            f"text must be UTF-8; got byte {byte!r} at offset {offset + error.start} of {source}. "
            "Convert it first, for instance with iconv -f latin1 -t utf-8."
        ) from error


def _without_line_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
