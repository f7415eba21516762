"""The model in the box keeps its promises on documents it never saw."""

import os
from pathlib import Path

import pytest

import gemsmith as gs
from gemsmith.data.sources import source_documents
from gemsmith.evaluate.bpb import bits_per_byte
from gemsmith.recipes.recipe import Recipe, read_recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return read_recipe(Path(__file__).parents[2] / "recipes/pebble.toml")


@pytest.mark.data
@pytest.mark.parametrize(("name", "target"), [("tinystories", 1.1), ("wiki_lead", 1.9)])
def test_bits_per_byte_on_held_out_texts(recipe: Recipe, name: str, target: float) -> None:
    source = next(source for source in recipe.sources if source.name == name)
    held_out = source_documents(source, Path(os.environ["GEMSMITH_DATA"]), is_held_out=True)
    lm = gs.load("pebble", dtype="float32")
    assert bits_per_byte(lm.network, lm.tokenizer, (d.text for d in held_out)).bpb <= target


@pytest.mark.data
def test_nothing_held_out_is_trained_on(recipe: Recipe) -> None:
    """Sources made from the same texts hold out the same ones."""
    data_dir = Path(os.environ["GEMSMITH_DATA"])
    held_out, trained = (
        {d.key for s in recipe.sources if s.held_out for d in source_documents(s, data_dir, is_held_out=is_held_out)}
        for is_held_out in (True, False)
    )
    assert len(held_out) > 900
    assert not held_out & trained


def test_card_names_share_alike_sources_and_shows_twenty_answers(recipe: Recipe) -> None:
    card = (Path(gs.__file__).parent / "pebble/README.md").read_text()
    assert "license: cc-by-sa-4.0" in card
    for source in recipe.sources:
        assert f"| {source.name} | {source.path} |" in card
        assert source.license in card
    assert card.count("(to be continued)") + card.count("(chat)") == 20
