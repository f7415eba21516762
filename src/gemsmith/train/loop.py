"""The training loop: one step, and many."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemsmith.data.mixture import Batch
from gemsmith.errors import TrainingError
from gemsmith.train.optimizer import OptimizerSpec, rate_factor, set_rates

# (weights, batch) -> summed loss of the targets that count
LossFn = Callable[[Mapping[str, Tensor], Batch], Tensor]
# (weights, micro-batches, loss function, scale) -> scaled loss, gradients added
Accumulate = Callable[[Mapping[str, Tensor], Sequence[Batch], LossFn, float], float]


@dataclass
class TrainState:
    """Everything a run consists of, and all that a checkpoint holds.

    Attributes:
        weights: Float32 masters under the network's parameter names.
        seconds: Time spent in steps, pauses of the process left out.
        late_step: Step at which the last part of the run began; None before that.
    """

    weights: dict[str, Tensor]
    optimizers: dict[str, torch.optim.Optimizer]
    step: int = 0
    n_tokens: int = 0
    seconds: float = 0.0
    late_step: int | None = None


@dataclass(frozen=True)
class StepReport:
    """What one step did; `nll` is the mean loss in nats per target."""

    step: int
    nll: float
    grad_norm: float
    rate: float
    n_tokens: int


@dataclass
class Budget:
    """How long a run is: in steps, or in seconds of steps."""

    steps: int | None = None
    seconds: float | None = None

    def progress(self, state: TrainState) -> float:
        """Return the share of the run that is done, from 0 to 1."""
        if self.steps is not None:
            return min(1.0, state.step / self.steps)
        return min(1.0, state.seconds / (self.seconds or math.inf))


@dataclass
class Clock:
    """Measures steps; a step that took far longer than others stood still and counts as a usual one."""

    recent: list[float] = field(default_factory=list)

    def counted(self, seconds: float) -> float:
        """Return how much of a step's duration counts as work."""
        usual = sorted(self.recent)[len(self.recent) // 2] if len(self.recent) >= 8 else None
        if usual is not None and seconds > 5 * usual:
            return usual
        self.recent = [*self.recent[-31:], seconds]
        return seconds


def accumulate(weights: Mapping[str, Tensor], micro_batches: Sequence[Batch], loss_fn: LossFn, scale: float) -> float:
    """Add the gradient of `scale` times the summed losses to the weights' own; return the scaled sum."""
    total = 0.0
    for batch in micro_batches:
        loss = loss_fn(weights, batch) * scale
        loss.backward()
        total += float(loss.detach())
    return total


def train_step(
    state: TrainState,
    micro_batches: Sequence[Batch],
    loss_fn: LossFn,
    *,
    spec: OptimizerSpec,
    factor: float = 1.0,
    accumulate: Accumulate = accumulate,
) -> StepReport:
    """Make one update of the mean loss over all targets of all micro-batches.

    Losses are summed and divided by the count of the whole step, so accumulated micro-batches of any
    sizes give the gradient of one big batch.

    Args:
        factor: Share of the peak rates.
        accumulate: Another way to the same gradients, such as `Workers.accumulate`.

    Raises:
        TrainingError: Loss or gradient are not finite; nothing was updated.
    """
    n_targets = sum(int(batch.loss_mask.sum()) for batch in micro_batches)
    if n_targets == 0:
        raise TrainingError(f"a step must have targets that count; got none in step {state.step}. Check loss masks.")
    nll = accumulate(state.weights, micro_batches, loss_fn, 1.0 / n_targets)
    norm = float(torch.nn.utils.clip_grad_norm_(state.weights.values(), spec.clip, foreach=True))
    if not (math.isfinite(nll) and math.isfinite(norm)):
        bad = next((n for n, w in state.weights.items() if w.grad is not None and not w.grad.isfinite().all()), "loss")
        raise TrainingError(
            f"loss and gradient must be finite; got {nll} and {norm} in step {state.step}, first in {bad!r}. "
            "Lower the rate, or resume from an earlier checkpoint."
        )
    set_rates(state.optimizers, factor, spec)
    for optimizer in state.optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.n_tokens += sum(batch.token_ids.numel() for batch in micro_batches)
    return StepReport(state.step, nll, norm, spec.matrix_rate * factor, state.n_tokens)


def fit(
    state: TrainState,
    batches: Callable[[TrainState, float], Sequence[Batch]],
    loss_fn: LossFn,
    *,
    spec: OptimizerSpec,
    budget: Budget,
    accumulate: Accumulate = accumulate,
    watchers: Iterable[Callable[[TrainState, StepReport], None]] = (),
) -> TrainState:
    """Train until the budget is spent.

    Args:
        batches: Function (state, progress) -> micro-batches of the next step.
        watchers: Called after every step: logs, checkpoints, samples. They may change the budget.
    """
    watchers, clock = list(watchers), Clock()
    while (progress := budget.progress(state)) < 1.0:
        start = time.perf_counter()
        factor = rate_factor(state.step, progress, spec)
        report = train_step(state, batches(state, progress), loss_fn, spec=spec, factor=factor, accumulate=accumulate)
        state.seconds += clock.counted(time.perf_counter() - start)
        for watch in watchers:
            watch(state, report)
    return state
