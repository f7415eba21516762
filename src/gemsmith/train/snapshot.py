"""A copy of a run's state that training cannot change any more: named tensors, and facts for JSON."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from gemsmith.errors import CheckpointError
from gemsmith.train.loop import TrainState

_RANDOM = "random/torch_cpu"
_LARGE = ("weights", "optimizers")  # fields that are tensors; every other one is a fact


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds.

    Attributes:
        tensors: Weights as "weights/NAME", optimizer state as "OPTIMIZER/PARAMETER/PART", and the random state.
        facts: Every other field of the state under "state", and what optimizers keep besides tensors.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Number of steps the run had made."""
        return self.facts["state"]["step"]


@dataclass
class Camera:
    """Takes snapshots into the same memory every time: a first touch of fresh memory is slow."""

    memory: dict[str, Tensor] = field(default_factory=dict)

    def take(self, state: TrainState) -> Snapshot:
        """Copy a state; the snapshot before this one is overwritten."""
        found = state_tensors(state)
        for name in self.memory.keys() - found.keys():
            del self.memory[name]
        for name, tensor in found.items():
            held = self.memory.get(name)
            if held is None or (held.shape, held.dtype) != (tensor.shape, tensor.dtype):
                held = self.memory[name] = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
            held.copy_(tensor)
        return Snapshot(dict(self.memory), deepcopy(state_facts(state)))


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """Name every tensor of a state, and torch's random state."""
    tensors = {f"weights/{name}": weight.detach() for name, weight in state.weights.items()}
    for name, optimizer in state.optimizers.items():
        for index, parts in _parts(optimizer).items():
            tensors |= {f"{name}/{index}/{part}": v.detach() for part, v in parts.items() if isinstance(v, Tensor)}
    return {**tensors, _RANDOM: torch.get_rng_state()}


def state_facts(state: TrainState) -> dict[str, Any]:
    """Return what of a state is no tensor: counters, and the numbers optimizers keep."""
    small = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in _LARGE}
    optimizers = {}
    for name, optimizer in state.optimizers.items():
        parts = {
            str(i): {k: v for k, v in p.items() if not isinstance(v, Tensor)} for i, p in _parts(optimizer).items()
        }
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        optimizers[name] = {"parts": parts, "groups": groups}
    return {"state": small, "optimizers": optimizers}


def restore(state: TrainState, snapshot: Snapshot) -> None:
    """Put a snapshot into a state of the same make, and set torch's random state.

    Raises:
        CheckpointError: The state has other fields or tensors; nothing was changed.
    """
    _check(state, snapshot)
    tensors = snapshot.tensors
    for name, weight in state.weights.items():
        weight.data.copy_(tensors[f"weights/{name}"])
    for name, optimizer in state.optimizers.items():
        _restore_optimizer(optimizer, snapshot, name)
    for name, value in snapshot.facts["state"].items():
        setattr(state, name, value)
    torch.set_rng_state(tensors[_RANDOM])


def _check(state: TrainState, snapshot: Snapshot) -> None:
    known = {field.name for field in fields(state)} - set(_LARGE)
    if odd := sorted(known ^ snapshot.facts["state"].keys()):
        raise CheckpointError(
            f"checkpoint must hold the fields of a run's state, no more and no less; got a difference in {odd!r}. "
            "Resume with the gemsmith that wrote it."
        )
    wanted = {f"weights/{name}": weight.shape for name, weight in state.weights.items()} | {
        _RANDOM: torch.get_rng_state().shape
    }
    for name, shape in wanted.items():
        found = snapshot.tensors.get(name)
        if found is None or found.shape != shape:
            raise CheckpointError(
                f"tensor {name!r} must have the shape {list(shape)}; got "
                f"{'none' if found is None else list(found.shape)} in the checkpoint. Resume with the same recipe."
            )
    n_found = sum(name.startswith("weights/") for name in snapshot.tensors)
    if n_found != len(state.weights) or snapshot.facts["optimizers"].keys() != state.optimizers.keys():
        raise CheckpointError(
            f"checkpoint must hold {len(state.weights)} weights and the optimizers {sorted(state.optimizers)}; got "
            f"{n_found} and {sorted(snapshot.facts['optimizers'])}. Resume with the same recipe."
        )


def _restore_optimizer(optimizer: torch.optim.Optimizer, snapshot: Snapshot, name: str) -> None:
    """Set state by hand: `load_state_dict` would cast what is kept in another precision than the weights."""
    facts = snapshot.facts["optimizers"][name]
    parameters = _parameters(optimizer)
    optimizer.state.clear()
    for index, parts in facts["parts"].items():
        optimizer.state[parameters[int(index)]] = dict(parts)
    for key, tensor in snapshot.tensors.items():
        if key.startswith(f"{name}/"):
            _, index, part = key.split("/", 2)
            optimizer.state[parameters[int(index)]][part] = tensor.clone()
    for group, saved in zip(optimizer.param_groups, facts["groups"], strict=True):
        group.update({k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in saved.items()})


def _parts(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """Return an optimizer's state by the place of its parameter in the groups."""
    return {i: optimizer.state[p] for i, p in enumerate(_parameters(optimizer)) if p in optimizer.state}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
