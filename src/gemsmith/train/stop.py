"""A stop on request: the step ends, the run is saved, and the process can go."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from gemsmith.errors import RunInterrupted
from gemsmith.train.checkpoint import Checkpointer
from gemsmith.train.loop import StepReport, TrainState

_say = logging.getLogger("gemsmith")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal:
    """Saves and ends a run after SIGTERM or the first Ctrl-C; a second signal stops at once.

    Entered around the loop and called after every step, behind other watchers. Elsewhere than in the
    main thread, where Python handles no signals, it does nothing.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self.checkpointer = checkpointer
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._put_back()

    def __call__(self, state: TrainState, report: StepReport) -> None:
        """Save and end the run if a signal came.

        Raises:
            RunInterrupted: The run is saved.
            StorageError: It could not be.
        """
        if self._received is None:
            return
        self.checkpointer.save(state)
        raise RunInterrupted(
            f"a run must not be stopped to reach its end; got {self._received.name} in step {state.step}, which is "
            "saved. Call the same command to go on."
        )

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        self._put_back()
        _say.warning("%s: the step ends, then the run is saved; once more stops at once", self._received.name)

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
