"""What a recipe says about its sources, and what may be shipped."""

from pathlib import Path

import pytest

from corpora import write_corpora, write_lines
from gemsmith.data.sources import Source, check_shipping, sample_texts, source_documents
from gemsmith.errors import DataError


def test_weights_are_shipped_from_sources_that_allow_it_only() -> None:
    free, own = Source("free", "a", "MIT", 1.0), Source("own", "b", "proprietary", 1.0, ships=False)
    late = Source("late", "c", "CC-BY-NC-4.0", 0.0, late_share=1.0, ships=False)
    unused = Source("unused", "d", "proprietary", 0.0, ships=False)
    check_shipping([free, unused])
    with pytest.raises(DataError, match=r"got 'own' \(proprietary\), 'late' \(CC-BY-NC-4.0\), marked ships = false"):
        check_shipping([free, own, late, unused])


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a b"])
def test_names_are_fit_for_files(name: str) -> None:
    with pytest.raises(DataError, match="name must be letters, digits"):
        Source(name, "a", "MIT", 1.0)


@pytest.mark.parametrize("percent", [-1.0, 100.0, float("nan")])
def test_held_out_is_a_percentage(percent: float) -> None:
    with pytest.raises(DataError, match=f"held_out must be a percentage from 0 to below 100; got {percent}"):
        Source("a", "a", "MIT", 1.0, held_out=percent)


@pytest.mark.parametrize("pattern", ["", "/etc/*", "../*", "a/../../b"])
def test_patterns_stay_below_the_path(pattern: str) -> None:
    with pytest.raises(DataError, match=f"below the source's path; got {pattern!r}".replace("*", r"\*")):
        Source("a", "a", "MIT", 1.0, include=(pattern,))


def test_sample_takes_even_steps_by_share(tmp_path: Path) -> None:
    """Against the list of all pieces, from which every so many is taken."""
    sources = write_corpora(tmp_path)
    total = sum(source.share for source in sources)
    wanted = []
    for source in sources:
        texts = [d.content for d in source_documents(source, tmp_path)]
        pieces = [text[start : start + 4000] for text in texts for start in range(0, len(text), 4000)]
        step = max(1.0, sum(map(len, pieces)) / (0.02e6 * source.share / total))
        wanted += [pieces[int(i * step)] for i in range(int(len(pieces) / step))]
    found = list(sample_texts(sources, tmp_path, megabytes=0.02))
    assert found == wanted
    assert len(found) < sum(len(list(source_documents(source, tmp_path))) for source in sources)


def test_only_so_many_megabytes_are_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "x" * 1000} for _ in range(10)])
    source = Source("a", "a.jsonl", "MIT", 1.0, megabytes=0.0035)
    assert len(list(source_documents(source, tmp_path))) == 4
