"""Places at which a run can be made to die, so that a proof can kill it exactly there."""

import os
import signal
from collections import Counter

_VARIABLE = "GEMSMITH_DIE_AT"

_arrivals: Counter[str] = Counter()


def reach(point: str) -> None:
    """Note the arrival at a named point, and die there if `GEMSMITH_DIE_AT="point:count"` says so.

    The death is SIGKILL at the count-th arrival of this process: no handler, no flush, no goodbye,
    as when the power goes. Without the variable this does nothing.
    """
    wanted = os.environ.get(_VARIABLE)
    if wanted is None:
        return
    name, _, count = wanted.partition(":")
    if name != point:
        return
    _arrivals[point] += 1
    if _arrivals[point] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
