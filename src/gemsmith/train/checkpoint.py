"""When a run is saved and how it is resumed: whole, in the background, some checkpoints kept."""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType

from gemsmith.errors import CheckpointError, StorageError, TrainingError
from gemsmith.train.checkpoint_files import (
    check_identity,
    check_whole,
    checkpoints,
    read_checkpoint,
    remove_checkpoint,
    saved_at,
    set_aside,
    step_folders,
    tidy,
    write_checkpoint,
)
from gemsmith.train.faults import reach
from gemsmith.train.loop import StepReport, TrainState
from gemsmith.train.run_lock import check_owner
from gemsmith.train.snapshot import Camera, Snapshot, restore

_say = logging.getLogger("gemsmith")


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest `count`, and the first of every period of `hours` of the clock."""

    count: int = 2
    hours: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or (self.hours is not None and not self.hours > 0):
            raise TrainingError(
                f"kept checkpoints must be at least 1 and hours above 0; got {self.count!r} and {self.hours!r}. "
                "Keep 2, so that a damaged one has another before it."
            )


@dataclass(frozen=True)
class Every:
    """When a checkpoint is due: so many seconds after the last, or at every multiple of so many steps."""

    seconds: float | None = 300.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if any(value is not None and not value > 0 for value in (self.seconds, self.steps)):
            raise TrainingError(
                f"time between checkpoints must be above 0; got {self.seconds!r} seconds and {self.steps!r} steps. "
                "Use None for neither."
            )


class Checkpointer:
    """Saves a run while it goes on, and resumes it; called after every step.

    A save copies the state into memory of its own (as much as weights and optimizer take) and returns;
    a thread writes the copy. A save that comes meanwhile waits for the one before it.

    A disk that is full in the middle of a run must not cost the run: the failure is logged as an error, older
    checkpoints stay, training goes on and the next save tries again, since room may have been made.
    Only when the last save of a run fails is there something to lose by going on: then `save` or `close` raise.

    Args:
        run: The run folder.
        identity: Hashes of what the run is made of, by name; resuming refuses others.
    """

    def __init__(self, run: Path, *, identity: Mapping[str, str], keep: Keep = Keep(), every: Every = Every()) -> None:
        self.run, self.identity, self.keep, self.every = run, dict(identity), keep, every
        self._camera = Camera()
        self._thread: threading.Thread | None = None
        self._failure: StorageError | None = None
        self._defect: BaseException | None = None
        self._saved_step: int | None = None
        self._last = perf_counter()

    def __call__(self, state: TrainState, report: StepReport) -> None:
        """Start a save when one is due."""
        self._raise_defect()
        is_step = self.every.steps is not None and state.step % self.every.steps == 0
        if is_step or (self.every.seconds is not None and perf_counter() - self._last >= self.every.seconds):
            self.save(state, wait=False)

    def resume(self, state: TrainState) -> Path | None:
        """Put the newest whole checkpoint into `state` and return its folder; None where there is none.

        A damaged one is kept under another name, and the one before it is taken.

        Raises:
            CheckpointError: The run is made of something else now, all checkpoints are damaged, or the
                folder is not to be trusted.
        """
        if not self.run.is_dir():
            return None
        check_owner(self.run)
        tidy(self.run)
        for folder in reversed(step_folders(self.run)):
            check_owner(folder)
            if _is_whole(folder):
                check_identity(folder, self.identity)
                restore(state, read_checkpoint(folder))
                self._saved_step = state.step
                reach("resumed")
                return folder
        if damaged := sorted(path.name for path in self.run.glob("step_*.damaged*")):
            raise CheckpointError(
                f"a run must have a whole checkpoint to go on from; got only {damaged!r} in {str(self.run)!r}. "
                "Start in another folder, or delete them to start over in this one."
            )
        return None

    def save(self, state: TrainState, *, wait: bool = True) -> None:
        """Save a state, unless it is the one saved last.

        Args:
            wait: Return when it is on the disk, not before.

        Raises:
            StorageError: It could not be written, and `wait` is set.
        """
        self._join()
        if self._saved_step != state.step:
            reach("before_snapshot")
            snapshot = self._camera.take(state)
            reach("after_snapshot")
            self._last = perf_counter()
            self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint", daemon=True)
            self._thread.start()
        if wait:
            self.close()

    def close(self) -> None:
        """Wait for the save that is under way.

        Raises:
            StorageError: The last save failed.
        """
        self._join()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close; another error that ends the run is not hidden, and Ctrl-C does not wait."""
        if error is None:
            self.close()
        elif not isinstance(error, KeyboardInterrupt) and self._thread is not None:
            self._thread.join()

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_checkpoint(self.run, snapshot, identity=self.identity)
            self._saved_step, self._failure = snapshot.step, None
            prune(self.run, self.keep)
        except StorageError as error:
            self._failure = error
            _say.error("step %d is not saved: %s", snapshot.step, error)
        except BaseException as error:
            self._defect = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_defect()

    def _raise_defect(self) -> None:
        """Raise in the run's own thread what the writing thread did not expect."""
        if self._defect is not None:
            defect, self._defect = self._defect, None
            raise defect


def prune(run: Path, keep: Keep) -> None:
    """Remove the checkpoints that need not stay."""
    found = checkpoints(run)
    stay = set(found[-keep.count :])
    if keep.hours is not None:
        first = {int(saved_at(folder) // (keep.hours * 3600)): folder for folder in reversed(found)}
        stay |= set(first.values())
    for folder in found:
        if folder not in stay:
            try:
                remove_checkpoint(folder)
            except OSError as error:
                _say.warning("old checkpoint %s stays: %s", folder, error)


def _is_whole(folder: Path) -> bool:
    """Tell whether a checkpoint is as it was written; one that is not is set aside."""
    try:
        check_whole(folder)
    except PermissionError:
        raise
    except (CheckpointError, OSError) as error:
        place = set_aside(folder)
        _say.error("checkpoint is damaged: %s It is kept as %s; the one before it is taken.", error, place.name)
        return False
    return True
