"""Real corpora: counts as published, repetitions and leaks found."""

import os
from pathlib import Path

import pytest

import gemsmith
from gemsmith.data.build import build_dataset
from gemsmith.data.dataset import Dataset
from gemsmith.data.sources import Source
from gemsmith.errors import DataError
from gemsmith.recipes.recipe import read_recipe
from gemsmith.tokenizer import Tokenizer

pytestmark = pytest.mark.data
NAMES = ("tinystories", "fables", "fairytales", "storyweaver", "african_storybook", "fairytale_questions")
N_ROWS = (5007, 884, 255, 382, 309, 9573)
VOCABULARY = Path(gemsmith.__file__).parent / "pebble"


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    recipe = read_recipe(Path(__file__).parents[2] / "recipes/pebble.toml")
    return [next(source for source in recipe.sources if source.name == name) for name in NAMES]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, sources: list[Source]) -> Dataset:
    data_dir, folder = Path(os.environ["GEMSMITH_DATA"]), tmp_path_factory.mktemp("real") / "built"
    return build_dataset(sources, Tokenizer.load(VOCABULARY), data_dir=data_dir, folder=folder)


def test_counts_are_those_published_with_the_corpora(built: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {name: record.counts for name, record in built.index.sources.items()}
    with capsys.disabled():
        print("", *(f"{name}: {row}" for name, row in counts.items()), f"all: {built.index.totals}", sep="\n")
    assert [counts[name].n_rows for name in NAMES] == list(N_ROWS)
    for row in counts.values():
        assert row.n_rows == row.n_empty + row.n_duplicates + row.n_held_out + row.n_leaked + row.n_documents
    assert counts["fairytales"].n_documents + counts["fairytales"].n_held_out > 250
    assert all(row.n_covered == 0 for row in counts.values())


def test_every_document_decodes_to_the_text_it_came_from(built: Dataset) -> None:
    tokenizer = Tokenizer.load(VOCABULARY)
    shard = built.shards["storyweaver"]
    for number in range(shard.n_documents):
        token_ids = shard.token_ids[int(shard.offsets[number]) : int(shard.offsets[number + 1])].tolist()
        assert token_ids[-1] == tokenizer.eos_id
        assert "\n\n" in tokenizer.decode(token_ids)


def test_corpus_given_twice_is_all_repetition(tmp_path: Path, sources: list[Source]) -> None:
    fables = next(source for source in sources if source.name == "fables")
    again = Source("again", fables.path, "MIT", 1.0)
    data_dir = Path(os.environ["GEMSMITH_DATA"])
    with pytest.raises(DataError, match=r"got none in 'again' .*'n_duplicates': 884"):
        build_dataset([fables, again], Tokenizer.load(VOCABULARY), data_dir=data_dir, folder=tmp_path / "twice")


def test_rows_of_real_sources_hold_every_token_once(built: Dataset, sources: list[Source]) -> None:
    only = next(source for source in sources if source.name == "storyweaver")
    mixture = built.mixture([only], seed=1)
    stage = mixture.stage(row=512)
    n_scored = n_rows = 0
    while mixture.place(stage, n_rows)[1] < mixture._count("storyweaver", 0, stage):
        n_scored += int(mixture.batch(stage, n_rows, 1).loss_mask.sum())
        n_rows += 1
    assert n_scored == built.index.sources["storyweaver"].counts.n_tokens
    assert n_scored / (n_rows * 512) > 0.95
