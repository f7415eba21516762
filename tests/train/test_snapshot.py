"""A snapshot holds all of a state, and training cannot change it."""

from dataclasses import replace

import pytest
import torch

from gemsmith.errors import CheckpointError
from gemsmith.train.loop import TrainState
from gemsmith.train.snapshot import Camera, Snapshot, restore, state_facts, state_tensors
from small_run import new_state, train


def test_training_leaves_a_snapshot_alone() -> None:
    state = train(new_state(), until=1)
    snapshot = Camera().take(state)
    before = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    state.recent[0][0] = -1.0  # lists are copied too
    train(state, until=2)
    assert all(torch.equal(snapshot.tensors[name], tensor) for name, tensor in before.items())
    assert snapshot.step == 1
    assert snapshot.facts["state"]["recent"][0][0] > 0


def test_every_snapshot_goes_into_the_same_memory() -> None:
    camera, state = Camera(), train(new_state(), until=1)
    first = {name: tensor.data_ptr() for name, tensor in camera.take(state).tensors.items()}
    second = {name: tensor.data_ptr() for name, tensor in camera.take(train(state, until=2)).tensors.items()}
    assert first == second


def test_a_snapshot_put_back_is_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    state = train(new_state(), until=2)
    kept = next(iter(state.optimizers["adamw"].state.values()))
    kept["half"], kept["n_seen"] = torch.randn(3).bfloat16(), 7  # kept in another precision, and as a number
    snapshot = Camera().take(state)
    torch.rand(5)
    other = new_state()
    restore(other, snapshot)
    found = state_tensors(other)
    for name, tensor in snapshot.tensors.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert state_facts(other) == state_facts(state)


def test_a_state_with_other_fields_is_refused() -> None:
    snapshot = Camera().take(new_state())
    facts = {**snapshot.facts, "state": {**snapshot.facts["state"], "n_dreams": 3}}
    with pytest.raises(CheckpointError, match=r"difference in \['n_dreams'\]"):
        restore(new_state(), replace(snapshot, facts=facts))


@pytest.mark.parametrize(("change", "found"), [("drop", "none"), ("cut", r"\[1\]")])
def test_a_state_with_other_weights_is_refused(change: str, found: str) -> None:
    snapshot = Camera().take(new_state())
    tensors = dict(snapshot.tensors)
    name = "weights/embed_tokens.weight"
    tensor = tensors.pop(name)
    if change == "cut":
        tensors[name] = tensor[0, :1]
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' must have the shape .*; got {found}"):
        restore(new_state(), Snapshot(tensors, snapshot.facts))


def test_a_state_with_other_optimizers_is_refused() -> None:
    snapshot, state = Camera().take(new_state()), new_state()
    other = TrainState(state.weights, {"sgd": torch.optim.SGD(state.weights.values())})
    with pytest.raises(CheckpointError, match=r"optimizers \['sgd'\]; got \d+ and \['adamw', 'muon'\]"):
        restore(other, snapshot)
