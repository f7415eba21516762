"""What differs between two runs, down to the bit."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemsmith.train.checkpoint_files import read_checkpoint
from gemsmith.train.trace import TRACE_FILE, read_trace


def first_difference(through: Path, other: Path, *, steps: int) -> str | None:
    """Return the first thing in which two runs differ, None where there is none."""
    one, two = (read_checkpoint(run / f"step_{steps:08d}") for run in (through, other))
    for name in sorted(one.tensors.keys() | two.tensors.keys()):
        ours, theirs = one.tensors.get(name), two.tensors.get(name)
        if ours is None or theirs is None:
            return f"tensor {name!r} is in one run only"
        if ours.dtype != theirs.dtype or not torch.equal(_bits(ours), _bits(theirs)):
            return f"tensor {name!r}"
    facts = [
        {**shot.facts, "state": {k: v for k, v in shot.facts["state"].items() if k != "seconds"}} for shot in (one, two)
    ]
    if facts[0] != facts[1]:
        odd = [name for name, value in facts[0]["state"].items() if facts[1]["state"].get(name) != value]
        return f"{odd or 'the optimizers'} of the state"
    return _first_difference_of_traces(read_trace(through / TRACE_FILE), read_trace(other / TRACE_FILE))


def _bits(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes: 0 and -0 differ, NaN is equal to itself."""
    return tensor.flatten().view(torch.uint8)


def _first_difference_of_traces(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> str | None:
    wanted = {row["step"]: row for row in one}
    for row in two:
        for name, value in wanted[row["step"]].items():
            if row[name] != value:
                return f"{name} of step {row['step']}"
    missing = sorted(wanted.keys() - {row["step"] for row in two})
    return f"no line of step {missing[0]}" if missing else None
