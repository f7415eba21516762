"""A signal ends a run after its step, saved; a second one at once."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemsmith.errors import RunInterrupted
from gemsmith.train.checkpoint import Checkpointer
from gemsmith.train.checkpoint_files import checkpoints
from gemsmith.train.loop import TrainState
from gemsmith.train.stop import StopOnSignal
from small_run import IDENTITY, new_state, train


def stopped(run: Path, number: int, *, n_times: int = 1) -> TrainState:
    """Train while a signal arrives in step 2."""
    state = new_state()

    def send(state: TrainState, _report: object) -> None:
        if state.step == 2:
            for _ in range(n_times):
                signal.raise_signal(number)  # handled before it returns, so that two are never taken for one

    with Checkpointer(run, identity=IDENTITY) as checkpointer, StopOnSignal(checkpointer) as stop:
        train(state, until=5, watchers=(send, checkpointer, stop))
    return state


@pytest.fixture(autouse=True)
def usual_interrupt() -> Iterator[None]:
    """Python's own handler, which a test run in the background of a shell starts without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_run(
    tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(RunInterrupted, match=rf"got {number.name} in step 2, which is saved"):
        stopped(tmp_path, number)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000002"]
    assert signal.getsignal(number) is before
    assert "the step ends, then the run is saved; once more stops at once" in caplog.text


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stopped(tmp_path, signal.SIGINT, n_times=2)
    assert checkpoints(tmp_path) == []


def test_without_a_signal_nothing_changes(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    checkpointer = Checkpointer(tmp_path, identity=IDENTITY)
    with StopOnSignal(checkpointer) as stop:
        assert signal.getsignal(signal.SIGTERM) != before
        assert train(new_state(), until=3, watchers=(stop,)).step == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_than_the_main_one_may_train(tmp_path: Path) -> None:
    steps: list[int] = []

    def work() -> None:
        with StopOnSignal(Checkpointer(tmp_path, identity=IDENTITY)) as stop:
            steps.append(train(new_state(), until=1, watchers=(stop,)).step)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert steps == [1]
