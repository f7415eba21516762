"""A dataset on disk is checked by hash; what is wrong is named with what to do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from corpora import write_corpora
from gemsmith.data.build import build_dataset
from gemsmith.data.dataset import Dataset, open_dataset
from gemsmith.data.index import INDEX_FILE, read_index
from gemsmith.data.sources import Source
from gemsmith.errors import DataError
from vocab import small_tokenizer


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_corpora(tmp_path)


@pytest.fixture
def built(tmp_path: Path, sources: list[Source]) -> Dataset:
    return build_dataset(sources, small_tokenizer(), data_dir=tmp_path, folder=tmp_path / "built")


def test_dataset_opens_without_the_texts(tmp_path: Path, built: Dataset) -> None:
    (tmp_path / "stories.jsonl").unlink()
    opened = open_dataset(built.folder)
    assert opened.fingerprint == built.fingerprint
    assert opened.index == built.index
    assert opened.tokenizer.encode("the wolf") == small_tokenizer().encode("the wolf")
    assert built.index.render() == (built.folder / INDEX_FILE).read_text()


def test_held_out_texts_come_from_the_dataset(built: Dataset) -> None:
    documents = list(built.held_out_documents("stories"))
    assert len(documents) == built.index.sources["stories"].counts.n_held_out
    assert [document.text for document in documents] == list(built.held_out("stories"))
    assert all(document.file == "stories.jsonl" and document.line for document in documents)
    assert list(built.held_out("chats")) == []


@pytest.mark.parametrize("name", ["stories.00000.tokens", "chats.00000.scored", "code.00000.documents"])
@pytest.mark.parametrize("is_fresh", [False, True])
def test_changed_shard_is_found_by_its_hash_and_named(built: Dataset, name: str, is_fresh: bool) -> None:
    path = built.folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"'{name}' must have the SHA-256 .*Copy the file again, or remove"):
        open_dataset(built.folder, is_fresh=is_fresh)


def test_damage_that_keeps_the_time_of_change_is_found_anew(built: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built.folder / "stories.00000.tokens"
    monkeypatch.setattr("gemsmith.data.dataset.remembered_sha256", lambda path: built_hashes[path.name])
    built_hashes = {"tokenizer.model": built.index.vocabulary.sha256}
    built_hashes |= {name: r.sha256 for source in built.index.sources.values() for name, r in source.files.items()}
    path.write_bytes(bytes(path.stat().st_size))
    open_dataset(built.folder)
    with pytest.raises(DataError, match=r"'stories\.00000\.tokens' must have the SHA-256"):
        open_dataset(built.folder, is_fresh=True)


def test_missing_and_shortened_files_are_named(built: Dataset) -> None:
    path = built.folder / "stories.00000.tokens"
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    with pytest.raises(DataError, match=rf"'stories\.00000\.tokens' must hold {len(data)} bytes; got {len(data) - 2}"):
        open_dataset(built.folder)
    path.unlink()
    with pytest.raises(DataError, match=r"every file of its index; got no 'stories\.00000\.tokens'"):
        open_dataset(built.folder)


def test_folder_without_an_index_and_damaged_ones_are_refused(tmp_path: Path, built: Dataset) -> None:
    with pytest.raises(DataError, match=r"a folder with index\.json; got '.*nowhere', which has none"):
        open_dataset(tmp_path / "nowhere")
    path = built.folder / INDEX_FILE
    raw = json.loads(path.read_text())
    for change, message in (
        ({"format": 99}, "format must be 1; got 99"),
        ({"sources": {"a": {}}}, r"index\.json must be what gemsmith data build wrote; got KeyError"),
    ):
        path.write_text(json.dumps(raw | change))
        with pytest.raises(DataError, match=message):
            read_index(built.folder)
    path.write_text("{")
    with pytest.raises(DataError, match="must be what gemsmith data build wrote; got JSONDecodeError"):
        read_index(built.folder)


def test_ids_beyond_a_models_vocabulary_name_shard_and_document(built: Dataset) -> None:
    built.check_ids(2048)
    with pytest.raises(DataError, match=r"shard 'stories\.00000\.tokens' of 'stories' .*below the vocabulary's 300; "):
        built.check_ids(300)
    with pytest.raises(DataError, match=r"got \d+ in stories\.jsonl line \d+\. Build"):
        built.check_ids(300)


def test_mixture_of_other_sources_is_refused(sources: list[Source], built: Dataset) -> None:
    built.mixture([replace(source, share=7.0, max_epochs=1) for source in sources], seed=1)
    with pytest.raises(DataError, match="one of the dataset's, stories, chats, code, guide; got 'news'"):
        built.mixture([replace(sources[0], name="news")], seed=1)
    with pytest.raises(DataError, match=r"held_out of source 'stories' must be 10\.0, .*; got 5\.0"):
        built.mixture([replace(sources[0], held_out=5.0)], seed=1)


def test_rows_name_their_documents(sources: list[Source], built: Dataset) -> None:
    mixture = built.mixture(sources, seed=1)
    batch = mixture.batch(mixture.stage(row=256), 0, 8)
    assert len(batch.sources) == 8
    names = {row.partition(":")[0] for row in batch.sources}
    assert "stories" in names
    assert names <= {source.name for source in sources}
    assert any("stories.jsonl line " in row for row in batch.sources)
