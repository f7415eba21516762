"""Vocabulary and shards, made once and used again."""

from dataclasses import replace
from pathlib import Path

import pytest

from corpora import write_corpora
from gemsmith.data.prepared import prepare
from gemsmith.data.vocabulary import Learning, given_vocabulary, learned_vocabulary
from gemsmith.errors import DataError
from vocab import SMALL

LEARNING = Learning(size=480, megabytes=1.0)


def test_prepared_folder_serves_as_data(tmp_path: Path) -> None:
    sources = write_corpora(tmp_path)
    first = prepare(sources, LEARNING, data_dir=tmp_path, out=tmp_path / "out")
    assert first.index.n_pieces == 480
    again = prepare(sources, LEARNING, data_dir=tmp_path / "out", out=tmp_path / "elsewhere")
    assert again.fingerprint == first.fingerprint
    assert not (tmp_path / "elsewhere").exists()
    assert prepare(sources, LEARNING, data_dir=tmp_path, out=tmp_path / "out").fingerprint == first.fingerprint


def test_vocabulary_is_learned_anew_when_it_would_be_another(tmp_path: Path) -> None:
    sources, folder = write_corpora(tmp_path), tmp_path / "vocabulary"
    learned_vocabulary(sources, tmp_path, folder=folder, learning=LEARNING)
    made = (folder / "tokenizer.model").stat().st_ino
    learned_vocabulary(sources, tmp_path, folder=folder, learning=LEARNING)
    assert (folder / "tokenizer.model").stat().st_ino == made
    larger = learned_vocabulary(sources, tmp_path, folder=folder, learning=replace(LEARNING, size=490))
    assert larger.vocab_size == 490


def test_vocabulary_that_was_put_there_is_kept(tmp_path: Path) -> None:
    sources, folder = write_corpora(tmp_path), tmp_path / "vocabulary"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(SMALL.read_bytes())
    assert learned_vocabulary(sources, tmp_path, folder=folder, learning=LEARNING).vocab_size == 2048


def test_given_vocabulary_has_the_size_the_recipe_says(tmp_path: Path) -> None:
    dataset = prepare(write_corpora(tmp_path), SMALL, data_dir=tmp_path, out=tmp_path / "out")
    assert dataset.index.n_pieces == given_vocabulary(SMALL, size=2048).vocab_size == 2048
    with pytest.raises(DataError, match="the 4096 pieces the recipe says; got 2048"):
        given_vocabulary(SMALL, size=4096)
