"""A tiny model of random weights with a vocabulary of its own, saved once for all tests of the command line."""

import random
from pathlib import Path

import pytest

WORDS = ("the", "fox", "ran", "home", "and", "slept", "under", "an", "old", "tree", "while", "rain", "fell", "softly")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder; its network knows nothing, so its texts are noise."""
    from gemsmith.tokenizer import train_tokenizer
    from gemsmith.weights.folder import save_folder
    from tiny import tiny_network

    draw = random.Random(0)
    sentences = [" ".join(draw.choices(WORDS, k=draw.randint(4, 9))).capitalize() + "." for _ in range(400)]
    tokenizer = train_tokenizer(sentences, vocab_size=500, n_threads=1)
    place = tmp_path_factory.mktemp("models") / "tiny"
    return save_folder(place, tiny_network(vocab_size=tokenizer.vocab_size), tokenizer=tokenizer)
