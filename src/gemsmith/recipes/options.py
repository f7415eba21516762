"""What a run may be told beside its recipe: how to compute, how long, who watches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gemsmith.errors import TrainingError
from gemsmith.recipes.dial import Dial
from gemsmith.recipes.recipe import Recipe
from gemsmith.tokenizer import Tokenizer
from gemsmith.train.journal import Journal
from gemsmith.train.loop import Budget, StepReport, TrainState

Watcher = Callable[[TrainState, StepReport], None]


@dataclass(frozen=True)
class Compute:
    """How the arithmetic of a run is done.

    Attributes:
        dtype: Of the blocks' arithmetic; weights and optimizer stay in float32.
        is_compiled: Fuse with torch.compile, which needs a C++ compiler.
        n_processes: More than one share out each batch, with one thread each; better than threads
            where others use the same cores.
        is_recomputed: Compute blocks twice instead of keeping their activations.
        micro_batch_tokens: Most tokens whose activations exist at one time; a step is split into equal
            parts of at most so many, and comes to the same.
        n_data_workers: Threads that make batches ahead of need.
    """

    dtype: torch.dtype = torch.bfloat16
    is_compiled: bool = False
    n_processes: int = 1
    is_recomputed: bool = False
    micro_batch_tokens: int | None = None
    n_data_workers: int = 1

    def __post_init__(self) -> None:
        for name, least in (("n_processes", 1), ("micro_batch_tokens", 1), ("n_data_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise TrainingError(f"{name} must be at least {least}; got {value}. Leave it out for the usual.")


@dataclass(frozen=True)
class RunView:
    """A run as its watchers see it, before its first step.

    Attributes:
        dtype: What the blocks compute in.
        held_out: Function (name of a source) -> texts never trained on.
        seen: Function (state) -> weights as they would be given away, rounded where the network is.
    """

    out: Path
    recipe: Recipe
    tokenizer: Tokenizer
    dtype: torch.dtype
    state: TrainState
    budget: Budget
    journal: Journal
    held_out: Callable[[str], Iterator[str]]
    seen: Callable[[TrainState], Mapping[str, Tensor]]


def _nobody(view: RunView) -> Sequence[Watcher]:
    return ()


@dataclass(frozen=True)
class Options:
    """What else a run may be told.

    Attributes:
        dial: Parameters and tokens wanted; what the recipe leaves open follows from them.
        save_every_steps: A checkpoint at every multiple, beside those every few minutes.
        matrix_rate: Operations per second of this machine's matrix product, which speed is compared with.
        machine: Facts for `run.json`.
        watchers: Function that returns who is called after every step.
        trace: File for what every step saw and found, bit for bit; proofs compare it.
        start: Model to start from, instead of what the recipe says.
    """

    dial: Dial = field(default_factory=Dial)
    save_every_steps: int | None = None
    matrix_rate: float | None = None
    machine: Mapping[str, object] = field(default_factory=dict)
    watchers: Callable[[RunView], Sequence[Watcher]] = _nobody
    trace: Path | None = None
    start: str | None = None
