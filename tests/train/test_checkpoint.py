"""Checkpoints: whole or not there, and a resumed run is the run that was never stopped."""

import json
from pathlib import Path

import pytest
import torch

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.data.mixture import Batch
from gemsmith.errors import CheckpointError, StorageError
from gemsmith.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from gemsmith.train.initial import initial_weights
from gemsmith.train.loop import Budget, TrainState, fit
from gemsmith.train.loss import LossSpec
from gemsmith.train.next_token import next_token_loss
from gemsmith.train.optimizer import OptimizerSpec, build_optimizers

_LAYER = LayerSpec("local", 2, 1, 8, 24, attn_scale=8**-0.5, window=4, attn_softcap=3.0)
CONFIG = ModelConfig("gemma2", 64, 16, 32, (_LAYER,), final_softcap=5.0)
SPEC = OptimizerSpec(matrix_rate=0.01, other_rate=0.01, warmup_steps=2, decay_share=0.5)
LOSS = next_token_loss(CONFIG, LossSpec(CONFIG.final_softcap))
IDENTITY = {"recipe": "0123456789abcdef"}


def new_state() -> TrainState:
    weights = initial_weights(CONFIG, seed=0)
    return TrainState(weights, build_optimizers(weights, SPEC))


def batches(state: TrainState, _progress: float) -> list[Batch]:
    ids = torch.randint(1, 64, (2, 17), generator=torch.Generator().manual_seed(state.step))
    row = torch.arange(16).expand(2, 16)
    return [Batch(ids[:, :-1], ids[:, 1:], torch.ones(2, 16, dtype=torch.bool), row * 0, row)]


def train(state: TrainState, *, until: int) -> TrainState:
    return fit(state, batches, LOSS, spec=SPEC, budget=Budget(steps=until))


def test_resumed_run_is_bit_equal_to_one_never_stopped(tmp_path: Path) -> None:
    through = new_state()
    schedule = Budget(steps=6)
    fit(through, batches, LOSS, spec=SPEC, budget=schedule)

    def stop(state: TrainState, _report: object) -> None:
        if state.step == 3:
            save_checkpoint(tmp_path, state, identity=IDENTITY)

    fit(new_state(), batches, LOSS, spec=SPEC, budget=schedule, watchers=[stop])
    resumed = new_state()
    load_checkpoint(checkpoints(tmp_path)[-1], resumed, identity=IDENTITY)
    assert resumed.step == 3
    fit(resumed, batches, LOSS, spec=SPEC, budget=schedule)
    assert (resumed.step, resumed.n_tokens) == (through.step, through.n_tokens) == (6, 192)
    for name, weight in through.weights.items():
        assert torch.equal(resumed.weights[name], weight), name


def test_newest_checkpoints_stay(tmp_path: Path) -> None:
    state = new_state()
    for step in (1, 2, 3, 4):
        train(state, until=step)
        save_checkpoint(tmp_path, state, identity=IDENTITY)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000003", "step_00000004"]


def test_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, train(new_state(), until=1), identity=IDENTITY)
    (folder / "MANIFEST.json").unlink()
    assert checkpoints(tmp_path) == []


def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = train(new_state(), until=1)
    save_checkpoint(tmp_path, state, identity=IDENTITY)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gemsmith.train.checkpoint.save_file", full)
    with pytest.raises(StorageError, match=r"No space left on device.*step_00000002"):
        save_checkpoint(tmp_path, train(state, until=2), identity=IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_changed_bytes_are_named(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, train(new_state(), until=1), identity=IDENTITY)
    tensors = folder / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match=r"state\.safetensors must have SHA-256"):
        load_checkpoint(folder, new_state(), identity=IDENTITY)


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, train(new_state(), until=1), identity=IDENTITY)
    with pytest.raises(CheckpointError, match=r"recipe must be what the checkpoint was made with.*'fedcba'"):
        load_checkpoint(folder, new_state(), identity={"recipe": "fedcba"})


def test_facts_are_plain_json(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, train(new_state(), until=1), identity=IDENTITY)
    assert json.loads((folder / "state.json").read_text())["step"] == 1
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
