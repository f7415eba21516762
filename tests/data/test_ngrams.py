"""13-grams: equal runs of words are found wherever they stand, in bounded memory."""

import numpy as np
import pytest

from corpora import sentences
from gemsmith.data.documents import Document
from gemsmith.data.ngrams import HeldOutGrams, document_grams, found_in, word_grams


def document(text: str) -> Document:
    return Document(text, "")


def test_grams_are_those_of_the_definition() -> None:
    """Against sets of tuples of words."""
    texts = [sentences(seed, 40) for seed in range(6)]
    texts += [f"{sentences(8, 5)} {texts[0][20:180]} {sentences(9, 5)}"]
    runs = [[tuple(t.casefold().strip(".").replace(".", "").split()[i : i + 13]) for i in range(99)] for t in texts]
    runs = [[run for run in row if len(run) == 13] for row in runs]
    grams = [word_grams(text) for text in texts]
    assert [len(row) for row in runs] == [len(row) for row in grams]
    for ours, theirs in zip(grams, runs, strict=True):
        for other, their_other in zip(grams, runs, strict=True):
            assert len(np.intersect1d(ours, other)) == len(set(theirs) & set(their_other))
    assert len(np.intersect1d(grams[0], grams[-1])) > 5


def test_order_of_words_matters_and_case_does_not() -> None:
    words = list("abcdefghijklm")
    assert word_grams(" ".join(words)) == word_grams(", ".join(words).upper())
    assert word_grams(" ".join(words)) != word_grams(" ".join([*words[1:], words[0]]))
    assert word_grams(" ".join(words[:12])).size == 0


def test_no_gram_reaches_over_from_one_turn_into_the_next() -> None:
    question, answer = "one two three four five six seven", "a b c d e f g h i j k l m"
    chat = Document("", "", (("user", question), ("model", answer)))
    assert document_grams(chat).tolist() == word_grams(answer).tolist()


def test_known_grams_are_found() -> None:
    held_out = HeldOutGrams()
    held_out.add(document(sentences(1)))
    held_out.add(document(sentences(2)))
    known = held_out.unique(np.array([True, True]))
    found, n_known = found_in(known, word_grams(sentences(3) + " " + sentences(2)))
    assert (found.size, n_known) == (48, 48)
    assert found_in(known, word_grams(sentences(4)))[1] == 0
    assert found_in(known, word_grams("too short"))[1] == 0
    hits = np.zeros(known.size, np.bool_)
    hits[found] = True
    assert held_out.covered(known, hits, np.array([True, True])).tolist() == [False, True]


def test_document_that_does_not_stay_gives_no_grams() -> None:
    held_out = HeldOutGrams()
    held_out.add(document(sentences(1)))
    assert held_out.unique(np.array([False])).size == 0


@pytest.mark.parametrize("limit", [500, 3000])
def test_memory_is_bounded_and_shares_stay_true(limit: int) -> None:
    held_out = HeldOutGrams(max_grams=limit)
    for seed in range(200):
        held_out.add(document(sentences(seed, 112)))  # 100 grams each
    known = held_out.unique(np.ones(200, np.bool_))
    assert limit / 3 < known.size <= limit
    assert held_out.rarity > 1
    grams = held_out.sampled(
        np.concatenate([word_grams(sentences(seed, 112)) for seed in [*range(60), *range(1000, 1060)]])
    )
    assert found_in(known, grams)[1] / grams.size == pytest.approx(0.5, abs=0.1)
    assert held_out.ends[-1] == known.size
