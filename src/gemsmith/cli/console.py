"""What a verb says: results on stdout, everything else on stderr."""

import json
import sys
from collections.abc import Mapping

from gemsmith.errors import GemsmithError, PromptError, SamplingError


class UsageError(GemsmithError, ValueError):
    """A call that cannot mean anything: options that exclude each other, or none of what is needed."""


def is_wrong_call(error: BaseException) -> bool:
    """Tell a call that can never work from a failure of this machine or model."""
    return isinstance(error, UsageError | PromptError | SamplingError)


def write(text: str, *, end: str = "\n") -> None:
    """Write a piece of the result at once."""
    print(text, end=end, flush=True)


def write_json(fields: Mapping[str, object]) -> None:
    """Write the result as one line of JSON."""
    write(json.dumps(fields, ensure_ascii=False))


def say(text: str, *, end: str = "\n") -> None:
    """Tell the person something that is not part of the result."""
    print(text, end=end, file=sys.stderr, flush=True)


def table(rows: list[tuple[str, ...]]) -> str:
    """Lay rows out in columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
