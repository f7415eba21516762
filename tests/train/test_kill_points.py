"""Twenty different places to die at, all of which a run comes by."""

import re
from pathlib import Path

import pytest

import gemsmith
from gemsmith.train.kill_points import kill_points


@pytest.mark.parametrize("turns", [[], [3], [2, 5, 10], [10]])
@pytest.mark.parametrize("n_micro", [1, 2, 5])
def test_there_are_twenty_different_ones(turns: list[int], n_micro: int) -> None:
    kills = kill_points(10, n_micro=n_micro, n_tensors=40, turns=turns, late_step=8, save_every=2)
    assert len(kills) == 20
    assert len({kill.what for kill in kills}) == 20
    assert {kill.n_data_workers for kill in kills} == {0, 2}


def test_every_one_lies_within_the_run() -> None:
    arrivals = {"micro_batch": 20, "writing": 5 * 41, "removing": 3}
    for kill in kill_points(10, n_micro=2, n_tensors=40, turns=[4, 10], late_step=8, save_every=2):
        usual = 10 if kill.point in ("before_update", "after_update") else 5
        assert 1 <= kill.count <= arrivals.get(kill.point, usual), kill


def test_every_point_is_one_that_the_code_reaches() -> None:
    sources = [path.read_text() for path in (Path(gemsmith.__file__).parent / "train").glob("*.py")]
    reached = {name for source in sources for name in re.findall(r'reach\("(\w+)"\)', source)}
    kills = kill_points(10, n_micro=2, n_tensors=40, turns=[4], late_step=8, save_every=2)
    assert {kill.point for kill in kills} <= reached
    assert reached - {kill.point for kill in kills} == {"resumed"}


def test_the_turn_of_an_epoch_is_named_only_where_there_is_one() -> None:
    with_turn, without = (
        [k.what for k in kill_points(10, n_micro=2, n_tensors=9, turns=turns, late_step=8, save_every=2)]
        for turns in ([4, 7], [])
    )
    assert "in step 4, in which an epoch of the data turns" in with_turn
    assert "after step 7, in which an epoch of the data turns" in with_turn
    assert "in step 5 (no epoch turned)" in without
