"""Two runs are equal when every bit is, and the first difference has a name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gemsmith.train.checkpoint_files import write_checkpoint
from gemsmith.train.difference import first_difference
from gemsmith.train.loop import TrainState
from gemsmith.train.snapshot import Camera, Snapshot, restore
from gemsmith.train.trace import TRACE_FILE, Trace
from small_run import new_state, train


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, str]:
    """Return what a run of two steps comes to, and its trace."""
    path = tmp_path_factory.mktemp("run") / TRACE_FILE
    state = train(new_state(), until=2, watchers=(Trace(path),))
    return Camera().take(state), path.read_text()


def stored(run: Path, last: tuple[Snapshot, str], change: Callable[[TrainState], object] = id) -> Path:
    state = new_state()
    restore(state, last[0])
    change(state)
    write_checkpoint(run, Camera().take(state), identity={})
    (run / TRACE_FILE).write_text(last[1])
    return run


def flip(state: TrainState) -> None:
    """Change the last bit of one number of one tensor."""
    moment = next(iter(state.optimizers["adamw"].state.values()))["exp_avg"]
    moment.view(torch.int32).view(-1)[-1] ^= 1


def test_a_run_is_equal_to_itself_whatever_the_clock_says(tmp_path: Path, last: tuple[Snapshot, str]) -> None:
    other = stored(tmp_path / "b", last, lambda state: setattr(state, "seconds", 99.0))
    assert first_difference(stored(tmp_path / "a", last), other, steps=2) is None


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (flip, "tensor 'adamw/0/exp_avg'"),
        (lambda state: torch.rand(1), "tensor 'random/torch_cpu'"),
        (lambda state: setattr(state, "n_tokens", 5), "['n_tokens'] of the state"),
        (lambda state: state.optimizers["muon"].state.clear(), "is in one run only"),
        (lambda state: state.optimizers["muon"].param_groups[0].update(lr=9.0), "the optimizers of the state"),
    ],
)
def test_what_differs_is_named(
    tmp_path: Path, last: tuple[Snapshot, str], change: Callable[[TrainState], object], found: str
) -> None:
    difference = first_difference(stored(tmp_path / "a", last), stored(tmp_path / "b", last, change), steps=2)
    assert found in str(difference)


@pytest.mark.parametrize(("name", "value"), [("batches", ["other"]), ("nll", 1.0), ("grad_norm", 1.0)])
def test_a_step_that_saw_or_found_something_else_is_named(
    tmp_path: Path, last: tuple[Snapshot, str], name: str, value: object
) -> None:
    one, other = stored(tmp_path / "a", last), stored(tmp_path / "b", last)
    row = json.loads(last[1].splitlines()[0])
    with (other / TRACE_FILE).open("a") as file:  # the step was made twice, and differed once
        file.write(json.dumps({**row, name: value}) + "\n")
    assert first_difference(one, other, steps=2) == f"{name} of step 1"


def test_a_step_that_is_missing_is_named(tmp_path: Path, last: tuple[Snapshot, str]) -> None:
    one, other = stored(tmp_path / "a", last), stored(tmp_path / "b", last)
    (other / TRACE_FILE).write_text(last[1].splitlines()[0])
    assert first_difference(one, other, steps=2) == "no line of step 2"
