"""The 5-gram model is a probability, and knows what it has counted."""

import math

import numpy as np
import pytest

from gemsmith.evaluate.ngram import NgramModel

DOCUMENTS = [[10, 11, 12, 13, 14, 15], [10, 11, 12, 20, 14], [11, 12, 13]]


@pytest.fixture(scope="module")
def model() -> NgramModel:
    return NgramModel.train(DOCUMENTS, vocab_size=32, bos_id=2)


def chances(model: NgramModel, context: list[int]) -> np.ndarray:
    """Return the probability of every id after a context."""
    before = model.nll(context) if context else 0.0
    return np.exp([before - model.nll([*context, token_id]) for token_id in range(32)])


@pytest.mark.parametrize("context", [[], [10], [10, 11, 12], [5, 6], [11, 12, 13], [10, 11, 12, 13, 14, 15]])
def test_chances_of_all_ids_add_up_to_one(model: NgramModel, context: list[int]) -> None:
    assert chances(model, context).sum() == pytest.approx(1.0)


def test_what_was_counted_is_likely(model: NgramModel) -> None:
    assert chances(model, [10, 11]).argmax() == 12
    assert chances(model, [11, 12]).argmax() == 13
    assert chances(model, [7, 7, 7]).max() < 0.5


def test_two_documents_of_one_id_by_hand() -> None:
    """Of 2 ids after BOS, seen twice and never: (2 - d) / 2 + d / 2 * p, with p from the next order, and so on."""
    model = NgramModel.train([[1], [1]], vocab_size=4, bos_id=2, n=2)
    lower = (1 - 0.5) / 1 + 0.5 * 1 / 1 * 0.25
    wanted = (2 - 0.5) / 2 + 0.5 * 1 / 2 * lower
    assert model.nll([1]) == pytest.approx(-math.log(wanted))


def test_contexts_stop_at_a_documents_beginning(model: NgramModel) -> None:
    apart = NgramModel.train([[3, 4], [5, 6]], vocab_size=8, bos_id=2)
    assert chances(apart, [])[[3, 5]] == pytest.approx(chances(apart, [])[3])
