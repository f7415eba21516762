"""Turns are fair and counted; the clock itself is not tested."""

from collections.abc import Sequence

import pytest

from gemsmith.errors import ConfigError
from gemsmith.evaluate.speed import Plan, Reading, Subject, gemsmith_subject, measure, timed
from gemsmith.infer.lm import LM
from gemsmith.tokenizer import train_tokenizer
from tiny import tiny_network

Turn = tuple[str, int, int]


def stand_in(name: str, turns: list[Turn], *, prefill_s: float) -> Subject:
    """Return a subject whose first round is slow and whose others take the time given."""

    def run(prompt: Sequence[int], n_new: int) -> Reading:
        is_first = sum(turn[0] == name for turn in turns) < 2
        turns.append((name, len(prompt), n_new))
        return Reading(9.0 if is_first else prefill_s, None if n_new == 0 else 0.25)

    return run


def test_subjects_take_turns_and_the_first_round_does_not_count() -> None:
    turns: list[Turn] = []
    subjects = {name: stand_in(name, turns, prefill_s=s) for name, s in (("a", 2.0), ("b", 4.0))}
    found = measure(subjects, Plan((8, 16), (8,), n_new=3, n_runs=2), vocab_size=50)
    assert turns == [("a", 8, 3), ("b", 8, 3), ("a", 16, 0), ("b", 16, 0)] * 3
    assert [(s.phase, s.n_tokens, s.subject, s.rates) for s in found] == [
        ("prefill", 8, "a", [4.0, 4.0]),
        ("prefill", 8, "b", [2.0, 2.0]),
        ("prefill", 16, "a", [8.0, 8.0]),
        ("prefill", 16, "b", [4.0, 4.0]),
        ("decode", 8, "a", [4.0, 4.0]),
        ("decode", 8, "b", [4.0, 4.0]),
    ]


def test_our_turn_writes_all_tokens_whatever_ends_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(["the fox ran home and slept"] * 50, vocab_size=440)
    lm = LM(tiny_network(vocab_size=tokenizer.vocab_size), tokenizer)
    lm.stop_ids = frozenset(range(tokenizer.vocab_size))
    assert lm.generate([2, 5], max_new_tokens=4).n_tokens == 1
    reading = gemsmith_subject(lm)([2, 5], 3)
    assert reading.decode_s is not None
    assert gemsmith_subject(lm)([2, 5], 0).decode_s is None
    assert len(lm.stop_ids) == tokenizer.vocab_size


def test_a_program_is_called_token_by_token() -> None:
    seen: list[object] = []

    def read(prompt: Sequence[int]) -> int:
        seen.append(list(prompt))
        return 7

    def write(token: int) -> int:
        seen.append(token)
        return token + 1

    assert timed(read, write)([1, 2, 3], 2).decode_s is not None
    assert seen == [[1, 2, 3], 7, 8]


@pytest.mark.parametrize(
    ("plan", "found"),
    [
        ({"prefill": (1,), "contexts": ()}, "prefill must be .* got 1"),
        ({"prefill": (), "contexts": (-4,)}, "contexts must be .* got -4"),
        ({"prefill": (8,), "contexts": (), "n_new": 0}, "n_new must be at least 1; got 0"),
        ({"prefill": (8,), "contexts": (), "n_runs": 0}, "n_runs must be at least 1; got 0"),
    ],
)
def test_plans_that_cannot_be_are_named(plan: dict[str, object], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        Plan(**plan)  # pyright: ignore


def test_a_plan_longer_than_the_context_is_named() -> None:
    plan = Plan((100,), (8,), n_new=9)
    assert plan.fitting(110) is plan
    with pytest.raises(ConfigError, match="context of 109; got 110"):
        plan.fitting(109)
