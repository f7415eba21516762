"""The sources of a recipe: where documents come from, how much of them, and what is held out."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemsmith.data.documents import Document, documents_of, held_out
from gemsmith.data.forms import FORMS
from gemsmith.data.readers import SourceFile, find_files
from gemsmith.errors import DataError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_SAMPLE = 4000  # characters of a piece of text that a vocabulary is learned from


@dataclass(frozen=True)
class Source:
    """One file or folder of a mixture.

    Attributes:
        path: A file, or a folder of which `include` names the files; JSON lines give a document per row,
            every other file is one document.
        license: Licence of the texts, carried into the model's card.
        share: Part of all tokens, relative to the other sources.
        late_share: The same for the last part of a run; `share` by default.
        repository: Where the texts were published.
        commit: The state of the repository they were taken from.
        ships: Whether weights trained on it may be given away.
        include: Patterns such as "**/*.py".
        skips_binary: Files that are no text are passed over and counted instead of refused.
        form: How a row becomes documents.
        held_out: Percent of documents, by hash of their key, that are never trained on.
        megabytes: Only so much of the texts is read.
        max_epochs: How often a document may be seen.
    """

    name: str
    path: str
    license: str
    share: float
    late_share: float = -1.0
    repository: str = ""
    commit: str = ""
    ships: bool = True
    include: tuple[str, ...] = ()
    skips_binary: bool = False
    form: str = "text"
    key_field: str | None = None
    held_out: float = 0.0
    megabytes: float = float("inf")
    max_epochs: int = 10

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DataError(
                f"name must be letters, digits, '_', '.' and '-', as files are named by it; got {self.name!r}. "
                "Rename the source."
            )
        if self.form not in FORMS:
            raise DataError(
                f"form must be one of {', '.join(FORMS)}; got {self.form!r} in source {self.name!r}. "
                "Choose one of them."
            )
        if not self.share >= 0:
            raise DataError(f"share must be 0 or more; got {self.share!r} in source {self.name!r}. Correct the recipe.")
        if not 0 <= self.held_out < 100:
            raise DataError(
                f"held_out must be a percentage from 0 to below 100; got {self.held_out!r} in source {self.name!r}. "
                "Correct the recipe."
            )

        for pattern in self.include:
            if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
                raise DataError(
                    f"include must be patterns below the source's path; got {pattern!r} in source {self.name!r}. "
                    'Write one such as "**/*.py".'
                )

    def weight(self, *, is_late: bool) -> float:
        """Return the share of the main or of the last part of a run."""
        return self.late_share if is_late and self.late_share >= 0 else self.share

    def files(self, data_dir: Path) -> list[SourceFile]:
        """Return its files in the order they are read.

        Raises:
            DataError: There are none.
        """
        return find_files(data_dir / self.path, name=self.path, include=self.include)


def check_shipping(sources: Sequence[Source]) -> None:
    """Refuse to give away weights trained on sources that do not allow it; training on them is fine.

    Raises:
        DataError: Some sources say `ships = false`; all of them are named.
    """
    kept = [f"{source.name!r} ({source.license})" for source in sources if not source.ships and _is_used(source)]
    if kept:
        raise DataError(
            f"weights must be shipped from sources that allow it only; got {', '.join(kept)}, marked ships = false. "
            "Train without them, or keep the weights."
        )


def all_documents(source: Source, files: Sequence[SourceFile]) -> Iterator[Document]:
    """Yield every document of a source up to its `megabytes`, empty ones too."""
    n_bytes = 0
    for document in documents_of(files, form=source.form, key_field=source.key_field, skips_binary=source.skips_binary):
        yield document
        n_bytes += document.n_bytes
        if n_bytes > source.megabytes * 1e6:
            return


def source_documents(source: Source, data_dir: Path, *, is_held_out: bool = False) -> Iterator[Document]:
    """Yield the documents of a source that may be trained on, or those that are held out."""
    for document in all_documents(source, source.files(data_dir)):
        if not document.is_empty and held_out(document.key, source.held_out) == is_held_out:
            yield document


def sample_texts(sources: Sequence[Source], data_dir: Path, *, megabytes: float) -> Iterator[str]:
    """Yield texts of all sources in proportion to their shares, to learn a vocabulary from.

    A source smaller than its part gives all it has, once. Texts are taken in even steps over the whole
    source, which is read twice instead of held in memory.
    """
    total = sum(source.share for source in sources)
    for source in sources:
        n_pieces, n_characters = 0, 0
        for piece in _pieces(source, data_dir):
            n_pieces, n_characters = n_pieces + 1, n_characters + len(piece)
        wanted = megabytes * 1e6 * source.share / total
        step = max(1.0, n_characters / wanted) if wanted else n_pieces or 1
        taken = 0
        for number, piece in enumerate(_pieces(source, data_dir)):
            if taken < int(n_pieces / step) and number == int(taken * step):
                yield piece
                taken += 1


def _pieces(source: Source, data_dir: Path) -> Iterator[str]:
    for document in source_documents(source, data_dir):
        text = document.content
        yield from (text[start : start + _SAMPLE] for start in range(0, len(text), _SAMPLE))


def _is_used(source: Source) -> bool:
    return source.share > 0 or source.late_share > 0
