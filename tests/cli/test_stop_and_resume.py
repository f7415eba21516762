"""A training command is stopped by a signal, resumes, and shares its run folder with nobody."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from gemsmith.cli.main import main
from gemsmith.errors import CheckpointError
from gemsmith.recipes.options import Compute
from gemsmith.recipes.pretrain import run
from gemsmith.recipes.prove import Proof
from gemsmith.tokenizer import train_tokenizer
from small_recipe import write_small_recipe

STOPPED, FAILED, FOREVER = 75, 1, "1000000"
# The file system is made so slow that a signal comes while a checkpoint is being written.
SLOW_DISK = """
import sys, time
from gemsmith.train import checkpoint_files
write = checkpoint_files._write_all
def slow(file, data):
    print("writing", file=sys.stderr, flush=True)
    time.sleep(0.05)
    write(file, data)
checkpoint_files._write_all = slow
"""
MAIN = "import sys; from gemsmith.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    recipe = write_small_recipe(tmp_path)
    folders = ["--data", str(tmp_path), "--out", str(tmp_path / "run")]
    return ["pretrain", str(recipe), *folders, "--probes", "0", "--save-every", "2"]


@contextmanager
def training(argv: list[str], *, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """Start a command that trains, and end it in any case."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", before + MAIN, *argv], stderr=subprocess.PIPE, text=True,
                          stdout=subprocess.DEVNULL, env=environment) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not happened():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def last_step(run: Path) -> int:
    return max((int(path.name.removeprefix("step_")) for path in run.glob("step_*")), default=0)


def test_sigterm_saves_and_exits_75_and_the_same_call_goes_on_alone(argv: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with training([*argv, "--steps", FOREVER]) as process:
        wait_for(lambda: last_step(out) >= 2, process)
        with training([*argv, "--steps", FOREVER]) as second:
            _, refused = second.communicate(timeout=90)
        assert second.returncode == FAILED
        assert f"run folder must be used by one run at a time; got '{out}', where process {process.pid}" in refused
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=90)
    stopped_at = last_step(out)
    assert process.returncode == STOPPED, said
    assert f"got SIGTERM in step {stopped_at}, which is saved. Call the same command to go on." in said
    assert json.loads((out / f"step_{stopped_at:08d}/state.json").read_text())["state"]["step"] == stopped_at
    steps = str(stopped_at + 3)
    with training([*argv, "--steps", steps]) as process:
        _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    assert last_step(out) == stopped_at + 3
    assert (out / "model/model.safetensors").is_file()


def test_sigterm_while_a_checkpoint_is_written_waits_for_it(argv: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with training([*argv, "--steps", FOREVER], before=SLOW_DISK) as process:
        wait_for(lambda: any(out.glob(".step_*.part")), process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=90)
    assert process.returncode == STOPPED, said
    assert not any(out.glob(".step_*"))
    assert f"in step {last_step(out)}, which is saved" in said


def test_a_second_signal_stops_at_once_and_leaves_no_half_checkpoint(argv: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with training([*argv, "--steps", FOREVER], before=SLOW_DISK.replace("0.05", "60")) as process:
        wait_for(lambda: any(out.glob(".step_*.part")), process)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)  # it is in its wait for the disk
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == -signal.SIGTERM
    assert last_step(out) == 0


def train(place: Path, steps: int) -> None:
    run(place / "recipe.toml", data_dir=place, out=place / "run", steps=steps, compute=Compute(torch.float32))


@pytest.mark.parametrize(
    ("name", "old", "new", "found"),
    [
        ("recipe.toml", "d_ff = 24", "d_ff = 32", "^model must be what"),
        ("recipe.toml", "seed = 3", "seed = 4", "^recipe must be what"),
        ("recipe.toml", "size = 450", "size = 440", "^model must be what"),
        ("stories.jsonl", "Once a fox", "Twice a fox", "^data must be what the checkpoint was made with; got data '"),
        ("run/vocabulary", "", "", "^vocabulary and data must be what the checkpoint was made with; got vocabulary '"),
    ],
)
def test_a_run_made_of_something_else_is_refused(tmp_path: Path, name: str, old: str, new: str, found: str) -> None:
    write_small_recipe(tmp_path)
    train(tmp_path, 2)
    if name.endswith("vocabulary"):  # somebody puts another one in its place
        shutil.rmtree(tmp_path / name)
        train_tokenizer(["a fox met an owl, a bear and a crow"], vocab_size=450).save(tmp_path / name)
    else:
        (tmp_path / name).write_text((tmp_path / name).read_text().replace(old, new))
    with pytest.raises(CheckpointError, match=found):
        train(tmp_path, 4)
    assert last_step(tmp_path / "run") == 2


@pytest.mark.parametrize(("difference", "status"), [(None, 0), ("kill 1, x: tensor 'weights/a'", FAILED)])
def test_the_exit_status_of_a_proof_is_its_result(
    difference: str | None,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    proof = Proof((None, difference))
    monkeypatch.setattr("gemsmith.recipes.prove.prove_resume", lambda *_args, **_options: proof)
    assert main(["pretrain", str(write_small_recipe(tmp_path)), "--prove-resume"]) == status
    assert capsys.readouterr().out == f"{proof}\n"
