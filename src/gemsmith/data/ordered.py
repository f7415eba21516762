"""Work shared out to processes, its results in the order of the work."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from gemsmith.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # items in flight for each process, so that none waits and few are in memory


def ordered_map(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    n_workers: int,
    start: Callable[..., None],
    start_args: tuple[Any, ...],
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its result, in order, reading only a few items ahead.

    Args:
        work: Importable by name, as it runs elsewhere.
        n_workers: 0 or 1 works in this process.
        start: Called with `start_args` once in every process before its first item.

    Raises:
        DataError: A process ended without an answer.
    """
    if n_workers <= 1:
        start(*start_args)
        yield from ((item, work(item)) for item in items)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(n_workers, context, initializer=start, initargs=start_args) as pool:
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > _AHEAD * n_workers:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
        except BrokenProcessPool as error:
            raise DataError(
                f"every process of a build must live; got one of {n_workers} that ended. Look for its message above; "
                "build again with fewer workers if memory was short, and from a script below its main guard."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _first(waiting: "deque[tuple[Item, Future[Result]]]") -> tuple[Item, Result]:
    item, answer = waiting.popleft()
    return item, answer.result()
