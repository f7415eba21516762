"""A tiny language model: random weights, a real vocabulary, more embedding rows than pieces."""

import random

import pytest

from gemsmith.infer.lm import LM
from gemsmith.tokenizer import Tokenizer, train_tokenizer
from tiny import tiny_network

VOCAB_SIZE = 560
N_JUNK_ROWS = 8
TEXT = "the quick brown fox jumps over lazy dog while seven small cats sing about warm rain and old trees"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    rng = random.Random(0)
    return train_tokenizer((" ".join(rng.choices(TEXT.split(), k=12)) + "." for _ in range(300)), vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="session")
def lm(tokenizer: Tokenizer) -> LM:
    return LM(tiny_network("gemma2", vocab_size=tokenizer.vocab_size + N_JUNK_ROWS), tokenizer, name="tiny")
