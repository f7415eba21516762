"""Batches made ready ahead of need, by threads; what they hold depends on their numbers alone."""

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from gemsmith.data.mixture import Batch, Mixture, Stage

Wanted = tuple[Stage, int, int]


class Loader:
    """Gives the batches of a mixture, those that come next being made in the background.

    Threads are enough: a batch is copied out of mapped files in about a millisecond, and the slow part,
    packing a source's next epoch, is what must not hold up a step.

    Args:
        n_workers: Threads; 0 makes every batch when it is asked for.
        n_ahead: Batches made before they are asked for.
    """

    def __init__(self, mixture: Mixture, *, n_workers: int = 1, n_ahead: int = 4) -> None:
        self.mixture, self.n_ahead = mixture, n_ahead
        self.pool = ThreadPoolExecutor(n_workers, "gemsmith-batch") if n_workers > 0 else None
        self.ready: OrderedDict[Wanted, Future[Batch]] = OrderedDict()

    def stage(self, *, row: int, is_late: bool = False) -> Stage:
        """Return the main or the last part of a run."""
        return self.mixture.stage(row=row, is_late=is_late)

    def batch(self, stage: Stage, first: int, n_rows: int) -> Batch:
        """Return rows `first` to `first + n_rows` of a stage, bit for bit those of the mixture.

        Raises:
            DataError: As the mixture does, when the batch is asked for and not before.
        """
        if self.pool is None:
            return self.mixture.batch(stage, first, n_rows)
        wanted = [(stage, first + n_rows * number, n_rows) for number in range(self.n_ahead + 1)]
        for key in [key for key in self.ready if key not in wanted]:
            self.ready.pop(key).cancel()
        for key in wanted:
            if key not in self.ready:
                self.ready[key] = self.pool.submit(self.mixture.batch, *key)
        return self.ready.pop(wanted[0]).result()

    def close(self) -> None:
        """Stop the threads; batches under way are dropped."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
        self.ready.clear()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
