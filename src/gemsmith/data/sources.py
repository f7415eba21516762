"""The sources of a recipe: where documents come from, how much of them, and what is held out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemsmith.data.documents import FORMS, Document, held_out, read_documents
from gemsmith.errors import DataError


@dataclass(frozen=True)
class Source:
    """One file of a mixture.

    Attributes:
        license: Licence of the texts, carried into the model's card.
        share: Part of all tokens, relative to the other sources.
        late_share: The same for the last part of a run; `share` by default.
        form: How a row becomes documents.
        held_out: Percent of documents, by hash of their key, that are never trained on.
        megabytes: Only so much of the file is read.
        max_epochs: How often a document may be seen.
    """

    name: str
    path: str
    license: str
    share: float
    late_share: float = -1.0
    form: str = "text"
    key_field: str | None = None
    held_out: float = 0.0
    megabytes: float = float("inf")
    max_epochs: int = 10

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise DataError(
                f"form must be one of {', '.join(FORMS)}; got {self.form!r} in source {self.name!r}. "
                "Choose one of them."
            )
        if not self.share >= 0:
            raise DataError(f"share must be 0 or more; got {self.share!r} in source {self.name!r}. Correct the recipe.")

    def weight(self, *, is_late: bool) -> float:
        """Return the share of the main or of the last part of a run."""
        return self.late_share if is_late and self.late_share >= 0 else self.share


def source_documents(source: Source, data_dir: Path, *, is_held_out: bool = False) -> Iterator[Document]:
    """Yield the documents of a source that may be trained on, or those that are held out."""
    n_bytes = 0
    for document in read_documents(data_dir / source.path, form=source.form, key_field=source.key_field):
        n_bytes += len(document.text.encode()) + sum(len(content.encode()) for _, content in document.turns)
        if held_out(document.key, source.held_out) == is_held_out:
            yield document
        if n_bytes > source.megabytes * 1e6:
            return


def sample_texts(sources: list[Source], data_dir: Path, *, megabytes: float) -> Iterator[str]:
    """Yield texts of all sources in proportion to their shares, to learn a vocabulary from.

    A source smaller than its part gives all it has, once. Texts are taken in even steps over the whole file.
    """
    total = sum(source.share for source in sources)
    for source in sources:
        texts = [d.text or "\n".join(content for _, content in d.turns) for d in source_documents(source, data_dir)]
        pieces = [text[start : start + 4000] for text in texts for start in range(0, len(text), 4000)]
        wanted = megabytes * 1e6 * source.share / total
        step = max(1.0, sum(map(len, pieces)) / wanted) if wanted else len(pieces) or 1
        yield from (pieces[int(i * step)] for i in range(int(len(pieces) / step)))
