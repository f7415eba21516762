"""Results in the order of the work, few items ahead, and no silent end of a process."""

import os
from collections.abc import Iterator

import pytest

from gemsmith.data.ordered import ordered_map
from gemsmith.errors import DataError


def square(number: int) -> int:
    return number * number


def die(number: int) -> int:
    os._exit(3)


def nothing() -> None:
    pass


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_results_come_in_order_and_few_items_are_read_ahead(n_workers: int) -> None:
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        for number in range(40):
            read += 1
            yield number

    for done, (item, result) in enumerate(
        ordered_map(square, numbers(), n_workers=n_workers, start=nothing, start_args=())
    ):
        assert (item, result) == (done, done * done)
        assert read <= done + 1 + 2 * n_workers


def test_process_that_ends_is_told() -> None:
    with pytest.raises(DataError, match="every process of a build must live; got one of 2 that ended"):
        list(ordered_map(die, range(3), n_workers=2, start=nothing, start_args=()))
