"""Documents out of files: JSON lines, plain or compressed, with texts or conversations in them."""

import bz2
import gzip
import hashlib
import json
import lzma
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gemsmith.data.stories import fable_request, story_request
from gemsmith.errors import DataError

_OPENERS: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


@dataclass(frozen=True)
class Document:
    """One text, or one conversation.

    Attributes:
        text: Empty when the document is a conversation.
        turns: Pairs (role, content), the user's first.
        key: What decides whether it is held out; documents made from one source text share it.
    """

    text: str
    key: str
    turns: tuple[tuple[str, str], ...] = ()


def read_rows(path: Path) -> Iterator[dict[str, object]]:
    """Yield the objects of a JSON lines file; `.xz`, `.gz` and `.bz2` are unpacked.

    Raises:
        DataError: The file is missing, or a line is not a JSON object in UTF-8; file and line are named.
    """
    if not path.is_file():
        raise DataError(f"data must be a file of JSON lines; got {str(path)!r}, which is not there. Check the path.")
    with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as lines:
        number = 1
        try:
            for line in lines:
                if line.strip():
                    yield _object(line)
                number += 1
        except (ValueError, lzma.LZMAError, EOFError, OSError) as error:
            raise DataError(
                f"data must hold one JSON object per line, in UTF-8; got an error near line {number} of "
                f"{path.name} ({error}). Repair or remove the line."
            ) from error


def read_texts(path: Path, field: str = "text") -> Iterator[str]:
    """Yield one field of every row.

    Raises:
        DataError: A row has no such field, or it is not text.
    """
    for number, row in enumerate(read_rows(path), 1):
        yield _text(row, field, path, number)


def read_documents(path: Path, *, form: str, key_field: str | None = None) -> Iterator[Document]:
    """Yield the documents of a file.

    Args:
        form: How a row becomes documents: one of FORMS.
        key_field: Field whose letters and digits decide about holding out; the text by default.

    Raises:
        DataError: The form is unknown, or a row lacks what it needs.
    """
    if form not in FORMS:
        raise DataError(f"form must be one of {', '.join(FORMS)}; got {form!r}. Choose one of them.")
    for number, row in enumerate(read_rows(path), 1):
        key = None if key_field is None else _letters(_text(row, key_field, path, number))
        try:
            text, turns = FORMS[form](row)
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"row must have the fields of form {form!r}; got {sorted(row)} in row {number} of {path.name}. "
                "Choose another form."
            ) from error
        if text or turns:
            yield Document(text, key if key is not None else _letters(text or turns[-1][1]), turns)


def held_out(key: str, percent: float) -> bool:
    """Tell whether a document belongs to the slice that is never trained on; a function of its key alone."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return number < percent / 100 * 2**64


def _object(line: str) -> dict[str, object]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"{line[:40]!r} is not an object")
    return row


def _text(row: Mapping[str, object], field: str, path: Path, number: int) -> str:
    value = row.get(field)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise DataError(
            f"field {field!r} must be text; got {str(value)[:60]!r} in row {number} of {path.name}. "
            f"The row's fields are {', '.join(row)}."
        )
    return value


def _letters(text: str) -> str:
    """Drop case, spaces and punctuation, so that small differences of spelling share a key."""
    return "".join(c for c in text.casefold() if c.isalnum())


Parts = tuple[str, tuple[tuple[str, str], ...]]


def _plain(row: Mapping[str, object]) -> Parts:
    return str(row["text"]).strip(), ()


def _book(row: Mapping[str, object]) -> Parts:
    """Join the lines of a paragraph; books arrive wrapped to a fixed width."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", str(row["text"]).replace("\r", "")).strip(), ()


def _titled(row: Mapping[str, object]) -> Parts:
    return f"{row['title']}\n\n{str(row['text']).strip()}", ()


def _instruction(row: Mapping[str, object]) -> Parts:
    """Read an instruction, perhaps some material for it, and the answer."""
    material = str(row.get("input") or row.get("context") or "").strip()
    question = str(row["instruction"]).strip() + (f"\n\n{material}" if material else "")
    return "", (("user", question), ("model", str(row.get("output") or row["response"]).strip()))


def _question(row: Mapping[str, object]) -> Parts:
    question = f"{str(row['context']).strip()}\n\n{row['question']}"
    return "", (("user", question), ("model", str(row["answer"]).strip()))


def _dialogue(row: Mapping[str, object]) -> Parts:
    roles = {"USER": "user", "SYSTEM": "model"}
    turns: list[dict[str, str]] = row["turns"]  # pyright: ignore[reportAssignmentType]
    return "", tuple((roles[turn["role"]], turn["text"].strip()) for turn in turns)


def _story_request(row: Mapping[str, object]) -> Parts:
    return "", story_request(str(row["text"]))


def _fable_request(row: Mapping[str, object]) -> Parts:
    return "", fable_request(str(row["prompt"]), str(row["text"]))


FORMS: dict[str, Callable[[Mapping[str, object]], Parts]] = {
    "text": _plain,
    "book": _book,
    "titled": _titled,
    "instruction": _instruction,
    "question": _question,
    "dialogue": _dialogue,
    "story_request": _story_request,
    "fable_request": _fable_request,
}
