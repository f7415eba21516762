"""Schedules: where they start, peak and end, and that they only rise and then only fall."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemsmith.train.schedule import SCHEDULES, rate_share


def course(
    schedule: str, *, steps: int, warmup_steps: int = 0, decay_share: float = 0.5, floor_share: float = 0.0
) -> list[float]:
    """Return the shares of all steps of a run, and what a step after it would take."""
    return [
        rate_share(
            step,
            step / steps,
            schedule=schedule,
            warmup_steps=warmup_steps,
            decay_share=decay_share,
            floor_share=floor_share,
        )
        for step in range(steps + 1)
    ]


@given(
    schedule=st.sampled_from(SCHEDULES),
    steps=st.integers(50, 300),
    warmup_steps=st.integers(0, 20),
    decay_share=st.floats(0.1, 0.6),
    floor_share=st.floats(0.0, 0.5),
)
def test_rises_from_nothing_to_one_and_falls_to_the_floor(
    schedule: str, steps: int, warmup_steps: int, decay_share: float, floor_share: float
) -> None:
    shares = course(schedule, steps=steps, warmup_steps=warmup_steps, decay_share=decay_share, floor_share=floor_share)
    rise, fall = shares[: warmup_steps + 1], shares[warmup_steps:]
    assert shares[0] == pytest.approx(1 / (warmup_steps + 1))
    assert shares[warmup_steps] == max(shares) == 1.0
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)
    assert shares[-1] == pytest.approx(floor_share, abs=1e-12)


@given(
    schedule=st.sampled_from(SCHEDULES),
    growth=st.lists(st.floats(0.0, 1.0), min_size=30, max_size=60),
    warmup_steps=st.integers(0, 20),
)
def test_never_rises_again_when_steps_take_unequal_time(schedule: str, growth: list[float], warmup_steps: int) -> None:
    total, spent, shares = sum(growth) + 1e-3, 0.0, []
    for step, seconds in enumerate(growth):
        shares.append(
            rate_share(
                step, spent / total, schedule=schedule, warmup_steps=warmup_steps, decay_share=0.5, floor_share=0.1
            )
        )
        spent += seconds
    fall = shares[warmup_steps:]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(fall))


def test_cosine_by_hand() -> None:
    """Ten steps of warm-up in a run of 110: the fall spans 100 steps."""
    shares = course("cosine", steps=110, warmup_steps=10, floor_share=0.1)
    for step in (35, 60, 85):
        assert shares[step] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 100)))


def test_linear_by_hand() -> None:
    shares = course("linear", steps=110, warmup_steps=10)
    assert [shares[step] for step in (4, 35, 60, 110)] == pytest.approx([5 / 11, 0.75, 0.5, 0.0])


def test_warmup_stable_decay_by_hand() -> None:
    shares = course("wsd", steps=100, warmup_steps=9, decay_share=0.5, floor_share=0.2)
    assert [shares[step] for step in (0, 4, 9, 50, 75, 100)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.6, 0.2])
