"""Saving and resuming: a resumed run is the run that was never stopped, and nothing is lost in silence."""

import errno
import json
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gemsmith.errors import CheckpointError, StorageError, TrainingError
from gemsmith.train.checkpoint import Checkpointer, Every, Keep, prune
from gemsmith.train.checkpoint_files import checkpoints
from gemsmith.train.loop import TrainState
from gemsmith.train.snapshot import state_facts, state_tensors
from small_run import IDENTITY, new_state, train

EACH_STEP, KEEP = Every(seconds=None, steps=1), Keep()


def saver(run: Path, *, keep: Keep = KEEP, every: Every = EACH_STEP, **identity: str) -> Checkpointer:
    return Checkpointer(run, identity={**IDENTITY, **identity}, keep=keep, every=every)


def saved(run: Path, *steps: int, keep: Keep = KEEP) -> TrainState:
    """Train and save at these steps."""
    state = new_state()
    with saver(run, keep=keep) as checkpointer:
        for step in steps:
            checkpointer.save(train(state, until=step))
    return state


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def test_resumed_run_is_bit_equal_to_one_never_stopped(tmp_path: Path) -> None:
    torch.manual_seed(7)
    through = train(new_state(), until=6)
    tensors = state_tensors(through)

    def stop(state: TrainState, _report: object) -> None:
        if state.step == 3:
            raise KeyboardInterrupt

    torch.manual_seed(7)
    checkpointer = saver(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(new_state(), until=6, watchers=(checkpointer, stop))
    checkpointer.close()
    torch.manual_seed(99)
    resumed = new_state()
    assert saver(tmp_path).resume(resumed) == tmp_path / "step_00000003"
    assert resumed.step == 3
    train(resumed, until=6)
    found = state_tensors(resumed)
    assert found.keys() == tensors.keys() >= {"random/torch_cpu"}
    assert [name for name, tensor in tensors.items() if not torch.equal(found[name], tensor)] == []
    facts, wanted = state_facts(resumed), state_facts(through)
    for each in (facts, wanted):
        each["state"].pop("seconds")
    assert json.dumps(facts) == json.dumps(wanted)


def test_an_empty_folder_has_nothing_to_resume(tmp_path: Path) -> None:
    assert saver(tmp_path / "none").resume(new_state()) is None
    assert saver(tmp_path).resume(new_state()) is None


def test_the_newest_stay(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, keep=Keep(3))
    assert names(tmp_path) == ["step_00000002", "step_00000003", "step_00000004"]


def test_the_first_of_every_period_stays_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = iter([0.1, 0.9, 2.1, 2.2, 2.9, 3.5])
    monkeypatch.setattr("gemsmith.train.checkpoint_files.time.time", lambda: next(hours) * 3600)
    saved(tmp_path, 1, 2, 3, 4, 5, 6, keep=Keep(1, hours=2.0))
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000001", "step_00000003", "step_00000006"]


def test_a_save_is_due_by_steps_or_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gemsmith.train.checkpoint.perf_counter", lambda: now[0])

    def tick(state: TrainState, _report: object) -> None:
        now[0] += 10.0

    by_steps = saver(tmp_path / "a", keep=Keep(9), every=Every(seconds=None, steps=3))
    train(new_state(), until=7, watchers=(tick, by_steps))
    by_steps.close()
    assert names(tmp_path / "a") == ["step_00000003", "step_00000006"]
    by_time = saver(tmp_path / "b", keep=Keep(9), every=Every(seconds=20.0))
    train(new_state(), until=5, watchers=(tick, by_time))
    by_time.close()
    assert names(tmp_path / "b") == ["step_00000002", "step_00000004"]


def test_training_goes_on_while_a_copy_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is the state at the save, though the weights have moved on; the next save waits."""
    from gemsmith.train import checkpoint

    gate, write = threading.Event(), checkpoint.write_checkpoint
    order: list[str] = []

    def slow(run: Path, snapshot: object, **options: object) -> Path:
        assert gate.wait(20)
        order.append(threading.current_thread().name)
        return write(run, snapshot, **options)  # pyright: ignore

    monkeypatch.setattr(checkpoint, "write_checkpoint", slow)
    checkpointer, state = saver(tmp_path), train(new_state(), until=1)
    wanted = {name: tensor.clone() for name, tensor in state_tensors(state).items()}
    checkpointer.save(state, wait=False)
    train(state, until=2)
    assert names(tmp_path) == []
    gate.set()
    checkpointer.save(state, wait=False)
    checkpointer.close()
    assert order == ["checkpoint", "checkpoint"]
    shutil.rmtree(tmp_path / "step_00000002")
    first = new_state()
    saver(tmp_path).resume(first)
    found = state_tensors(first)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_the_same_step_is_written_once(tmp_path: Path) -> None:
    state, checkpointer = train(new_state(), until=1), saver(tmp_path)
    checkpointer.save(state)
    before = (tmp_path / "step_00000001").stat().st_ino
    checkpointer.save(state)
    assert (tmp_path / "step_00000001").stat().st_ino == before


def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, 1, 2)
    tensors = tmp_path / "step_00000002/state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    state = new_state()
    with caplog.at_level(logging.ERROR, logger="gemsmith"):
        assert saver(tmp_path).resume(state) == tmp_path / "step_00000001"
    assert state.step == 1
    assert "state.safetensors must have the SHA-256" in caplog.text
    assert "kept as step_00000002.damaged; the one before it is taken" in caplog.text
    assert names(tmp_path) == ["step_00000001", "step_00000002.damaged"]
    saved(tmp_path, 2)  # the step is made again, damaged again, and both stay
    (tmp_path / "step_00000002/MANIFEST.json").unlink()
    saver(tmp_path).resume(new_state())
    assert names(tmp_path) == ["step_00000001", "step_00000002.damaged", "step_00000002.damaged-2"]


def test_a_run_with_only_damaged_checkpoints_does_not_start_over(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "step_00000001/state.json").write_text("{}")
    for _ in range(2):  # nor at the second try
        with pytest.raises(CheckpointError, match=r"got only \['step_00000001.damaged'\]"):
            saver(tmp_path).resume(new_state())


@pytest.mark.parametrize("name", ["model", "data", "vocabulary"])
def test_what_changed_is_refused_by_name(tmp_path: Path, name: str) -> None:
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match=rf"^{name} must be what .* got {name} 'fedcba' instead of '\w+' for"):
        saver(tmp_path, **{name: "fedcba"}).resume(new_state())
    assert names(tmp_path) == ["step_00000001"]


def test_everything_that_changed_is_named(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"^model and vocabulary must be .*; vocabulary 'd' instead of 'bb'"):
        saver(tmp_path, model="c", vocabulary="d").resume(new_state())


def test_a_folder_anyone_may_write_to_is_not_resumed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)
    tmp_path.chmod(0o777)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(CheckpointError, match=r"folder to resume from must be yours.*mode drwxrwxrwx"):
        saver(tmp_path).resume(new_state())


def full(*_args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_in_a_run_is_told_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = saver(tmp_path)
    state = train(new_state(), until=1, watchers=(checkpointer,))
    checkpointer.close()
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, logger="gemsmith"):
        patch.setattr("gemsmith.train.checkpoint_files._write_all", full)
        train(state, until=3, watchers=(checkpointer,))
        with pytest.raises(StorageError, match=r"No space left on device at '.*step_00000003', which needs 0\.0 MB"):
            checkpointer.close()
    assert "step 2 is not saved" in caplog.text
    assert names(tmp_path) == ["step_00000001"]
    train(state, until=4, watchers=(checkpointer,))  # room was made: nothing stands in the way
    checkpointer.close()
    assert names(tmp_path) == ["step_00000001", "step_00000004"]


def test_the_last_save_of_a_run_must_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = saved(tmp_path, 1)
    monkeypatch.setattr("gemsmith.train.checkpoint_files._write_all", full)
    with pytest.raises(StorageError, match="Make room on the disk; earlier checkpoints are untouched"):
        saver(tmp_path).save(train(state, until=2))
    assert names(tmp_path) == ["step_00000001"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 128 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", place], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a small file system needs the rights to do so")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_really_full_disk_keeps_the_old_checkpoint(small_disk: Path) -> None:
    run = small_disk / "run"
    state = saved(run, 1)
    (small_disk / "others").write_bytes(bytes(shutil.disk_usage(small_disk).free - 20_000))
    with pytest.raises(StorageError, match=r"No space left on device at '.*step_00000002', which needs 0\.0 MB"):
        saver(run).save(train(state, until=2))
    assert names(run) == ["step_00000001"]
    assert saver(run).resume(new_state()) == run / "step_00000001"


def test_a_defect_of_the_writing_thread_surfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("gemsmith.train.checkpoint.write_checkpoint", broken)
    checkpointer, state = saver(tmp_path), train(new_state(), until=1)
    checkpointer.save(state, wait=False)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        checkpointer.save(state, wait=False)


def test_an_error_of_the_run_is_not_hidden_and_the_save_under_way_ends(tmp_path: Path) -> None:
    state = train(new_state(), until=1)

    def fail() -> None:
        with saver(tmp_path) as checkpointer:
            checkpointer.save(state, wait=False)
            raise TrainingError("not finite")

    with pytest.raises(TrainingError, match="not finite"):
        fail()
    assert names(tmp_path) == ["step_00000001"]


@pytest.mark.parametrize(("count", "hours"), [(0, None), (2, 0.0), (2, float("nan"))])
def test_nothing_kept_is_refused(count: int, hours: float | None) -> None:
    with pytest.raises(TrainingError, match=rf"got {count} and {hours}"):
        Keep(count, hours)


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, None), (None, -1), (float("nan"), None)])
def test_no_time_between_saves_is_refused(seconds: float | None, steps: int | None) -> None:
    with pytest.raises(TrainingError, match=rf"got {seconds} seconds and {steps} steps"):
        Every(seconds, steps)


def test_an_old_checkpoint_that_cannot_be_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1, 2)

    def refuse(_folder: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("gemsmith.train.checkpoint.remove_checkpoint", refuse)
    prune(tmp_path, Keep(1))
    assert "stays: [Errno 1] Operation not permitted" in caplog.text
