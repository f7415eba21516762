"""One thread or all of them: what writes a token of a small model sooner, found out while writing."""

import statistics

# Tokens written with each number of threads before one is preferred.
_TRIAL = 4
_FIRST_PERIOD, _LAST_PERIOD = 32, 2048


class ThreadChoice:
    """Tries one thread and all of them, keeps to the better, and tries again ever more seldom while that stays so.

    On a quiet machine two threads write a small model's tokens nearly twice as fast as one; on busy cores each
    of some forty meetings a token waits for a thread that does not run, and one thread is five times faster.

    Args:
        n_threads: All of them.
    """

    def __init__(self, n_threads: int) -> None:
        self._counts = (1, n_threads) if n_threads > 1 else (1,)
        self._seconds: list[list[float]] = [[] for _ in self._counts]
        self._best, self._period, self._n_steps = 1, _FIRST_PERIOD, 0

    @property
    def n_threads(self) -> int:
        """How many threads the next step takes."""
        trial = self._n_steps // _TRIAL
        return self._counts[trial] if trial < len(self._counts) else self._best

    def note(self, seconds: float) -> None:
        """Take note of how long the step took."""
        trial = self._n_steps // _TRIAL
        if trial < len(self._counts):
            self._seconds[trial].append(seconds)
        self._n_steps += 1
        if self._n_steps == _TRIAL * len(self._counts):
            self._decide()
        if self._n_steps >= self._period:
            self._n_steps = 0

    def _decide(self) -> None:
        medians = [statistics.median(seconds) for seconds in self._seconds]
        best = self._counts[medians.index(min(medians))]
        self._period = min(2 * self._period, _LAST_PERIOD) if best == self._best else _FIRST_PERIOD
        self._best, self._seconds = best, [[] for _ in self._counts]
