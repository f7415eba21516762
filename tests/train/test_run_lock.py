"""One run in a folder, and no folder that a stranger prepared."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gemsmith.errors import CheckpointError, TrainingError
from gemsmith.train.run_lock import check_owner, lock_run

HOLD = "import sys, time, pathlib\nfrom gemsmith.train.run_lock import lock_run\n"
HOLD += "with lock_run(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"


def test_a_second_run_in_one_folder_is_refused(tmp_path: Path) -> None:
    with (
        lock_run(tmp_path / "run"),
        pytest.raises(TrainingError, match=rf"one run at a time; got '.*run', where process {os.getpid()} trains"),
        lock_run(tmp_path / "run"),
    ):
        pass
    with lock_run(tmp_path / "run"):  # free again
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(TrainingError, match=f"where process {process.pid} trains"), lock_run(tmp_path):
            pass
        process.kill()
        process.wait()
        with lock_run(tmp_path):
            pass


def test_a_worker_that_outlives_a_killed_run_does_not_hold_its_lock(tmp_path: Path) -> None:
    code = HOLD.replace("print(", "import os; child = os.fork(); child or print(os.getpid(), ")
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline().split()[0])
        process.kill()
        process.wait()
        with lock_run(tmp_path):
            os.kill(worker, signal.SIGKILL)  # it was alive all the time


@pytest.mark.parametrize(
    ("mode", "parent_mode", "is_ours", "is_refused"),
    [
        (0o777, 0o755, False, True),
        (0o755, 0o1777, False, True),
        (0o755, 0o755, False, False),
        (0o777, 0o777, True, False),
    ],
)
def test_only_what_a_stranger_left_open_is_refused(
    mode: int, parent_mode: int, is_ours: bool, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shared" / "run"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    folder.parent.chmod(parent_mode)
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner if is_ours else owner + 1)
    if is_refused:
        with pytest.raises(CheckpointError, match=rf"must be yours, .* got '.*run' of user {owner}, mode drwx"):
            check_owner(folder)
    else:
        check_owner(folder)
