"""Fewer threads or all of them: what writes a token sooner, found out while writing."""

import statistics

# Tokens written with each number of threads before one is preferred.
_TRIAL = 4
_FIRST_PERIOD, _LAST_PERIOD = 32, 2048


class ThreadChoice:
    """Tries fewer threads and all, keeps to the better, and tries again ever more seldom while that stays so.

    A large model is read from memory, which half the cores may saturate; the others, slower ones perhaps, then only
    make it wait. Of a small one, two threads on a quiet machine write tokens nearly twice as fast as one; on busy
    cores each of some forty meetings a token waits for a thread that does not run, and one is five times faster.

    Args:
        fewer: One, or half of them.
        n_threads: All of them.
    """

    def __init__(self, fewer: int, n_threads: int) -> None:
        self._counts = (fewer, n_threads) if fewer < n_threads else (n_threads,)
        self._seconds: list[list[float]] = [[] for _ in self._counts]
        self._best, self._period, self._n_steps = self._counts[0], _FIRST_PERIOD, 0

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
