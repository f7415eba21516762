"""Documents: one text or one conversation each, with where it came from and what decides its fate."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemsmith.data.forms import FORMS, Turns
from gemsmith.data.readers import BinaryFileError, Row, SourceFile, read_numbered, read_whole, text_of
from gemsmith.errors import DataError

# What str.isalnum denies, in one call for a whole text.
_NO_LETTERS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Document:
    """One text, or one conversation.

    Attributes:
        text: Empty when the document is a conversation.
        turns: Pairs (role, content), the user's first.
        key: What decides whether it is held out; documents made from one source text share it.
        file: Name of its file, below the folder of the data.
        line: Its line in the file; 0 where the file is one document.
        is_binary: It stands for a file that is no text.
    """

    text: str
    key: str
    turns: Turns = ()
    file: str = ""
    line: int = 0
    is_binary: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the row gave nothing, as a story does whose form finds no one in it."""
        return not (self.text or self.turns)

    @property
    def place(self) -> str:
        """Where it came from, for messages."""
        return f"line {self.line} of {self.file}" if self.line else self.file

    @property
    def content(self) -> str:
        """All its text."""
        return "\n".join(self.parts)

    @property
    def parts(self) -> tuple[str, ...]:
        """Its text, or what is said in each turn."""
        return tuple(content for _, content in self.turns) or (self.text,)

    @property
    def n_bytes(self) -> int:
        """Bytes of its text in UTF-8."""
        return sum(len(part.encode()) for part in self.parts)

    def sha256(self) -> bytes:
        """Return the hash of exactly this text or conversation."""
        return hashlib.sha256(_spelled(self.text, self.turns)).digest()

    def alike(self) -> int:
        """Return 64 bits that documents share which differ in case, spaces or Unicode form only."""
        turns = tuple((role, normalized(content)) for role, content in self.turns)
        digest = hashlib.sha256(_spelled(normalized(self.text), turns)).digest()
        return int.from_bytes(digest[:8], "little")


def normalized(text: str) -> str:
    """Return a text without what exact duplicates may differ in: case, runs of spaces, Unicode form."""
    plain = text if text.isascii() else unicodedata.normalize("NFC", text)
    return " ".join(plain.casefold().split())


def read_documents(path: Path, *, form: str, key_field: str | None = None) -> Iterator[Document]:
    """Yield the documents of a file; rows that give none are passed over.

    Args:
        form: How a row becomes documents: one of FORMS.
        key_field: Field whose letters and digits decide about holding out; the text by default.

    Raises:
        DataError: The form is unknown, or a row lacks what it needs.
    """
    for document in documents_of([SourceFile(path, path.name)], form=form, key_field=key_field):
        if not document.is_empty:
            yield document


def documents_of(
    files: Sequence[SourceFile], *, form: str, key_field: str | None = None, skips_binary: bool = False
) -> Iterator[Document]:
    """Yield a document for every row of every file, empty ones too.

    Args:
        skips_binary: Files that are no text give an empty document instead of an error.

    Raises:
        DataError: The form is unknown, a file cannot be read, or a row lacks what the form needs.
    """
    if form not in FORMS:
        raise DataError(f"form must be one of {', '.join(FORMS)}; got {form!r}. Choose one of them.")
    for file in files:
        for line, row in _rows(file, skips_binary=skips_binary):
            yield _document(row, file.name, line, form=form, key_field=key_field)


def held_out(key: str, percent: float) -> bool:
    """Tell whether a document belongs to the slice that is never trained on; a function of its key alone."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return number < percent / 100 * 2**64


def _rows(file: SourceFile, *, skips_binary: bool) -> Iterator[tuple[int, Row]]:
    if file.holds_lines:
        yield from read_numbered(file.path)
        return
    try:
        yield 0, {"text": read_whole(file.path), "path": file.name}
    except BinaryFileError:
        if not skips_binary:
            raise
        yield 0, {}


def _document(row: Row, file: str, line: int, *, form: str, key_field: str | None) -> Document:
    if not row and not line:
        return Document("", "", file=file, is_binary=True)
    place = f"line {line} of {Path(file).name}" if line else file
    key = None if key_field is None else _letters(text_of(row, key_field, place))
    try:
        text, turns = FORMS[form](row)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            f"row must have the fields of form {form!r}; got {sorted(row)} in {place}. Choose another form."
        ) from error
    if key is None:
        key = _letters(text or (turns[-1][1] if turns else ""))
    return _check_unicode(Document(text, key, turns, file, line))


def _letters(text: str) -> str:
    """Drop case, spaces and punctuation, so that small differences of spelling share a key."""
    return _NO_LETTERS.sub("", text.casefold())


def _spelled(text: str, turns: Turns) -> bytes:
    return json.dumps([text, turns], ensure_ascii=False).encode() if turns else text.encode()


def _check_unicode(document: Document) -> Document:
    try:
        document.content.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(
            f"text must be valid Unicode; got {half!r}, half of a pair, in {document.place}. Repair the row."
        ) from error
    return document
